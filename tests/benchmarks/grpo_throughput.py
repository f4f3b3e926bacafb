"""A judge's GRPO measured against TRL's GRPOTrainer: answers per second and memory, from sampling to the last update.

    python tests/benchmarks/grpo_throughput.py --profiles judge --trl-python /path/to/venv/bin/python
    python tests/benchmarks/grpo_throughput.py --profiles real --data scores.parquet --steps 3 --skip 1 --repeats 1 \
        --max-tokens 4608 --trl-python /path/to/venv/bin/python

`judge` is the demo's judge, with 32 prompts of 120 tokens a step, two updates. `real` is SmolLM2-135M-Instruct
(`tests/real_model.py`) on your labelled rows, with 4 prompts of at most 512 tokens a step, one update.

Both sides run as a user would start them, in turns: ours through Ray and verl, without an inference server; TRL in an
environment of its own, where this package's rewards can be imported. Equal: the judge to start from (`judge`: the
demo's tiny model, taught by transcripts), prompts, 8 answers to each, updates a step, temperature, the longest answer,
the reward, no distance to a reference, fp32 on one CPU thread, AdamW's numbers, a constant rate after 5 updates. How it
is timed: measure.py.

Not equal: the micro-batch (ours in tokens, TRL's 128 answers of `judge`, 8 of `real`, whose activations would not fit
otherwise); the answers drawn, since each side has its own generator; the order of the prompts; TRL's first update has a
rate of 0. And how answers are computed, which is what is measured: TRL pads, and all answers wait for the longest; here
a group's prompt is computed once, in sampling and in training, and an answer that has ended leaves the batch.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from measure import OURS, REPO, SEED, compare, make_parser, trl_command

GROUP = 8
# at_once: answers in TRL's micro-batch. The demo's judge writes some 30 tokens; SmolLM2 as many as it may
SHAPES = {
    "judge": {"prompts": 32, "updates": 2, "answer": 48, "at_once": 128, "lr": 1.5e-4},
    "real": {"prompts": 4, "updates": 1, "answer": 64, "at_once": 8, "lr": 1e-6},
}
LONGEST = 512  # tokens of a real prompt
TRL = "TRL"


def prepare(folder: Path, profile: str, options: argparse.Namespace) -> dict:
    """Write what both sides read: shape.json, prompts with labels, and the judge."""
    sys.path.insert(0, str(REPO / "tests"))
    from common.parquet import write_rows

    shape = SHAPES[profile]
    (folder / "shape.json").write_text(json.dumps(shape))
    write = demo_judge if profile == "judge" else real_judge
    rows_of, tokens = write(folder, shape["prompts"] * options.steps, options)
    for split, rows in rows_of.items():
        rows = [{name: row[name] for name in ("prompt", "label", "rubric")} for row in rows]
        write_rows(folder / f"{split}.parquet", rows)
    return {"answers a step": shape["prompts"] * GROUP, "longest answer, tokens": shape["answer"], **tokens}


def demo_judge(folder: Path, size: int, options: argparse.Namespace) -> tuple[dict[str, list[dict]], dict]:
    """Write the demo's warm start, and return the demo's rows."""
    from conftest import warm_start

    from common.demo.tiny_model import save_tiny_model
    from common.demo.world import SCORE_RUBRIC, pointwise_rows
    from generative_pointwise.dataset import write_prompt
    from generative_pointwise.prompt import read_row, transcripts

    lenient = [read_row(row) for row in pointwise_rows("train", 1600, 1, leniency=0.65)]
    save_tiny_model(folder / "tiny", seed=0)
    warm_start(folder / "tiny", [transcripts(row, SCORE_RUBRIC)[0] for row in lenient], folder / "model")
    rows_of = {split: pointwise_rows(split, rows, seed=0) for split, rows in (("train", size), ("val", 8))}
    return {split: [write_prompt(read_row(row), SCORE_RUBRIC) for row in rows] for split, rows in rows_of.items()}, {}


def real_judge(folder: Path, size: int, options: argparse.Namespace) -> tuple[dict[str, list[dict]], dict]:
    """Name the real model, and return rows of `--data` whose prompts are not too long, drawn at random."""
    import statistics

    import pyarrow.parquet as pq
    from real_model import real_model
    from transformers import AutoTokenizer

    from common.demo.world import SCORE_RUBRIC
    from generative_pointwise.dataset import write_prompt
    from generative_pointwise.prompt import read_row

    (folder / "model").symlink_to(real_model())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [write_prompt(read_row(row), SCORE_RUBRIC) for row in pq.read_table(options.data).to_pylist()]
    asked = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    lengths = [len(tokenizer.apply_chat_template(row["prompt"], **asked)) for row in rows]
    usable = [number for number, length in enumerate(lengths) if length <= LONGEST]
    if len(usable) < size + 2:
        raise SystemExit(f"{len(usable)} rows of at most {LONGEST} tokens are too few; lower --steps")
    chosen = random.Random(SEED).sample(usable, size + 2)
    mean = statistics.mean(lengths[number] for number in chosen[:size])
    rows = [rows[number] for number in chosen]
    return {"train": rows[:size], "val": rows[size:]}, {"mean prompt, tokens": round(mean)}


def shape_in(folder: Path) -> dict:
    return json.loads((folder / "shape.json").read_text())


def run_ours(folder: Path, output: Path, options: argparse.Namespace) -> list[str]:
    actor, shape = "actor_rollout_ref.actor", shape_in(folder)
    settings = {
        "data.train_batch_size": shape["prompts"],
        "data.max_prompt_length": LONGEST,
        "data.max_response_length": shape["answer"],
        f"{actor}.ppo_mini_batch_size": shape["prompts"] // shape["updates"],
        f"{actor}.optim.lr": shape["lr"],
        "actor_rollout_ref.model.enable_gradient_checkpointing": options.gradient_checkpointing,
        f"{actor}.fsdp_config.use_torch_compile": False,
        "trainer.total_epochs": 1,
        f"{actor}.ppo_max_token_len_per_gpu": options.max_tokens,
        "trainer.test_freq": 1000,  # at the start and the end alone; the end, some answers, is timed with the last step
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
    shape = shape_in(options.folder)
    answers = shape["prompts"] * GROUP
    own = settings(options)
    del own["train_sampling_strategy"], own["max_length"]
    config = GRPOConfig(
        **own
        | {
            "learning_rate": shape["lr"],
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "per_device_train_batch_size": shape["at_once"],
            "gradient_accumulation_steps": answers // shape["updates"] // shape["at_once"],
            "steps_per_generation": answers // shape["at_once"],
            "num_generations": GROUP,
            "max_completion_length": shape["answer"],
            "temperature": 1.0,
            "beta": 0.0,
            "logging_steps": shape["updates"],
            "model_init_kwargs": {"dtype": "float32"},
        }
    )
    GRPOTrainer(
        model=str(options.folder / "model"),
        reward_funcs=reward,
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(options.folder / "model"),
        callbacks=[step_report(options.output, "reward", shape["updates"])],
    ).train()


def main() -> None:
    parser = make_parser("Measure a judge's GRPO against TRL's GRPOTrainer on a CPU.", SHAPES, "rows, for real")
    parser.set_defaults(steps=20, profiles=["judge"])
    options = parser.parse_args()
    if options.role:
        return train_with_trl(options)
    sides = {OURS: (run_ours, "WorkerDict"), TRL: (run_trl, "--role trl")}
    if len(options.profiles) > 1:
        parser.error("--profiles: one at a time")
    if bool(options.data) != (options.profiles == ["real"]):
        parser.error("--profiles real needs --data, a Parquet file of input, output and label; judge takes none")
    count = [SHAPES[options.profiles[0]]["prompts"] * GROUP] * options.steps
    compare(prepare, sides, "answers", lambda history: count, options, "reward")


if __name__ == "__main__":
    main()
