"""Part of gpu_check.py: Bradley-Terry beside TRL's RewardTrainer, on one GPU, with the shape of 0.6B.

Equal: pairs, which have lengths like those of hh-rlhf (prompts of about 120 tokens, answers of about 55, with long
tails), 64 of them a step, fp32 weights computed in bf16. Ours has the script's settings; such a model needs no
checkpointing on a card of 80 GB. TRL is run with its defaults, 8 pairs at a time and checkpointing; with all 64 at
once; and without checkpointing. Both sides' steps are timed after three.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PAIRS, STEPS, SKIPPED = 64, 10, 3
MEDIANS, LONGEST = (120, 55, 55), 1024  # tokens of prompt, chosen, rejected; without a GPU, a tenth
SIDES = ((8, 1), (64, 1), (8, 0))  # pairs that TRL computes at a time; whether by checkpointing


def main() -> None:
    from shared import ON_GPU, TINY, note, shape

    model, steps = ("0.6B", STEPS) if ON_GPU else (TINY, 2)
    pairs = draw_pairs(PAIRS * (steps + SKIPPED), 1.0 if ON_GPU else 0.1)
    ours = time_ours(model, pairs)
    note(side="ours", **ours)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_for_trl(folder, shape(model), pairs)
        for size, again in SIDES:
            named = f"TRL, {size} at a time{', checkpointing' * again}"
            command = [sys.argv[2], __file__, "--folder", folder, "--size", size, "--checkpointing", again]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=150)
            if done.returncode:
                note(side=named, ok=False, said=done.stderr[-600:])
                continue
            theirs = json.loads(done.stdout.splitlines()[-1])
            ratio = ours["pairs/s"] / theirs["pairs/s"]
            note(side=named, **theirs, **{"ours is faster by": ratio})


def draw_pairs(count: int, scale: float) -> list[list[np.ndarray]]:
    """Return prompt, chosen and rejected of each pair, as random ids."""
    draw = np.random.default_rng(0)

    def ids(median: float) -> np.ndarray:
        length = int(np.clip(scale * median * np.exp(0.8 * draw.standard_normal()), 4, LONGEST))
        return draw.integers(5, 2000, length).astype(np.int32)

    return [[ids(median) for median in MEDIANS] for _ in range(count)]


def time_ours(model: str, pairs: list) -> dict:
    import torch
    from shared import ON_GPU, join_alone, step_of, with_random_weights

    from bradley_terry.dataset import Pair, collate
    from common.training import make_batch

    join_alone()
    step, config = step_of("bradley_terry", model, 1024, checkpointing=False)
    engine = with_random_weights(step.engine_class)(**step.settings)
    engine.initialize()
    rows, marks = [Pair(*pair, 0.0, "") for pair in pairs], []
    with engine.train_mode():
        for start in range(0, len(rows), PAIRS):
            batch = make_batch(rows[start : start + PAIRS], collate, config.data.max_tokens_per_gpu)
            engine.train_batch(batch, step.loss)
            if ON_GPU:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
    return figures(marks, torch)


def figures(marks: list[float], torch) -> dict:
    steps = len(marks) - SKIPPED
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {"pairs/s": PAIRS * steps / (marks[-1] - marks[SKIPPED - 1]), "peak GiB": peak}


def write_for_trl(folder: Path, shape: Path, pairs: list) -> None:
    """Write the same pairs as token ids, and a model of the same shape."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from common.parquet import write_rows

    rows = []
    for prompt, chosen, rejected in pairs:
        sides = {"chosen_ids": chosen, "rejected_ids": rejected}
        rows.append({name: np.concatenate([prompt, answer]).tolist() for name, answer in sides.items()})
    write_rows(folder / "rows.parquet", rows)
    config = AutoConfig.from_pretrained(shape, num_labels=1, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(shape).save_pretrained(folder / "model")


def time_trl(folder: Path, size: int, checkpointing: bool) -> None:
    """Run TRL's trainer, in its own environment; print its figures."""
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    marks = []

    class Watch(TrainerCallback):
        def on_step_end(self, *arguments, **named):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    config = RewardConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=PAIRS // size,
        gradient_checkpointing=checkpointing,
        num_train_epochs=1,
        max_length=None,
        save_strategy="no",
        report_to="none",
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    rows = Dataset.from_list(pq.read_table(folder / "rows.parquet").to_pylist())
    RewardTrainer(str(folder / "model"), config, train_dataset=rows, callbacks=[Watch()]).train()
    print(json.dumps(figures(marks, torch)))


if __name__ == "__main__":
    if "--folder" not in sys.argv:
        main()
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--folder", type=Path)
        parser.add_argument("--size", type=int)
        parser.add_argument("--checkpointing", type=int)
        options = parser.parse_args()
        time_trl(options.folder, options.size, bool(options.checkpointing))
