"""A judge's GRPO measured against TRL's GRPOTrainer: answers per second and memory, from sampling to the last update.

    python tests/benchmarks/grpo_throughput.py --trl-python /path/to/venv/bin/python

Both sides run as a user would start them, in turns: ours through Ray and verl, without an inference server; TRL in an
environment of its own, where this package's rewards can be imported. Equal: the judge to start from (the demo's tiny
model, taught by transcripts), prompts, 32 of them a step with 8 answers each, two updates a step, temperature, the
longest answer, the reward, no distance to a reference, fp32 on one CPU thread, AdamW's numbers, a constant rate after 5
updates. How it is timed: measure.py.

Not equal: the answers drawn, since each side has its own generator; the order of the prompts; TRL's first update has a
rate of 0. And how answers are computed, which is what is measured: TRL pads, and all answers wait for the longest; here
a group's prompt is computed once, in sampling and in training, and an answer that has ended leaves the batch.
"""

import argparse
import sys
from pathlib import Path

from measure import OURS, REPO, compare, make_parser, trl_command

PROMPTS, GROUP, UPDATES = 32, 8, 2
ANSWER = 48  # tokens; the demo's judge writes some 30
LR = 1.5e-4
TRL = "TRL"


def prepare(folder: Path, profile: str, options: argparse.Namespace) -> dict:
    """Write what both sides read, prompts with labels, and the judge."""
    sys.path.insert(0, str(REPO / "tests"))
    from conftest import warm_start

    from common.demo.tiny_model import save_tiny_model
    from common.demo.world import SCORE_RUBRIC, pointwise_rows
    from common.parquet import write_rows
    from generative_pointwise.dataset import write_prompt
    from generative_pointwise.prompt import read_row, transcripts

    for split, size in (("train", PROMPTS * options.steps), ("val", 8)):
        rows = [write_prompt(read_row(row), SCORE_RUBRIC) for row in pointwise_rows(split, size, seed=0)]
        rows = [{name: row[name] for name in ("prompt", "label", "rubric")} for row in rows]
        write_rows(folder / f"{split}.parquet", rows)
    lenient = [read_row(row) for row in pointwise_rows("train", 1600, 1, leniency=0.65)]
    save_tiny_model(folder / "tiny", seed=0)
    warm_start(folder / "tiny", [transcripts(row, SCORE_RUBRIC)[0] for row in lenient], folder / "model")
    return {"answers a step": PROMPTS * GROUP, "longest answer, tokens": ANSWER}


def run_ours(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    actor = "actor_rollout_ref.actor"
    settings = {
        "data.train_batch_size": PROMPTS,
        "data.max_response_length": ANSWER,
        f"{actor}.ppo_mini_batch_size": PROMPTS // UPDATES,
        f"{actor}.optim.lr": LR,
        "actor_rollout_ref.model.enable_gradient_checkpointing": options.gradient_checkpointing,
        f"{actor}.fsdp_config.use_torch_compile": False,
        "trainer.total_epochs": 1,
        f"{actor}.ppo_max_token_len_per_gpu": options.max_tokens,
        "trainer.test_freq": 1000,  # at the start and the end alone; the end, 8 answers, is timed with the last step
        "trainer.save_freq": 0,
    }
    given = {"MODEL_PATH": folder / "model", "OUTPUT": output}
    given |= {"TRAIN_FILES": folder / "train.parquet", "VAL_FILES": folder / "val.parquet"}
    given |= {"ROLLOUT": "hf", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment = [f"{name}={value}" for name, value in given.items()]
    script = REPO / "generative_pointwise" / "run_pointwise.sh"
    return ["env", *environment, "bash", str(script), *(f"{name}={value}" for name, value in settings.items())]


def run_trl(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    return trl_command(__file__, folder, output, options)


def reward(prompts: list, completions: list, label: list[int], **_) -> list[float]:
    """Pay each answer as ours are paid."""
    from generative_pointwise.reward import compute_score

    return [compute_score("", answer[-1]["content"], truth)["score"] for answer, truth in zip(completions, label)]


def train_with_trl(options: argparse.Namespace) -> None:
    """Run TRL's trainer; its steps are printed and written as ours are: one for each sampling, not for each update."""
    sys.path.insert(0, str(REPO))
    import pyarrow.parquet as pq
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl_side import settings, step_report

    rows = Dataset.from_list(pq.read_table(options.folder / "train.parquet").to_pylist())
    own = settings(options)
    del own["train_sampling_strategy"], own["max_length"]
    config = GRPOConfig(
        **own
        | {
            "learning_rate": LR,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "per_device_train_batch_size": PROMPTS * GROUP // UPDATES,
            "steps_per_generation": UPDATES,
            "num_generations": GROUP,
            "max_completion_length": ANSWER,
            "temperature": 1.0,
            "beta": 0.0,
            "logging_steps": UPDATES,
            "model_init_kwargs": {"dtype": "float32"},
        }
    )
    GRPOTrainer(
        model=str(options.folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(options.folder / "model"),
        callbacks=[step_report(options.output, "reward", UPDATES)],
    ).train()


def main() -> None:
    parser = make_parser("Measure a judge's GRPO against TRL's GRPOTrainer on a CPU.", ["judge"], "not used")
    parser.set_defaults(steps=20)
    options = parser.parse_args()
    if options.data:
        parser.error("--data: the judge and its rows are the demo's")
    if options.role:
        return train_with_trl(options)
    sides = {OURS: (run_ours, "WorkerDict"), TRL: (run_trl, "--role trl")}
    count = [PROMPTS * GROUP] * options.steps
    compare(prepare, sides, "answers", lambda history: count, options, "reward")


if __name__ == "__main__":
    main()
