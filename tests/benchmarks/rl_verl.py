"""verl's GRPO with each of our rewards: does the policy become more helpful by the demo's known truth?

    python tests/benchmarks/rl_verl.py --reward bradley_terry --model bradley_terry/outputs/checkpoint --output /tmp/rl

verl calls `compute_score` of the method's rl_reward.py by its setting `custom_reward_function`. On a CPU the policy
itself answers (common/grpo); on a GPU that would be a server, and the reward's settings are the same. The truth is only
noted, never trained on.
"""

import argparse
import importlib
import importlib.util
import json
import logging
import os
import time
from pathlib import Path
from statistics import mean

import rl_world
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

import generative_pointwise  # noqa: F401  (whose settings these are; the workers get it)
from common import cluster
from common.base_model import load_base
from common.grpo import answering, preflight
from common.packing import PACKED, attention_of, choose_packing
from common.parquet import write_rows

REPO = Path(__file__).parents[2]
METHODS = ("bradley_terry", "generative_pointwise", "generative_pairwise")


def settings_of(options: argparse.Namespace, policy: str) -> list[str]:
    """Return verl's settings; those of generative_pointwise/config.yaml are the others."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    reward = "reward.custom_reward_function"
    known = {"model": os.path.abspath(options.model)} | json.loads(options.reward_settings)
    if options.reward == METHODS[2] and not options.anchor:
        known["group"] = rl_world.GROUP
    return [
        "data.train_files=''", "data.val_files=''", "data.packing=packed",
        f"data.train_batch_size={rl_world.PROMPTS}", "data.max_prompt_length=192",
        f"data.max_response_length={rl_world.ANSWER}", "data.filter_overlong_prompts=False",
        f"actor_rollout_ref.model.path='{policy}'", "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"{actor}.fsdp_config.use_torch_compile=False", f"{actor}.ppo_mini_batch_size={rl_world.PROMPTS}",
        f"{actor}.ppo_max_token_len_per_gpu=32768", f"{actor}.optim.lr={rl_world.RATE}",
        f"{actor}.optim.lr_warmup_steps=5",
        f"{actor}.optim.weight_decay=0.0", f"{actor}.optim.betas=[0.9,0.95]", f"{actor}.grad_clip=1.0",
        f"{actor}.clip_ratio_low=0.2", f"{actor}.clip_ratio_high=0.2", f"{actor}.use_kl_loss={options.kl > 0}",
        f"{actor}.kl_loss_coef={options.kl}", f"{actor}.loss_agg_mode=token-mean",
        f"{actor}.fsdp_config.param_offload=False", f"{actor}.fsdp_config.optimizer_offload=False",
        f"{rollout}.name=hf", f"{rollout}.n={rl_world.GROUP}", f"{rollout}.temperature=1.0",
        f"{rollout}.max_num_batched_tokens=65536", f"{rollout}.max_num_seqs=256",
        f"{rollout}.gpu_memory_utilization=0.6", f"{rollout}.val_kwargs.n={rl_world.GROUP}",
        f"{rollout}.val_kwargs.do_sample=True", f"{rollout}.val_kwargs.temperature=1.0",
        "algorithm.norm_adv_by_std_in_grpo=True",
        f"trainer.output='{options.output}'", "trainer.total_epochs=1", f"trainer.seed={options.seed}",
        f"trainer.test_freq={options.steps}", f"trainer.save_freq={options.steps}", "trainer.max_ckpt_to_keep=1",
        "trainer.nnodes=1", "trainer.resume_mode=disable",
        f"~{reward}.reward_kwargs", f"+{reward}.reward_kwargs={{}}",
        f"{reward}.path={Path(__file__).absolute()}", f"{reward}.name=noted_score",
        f"+{reward}.reward_kwargs.method={options.reward}",
        *(f"+{reward}.reward_kwargs.{name}={json.dumps(value)}" for name, value in known.items()),
    ]  # fmt: skip


async def noted_score(
    data_source: str, solution_str: str, ground_truth: object, extra_info: dict, method: str, **settings
) -> dict:
    """The method's own `compute_score`, with the truth beside its reward."""
    compute_score = importlib.import_module(f"{method}.rl_reward").compute_score
    found = await compute_score(data_source, solution_str, ground_truth, extra_info, **settings)
    return found | {"truth": rl_world.truth(extra_info["prompt"], solution_str)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=METHODS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reward-settings", default="{}", help="JSON: more settings of the reward")
    parser.add_argument("--anchor", action="store_true", help="compare with a known answer, not within the group")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kl", type=float, default=rl_world.KL, help="weight of the distance to the first policy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options.output = options.output.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    policy = rl_world.make_policy(options.output.parent, options.seed)

    os.environ["VERL_CONFIG"] = f"{importlib.util.find_spec('verl').submodule_search_locations[0]}/trainer/config"
    with initialize_config_dir(str(REPO / "generative_pointwise"), version_base=None):
        config = compose("config", settings_of(options, policy))
    model = config.actor_rollout_ref.model
    base = load_base(model, config.data, AutoModelForCausalLM, {}, "data.apply_chat_template_kwargs", True)
    packing = choose_packing(base.config, AutoModelForCausalLM, config.data.packing, model.path)
    model.override_config.attn_implementation = attention_of(packing, base.config, AutoModelForCausalLM)
    assert packing == PACKED
    answering.prepare(config, base.config)
    machines = cluster.connect("generative_pointwise", 1, None, **preflight.room_for(config))
    preflight.set_precision(config, machines.precision)
    base.tokenizer.save_pretrained(options.output / "tokenizer")
    files = {}
    for split, count in (("train", options.steps * rl_world.PROMPTS), ("val", 64)):
        prompts = rl_world.make_prompts(split, count, options.seed, options.anchor)
        rows = [
            {
                "data_source": "demo",
                "prompt": row["prompt"],
                "reward_model": {"style": "model", "ground_truth": ""},
                "extra_info": {"index": index, "source": f"{split} {index}", "begun": "", **row},
            }
            for index, row in enumerate(prompts)
        ]
        files[split] = write_rows(options.output / f"{split}.parquet", rows)
    config = preflight.fill_in(
        config, "generative_pointwise", options.output, files, options.steps * rl_world.PROMPTS, machines
    )
    cluster.check_platform(machines.device)

    from common.grpo.trainer import JudgeTrainer

    started, steps = time.monotonic(), []

    class Trainer(JudgeTrainer):
        """Notes reward and truth of each step's answers."""

        def _compute_metrics(self, batch, metrics: dict, *args, **kwargs) -> None:
            super()._compute_metrics(batch, metrics, *args, **kwargs)
            steps.append({name: float(metrics[f"train/{name}"]) for name in ("reward", "truth", "unscored")})

    try:
        Trainer(config, keep_groups=True).train()
    finally:
        cluster.disconnect()
    rl_world.report(steps, options.output, time.monotonic() - started)
    last = mean(step["truth"] for step in steps[-5:])
    print(f"truth of the first 5 steps {mean(step['truth'] for step in steps[:5]):.3f}, of the last 5 {last:.3f} of 4")


if __name__ == "__main__":
    main()
