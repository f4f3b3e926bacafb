"""TRL's GRPO with each of our rewards: does the policy become more helpful by the demo's known truth?

    python tests/benchmarks/rl_trl.py --reward bradley_terry --model bradley_terry/outputs/checkpoint --output /tmp/rl

TRL is no dependency of ours: install it beside this package, or put its folder on PYTHONPATH. `--by-path` gives TRL the
reward model's folder, which it loads by itself, in place of our function. The truth is a second reward function of
weight 0: noted, never trained on.
"""

import argparse
import importlib
import json
import logging
import time
from pathlib import Path
from statistics import mean

import rl_world
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

REWARDS = {
    "bradley_terry": "BradleyTerryReward",
    "generative_pointwise": "PointwiseReward",
    "generative_pairwise": "PairwiseReward",
}


def truth(prompts: list, completions: list, **_) -> list[float]:
    """Return the known helpfulness of each answer."""
    return [rl_world.truth(prompt, answer[-1]["content"]) for prompt, answer in zip(prompts, completions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=REWARDS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reward-settings", default="{}", help="JSON: more settings of the reward")
    parser.add_argument("--by-path", action="store_true", help="a reward model alone: TRL loads it")
    parser.add_argument("--anchor", action="store_true", help="compare with a known answer, not within the group")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kl", type=float, default=rl_world.KL, help="weight of the distance to the first policy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options.output.mkdir(parents=True, exist_ok=True)
    policy = rl_world.make_policy(options.output.parent, options.seed)
    set_seed(options.seed)
    reward = options.model
    if not options.by_path:
        kind = getattr(importlib.import_module(f"{options.reward}.rl_reward"), REWARDS[options.reward])
        known = json.loads(options.reward_settings)
        if options.reward == "generative_pairwise" and not options.anchor:
            known["group"] = rl_world.GROUP
        reward = kind(options.model, **known)

    settings = GRPOConfig(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=rl_world.PROMPTS * rl_world.GROUP,
        num_generations=rl_world.GROUP,
        max_completion_length=rl_world.ANSWER,
        learning_rate=rl_world.RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        adam_beta2=0.95,
        beta=options.kl,
        temperature=1.0,
        reward_weights=[1.0, 0.0],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    rows = rl_world.make_prompts("train", options.steps * rl_world.PROMPTS, options.seed, options.anchor)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[reward, truth],
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    started = time.monotonic()
    trainer.train()
    name = next(iter(trainer.reward_func_names))
    steps = [
        {
            "reward": entry[f"rewards/{name}/mean"],
            "truth": entry["rewards/truth/mean"],
            "unscored": entry.get("unscored", 0.0),
        }
        for entry in trainer.state.log_history
        if f"rewards/{name}/mean" in entry
    ]
    rl_world.report(steps, options.output, time.monotonic() - started)
    last = mean(step["truth"] for step in steps[-5:])
    print(f"truth of the first 5 steps {mean(step['truth'] for step in steps[:5]):.3f}, of the last 5 {last:.3f} of 4")


if __name__ == "__main__":
    main()
