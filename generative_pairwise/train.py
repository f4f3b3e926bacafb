"""Train a judge by GRPO. Read it top to bottom: what verl's trainer is given, and what is made of its result.

    bash run_pairwise.sh                 # sets every number, then starts this file with key=value …

The loop is verl's own V1 trainer (`common/grpo/trainer.py` says what is added to it), the settings are verl's, the
reward is in reward.py. One process, this one, owns the data, the loop and the files; the workers, one per GPU or share
of the CPU, hold the sharded policy. All input is checked before Ray or a model starts.
"""

import hashlib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM

from common import cluster, failures, plan
from common.base_model import BaseModel, load_base
from common.card import write_model_card
from common.checkpoint import CheckpointError, check_resume, claim_folder, how_to_go_on
from common.conversation import DataError
from common.data_report import data_report
from common.files import content_digest
from common.grpo import answering, preflight
from common.grpo.plan import of_policy
from common.judging.prompts import digest_prompts, measure_rows
from common.judging.rubric import store_rubric
from common.judging.validated import BASELINES, MEANING, beside_baseline, validated_examples
from common.packing import PACKED, attention_of, choose_packing
from common.page.page import Page, by_split, curve_pictures, explained, write_page
from common.parquet import Faults, datasets_of, left_out_figures, split_by_prompt
from common.report import Curves, draw, format_value, read_history, training_curves

from .dataset import as_items, load_rows, prompt_of, report_rows, write_for_verl
from .prompt import FRAME, SWAPPED, VERDICTS, parse, write
from .reward import compute_score

# found, but not imported: that takes seconds, and bad input is reported before
os.environ["VERL_CONFIG"] = f"{importlib.util.find_spec('verl').submodule_search_locations[0]}/trainer/config"
HELD_OUT = 500  # rows for validation where there are none: enough to tell policies apart, few enough to answer often
FEW = 50  # one answer more or less is two points of accuracy
USAGE = """
from transformers import pipeline

judge = pipeline("text-generation", model="checkpoint")
prompt = [{"role": "user", "content": "…"}]  # as prompt.py renders it
answer = judge(prompt, max_new_tokens=512, do_sample=False)[0]["generated_text"][-1]["content"]
"""


@hydra.main(config_path=".", config_name="config", version_base=None)
def main(config: DictConfig) -> None:
    try:
        train(config)
    except (DataError, cluster.ClusterError, CheckpointError, cluster.TrainingError) as error:
        raise SystemExit(f"\ntrain.py: {error}") from None
    except failures.OF_WORKERS as error:
        raise SystemExit(f"\ntrain.py: {failures.explain(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"\ntrain.py: stopped; {how_to_go_on(config.trainer)}") from None
    finally:
        cluster.disconnect()


def train(config: DictConfig) -> None:
    # 1. Check the input
    planned = plan.is_asked(config.plan)
    cluster.check_counts(config.trainer.nnodes, config.trainer.n_gpus_per_node)
    model, options = config.actor_rollout_ref.model, config.data.apply_chat_template_kwargs
    name = "data.apply_chat_template_kwargs"
    base = load_base(model, config.data, AutoModelForCausalLM, options, name, not planned)
    tokenizer = base.tokenizer
    right = write(VERDICTS[0], "because")
    preflight.check_vocabulary(tokenizer, right, parse)
    preflight.check_reward(config, __package__, right, VERDICTS[0])
    rows_of, left_out_of = read_data(config, base)
    train_rows, datasets = rows_of["train"], datasets_of(config.data.train_files)
    show_first(train_rows[0], tokenizer)
    preflight.check_settings(config, len(train_rows), base.longest)
    check_strength(config, train_rows)

    packing = choose_packing(base.config, AutoModelForCausalLM, config.data.packing, model.path)
    model.override_config.attn_implementation = attention_of(packing, base.config, AutoModelForCausalLM)

    trainer = config.trainer
    method = of_policy(config, base.config, [row["tokens"] for row in train_rows], packing == PACKED)
    if planned:
        preflight.set_precision(config, plan.PRECISION)
        plan.show(method, config, trainer.nnodes, trainer.n_gpus_per_node)
        return
    answering.prepare(config, base.config)

    # 2. Join or start Ray
    room = preflight.room_for(config)
    machines = cluster.connect(__package__, trainer.nnodes, trainer.n_gpus_per_node, **room)
    workers = machines.workers_per_node * trainer.nnodes
    preflight.check_workers(config, workers)
    answering.check_nodes(config, machines.device)
    preflight.set_precision(config, machines.precision)
    plan.settle(method, config, workers, machines)
    output = Path(trainer.output).absolute()
    claim = claim_folder(output)
    cluster.check_shared_folder(output, trainer.nnodes)
    check_resume(output, identity(config, base.name, tokenizer, rows_of, workers), trainer.resume_mode)
    OmegaConf.save(config, output / "settings.yaml")

    # 3. Hand over to verl
    tokenizer.save_pretrained(output / "tokenizer")
    files = {name: write_for_verl(rows, output / "rows" / f"{name}.parquet") for name, rows in rows_of.items()}
    config = preflight.fill_in(config, __package__, output, files, len(train_rows), machines)
    keep_groups = packing == PACKED and preflight.keeps_groups(config, max(row["tokens"] for row in train_rows))
    if packing != PACKED:
        preflight.pad_rows(config, workers)
    cluster.check_platform(machines.device)
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    from common.grpo.trainer import BEST, CHECKPOINT, LAST, JudgeTrainer

    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)

    # 4. Train, or resume where an interrupted run of the same settings stopped
    last = JudgeTrainer(config, keep_groups).train()

    # 5. Leave behind what people and servers use
    best = json.loads((output / BEST).read_text())
    figures = {"best step": best.pop("step"), **best}
    chosen = "the best on the validation rows" if figures["best step"] else "the one that training started from"
    about = {"base model": base.name, "training prompts": len(train_rows)}
    about |= {f"{name}: left out": dict(counts) for name, counts in left_out_of.items()}
    curves = write_report(config, output / CHECKPOINT, figures, about | {"policy": chosen}, datasets)
    write_report(config, output / LAST, last, about | {"policy": "the last one"}, datasets)
    store_rubric([output / folder for folder in (CHECKPOINT, LAST, "tokenizer")], train_rows)
    answers = output / preflight.VALIDATION / f"{figures['best step']}.jsonl"
    validated = ("val", answers, rows_of["val"], tokenizer, parse, config.data.max_response_length, SWAPPED.get)
    measured = {"val prompts, best": by_split(best)["val"], "val prompts, last": by_split(last)["val"]}
    page = Page(
        title="LLM judge: preferences",
        about=about | {"policy": chosen},
        figures={name: beside_baseline(values, rows_of["val"]) for name, values in measured.items()},
        baselines=BASELINES,
        left_out=left_out_of,
        pictures=curve_pictures(curves),
        examples=[validated_examples(*validated)],
        meaning=[*explained(compute_score), MEANING],
        rest=f"All answers are in {answers.relative_to(output)}.",
    )
    write_page(output / "report.html", page)
    claim.release()
    figures |= left_out_figures(left_out_of)
    lines = [f"{name:32} {format_value(value)}" for name, value in figures.items()]
    print("\n".join(["", *lines, "", f"the best judge on val, its card and picture: {output / CHECKPOINT}"]))
    if not figures["best step"]:
        print("  no step was better on val than the model that training started from: it is that model")
    print(f"the last one: {output / LAST}")
    print(f"what the best one gets wrong: open {output / 'report.html'} in a browser")


def show_first(row: dict, tokenizer) -> None:
    """Print a prompt as the judge sees it."""
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    print(f"\nThe first prompt, as the judge sees it (label {row['label']}):\n{text}\n", flush=True)


def read_data(config: DictConfig, base: BaseModel) -> tuple[dict[str, list[dict]], dict[str, Counter]]:
    """Return the rows of train and val, and what was left out of each. One error tells all faults of all files."""
    data, rows_of, left_out_of, faults = config.data, {}, {}, Faults()
    limits = (data.max_prompt_length, data.filter_overlong_prompts, data.on_bad_row, FRAME, base.embeddings)
    for name, files in {"train": data.train_files, "val": data.val_files}.items():
        rows_of[name], left_out_of[name] = [], Counter()
        with faults.gathered():
            if files:
                rows, bad = load_rows(files, data.on_bad_row, faults=faults)
                rows_of[name], cut = measure_rows(rows, base.tokenizer, *limits, faults)
                left_out_of[name] = bad + cut
    faults.raise_all()
    if not data.val_files:
        share = min(0.1, HELD_OUT / len(rows_of["train"]))
        rows_of = split_by_prompt(rows_of["train"], {"train": 1 - share, "val": share}, config.trainer.seed, prompt_of)
        print(f"no VAL_FILES: {len(rows_of['val'])} training prompts are held out, to choose the best policy")
    if len(rows_of["val"]) < FEW:
        print(f"warning: {len(rows_of['val'])} validation prompts hardly tell one policy from another")
    for name, rows in rows_of.items():
        report_rows(name, rows, left_out_of[name])
    items_of = {name: as_items(rows) for name, rows in rows_of.items()}
    print("\n".join(data_report(items_of)))
    return rows_of, left_out_of


def check_strength(config: DictConfig, rows: list[dict]) -> None:
    options = config.reward.custom_reward_function.reward_kwargs
    if options.get("by_strength") and config.algorithm.norm_adv_by_std_in_grpo:
        raise DataError(
            "by_strength=True scales the rewards of a pair, and algorithm.norm_adv_by_std_in_grpo=True divides them by "
            "their spread again: set that to False, or leave by_strength out"
        )
    if options.get("by_strength") and not any(row["strength"] for row in rows):
        raise DataError(
            "by_strength=True, and no row of data.train_files has a strength (metadata.preference_strength)"
        )


def identity(
    config: DictConfig,
    model_name: str,
    tokenizer,
    rows_of: dict[str, list[dict]],
    workers: int,
) -> dict:
    """What must be equal for a resumed run to be the same run."""
    policy, data = config.actor_rollout_ref, config.data
    code = ("prompt.py", "openjudge_prompt.py", "reward.py")
    losses = ("clip_ratio_low", "clip_ratio_high", "use_kl_loss", "kl_loss_coef", "kl_loss_type", "entropy_coeff")
    losses += ("loss_agg_mode", "grad_clip", "ppo_epochs", "ppo_mini_batch_size")
    return {
        "model": model_name,
        "chat template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12],
        **{name: content_digest(Path(__file__).with_name(name)) for name in code},
        **{f"{name} prompts": f"{len(rows)}, digest {digest_prompts(rows)}" for name, rows in rows_of.items()},
        "reward": OmegaConf.to_container(config.reward.custom_reward_function),
        "workers": workers,
        "attention": policy.model.override_config.attn_implementation,
        **{f"data.{name}": data[name] for name in ("train_batch_size", "max_prompt_length", "max_response_length")},
        **{f"rollout.{name}": policy.rollout[name] for name in ("name", "n", "temperature", "top_p", "top_k")},
        **{f"actor.{name}": policy.actor[name] for name in losses},
        "algorithm.norm_adv_by_std_in_grpo": config.algorithm.norm_adv_by_std_in_grpo,
        "algorithm.use_kl_in_reward": config.algorithm.use_kl_in_reward,
        "algorithm.rollout_correction": OmegaConf.to_container(config.algorithm.rollout_correction),
        "lora": {key: str(policy.model[key]) for key in ("lora_rank", "lora_alpha", "target_modules")},
        "optim": OmegaConf.to_container(policy.actor.optim),
        "precision": str(policy.actor.fsdp_config.mixed_precision),
        "trainer.total_epochs": config.trainer.total_epochs,
        "trainer.seed": config.trainer.seed,
    }


def write_report(config: DictConfig, checkpoint: Path, figures: dict, about: dict, datasets: set[str]) -> list[Curves]:
    """Write a policy's picture and model card; return the training curves."""
    history, policy = read_history(Path(config.trainer.default_local_dir)), config.actor_rollout_ref
    panels = {
        "reward": ("train/reward", "val/reward"),
        "share right": ("train/acc", "val/acc"),
        "share with a verdict": ("train/parsed", "val/parsed"),
        "share that says A, and tie": ("train/first", "val/first", "train/tie", "val/tie"),
        "entropy, nats a token": ("train/entropy",),
    }
    curves = training_curves(history, panels)
    draw(checkpoint / "run.png", curves)
    about = about | {f"data.{name}": config.data[name] for name in ("train_batch_size", "max_response_length")}
    about |= {f"rollout.{name}": policy.rollout[name] for name in ("name", "n", "temperature")}
    about |= {"lr": policy.actor.optim.lr, "epochs": config.trainer.total_epochs, "seed": config.trainer.seed}
    write_model_card(
        checkpoint,
        title="LLM judge: preferences",
        summary="Reasons between `<think>` and `</think>`, "
        f"then prefers one of {', '.join(VERDICTS)}. Trained by GRPO on labelled pairs. "
        "The figures below are of the validation rows, which chose the best step.",
        usage=USAGE,
        figures=figures,
        settings=about,
        base=policy.model.path,
        datasets=datasets,
        task="text-generation",
        tags=["grpo", "llm-judge"],
    )
    return curves


if __name__ == "__main__":
    main()
