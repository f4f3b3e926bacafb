"""Scoring with `bradley_terry/score.py` measured against a plain transformers pipeline: rows per second, same scores.

    python tests/benchmarks/bt_scoring.py --model outputs/checkpoint --data pairs.parquet

Ours is the command as a user starts it, with Ray where it starts it, and as many workers as it takes by default. The
other side is a script with `pipeline("text-classification")` in a loop, one text at a time on all threads of the CPU.
Both have two rates: with everything from the start of Python to its end, and of scoring alone, which is what counts
where rows are many: ours from the first finished part on, the pipeline's without loading the model. Both score the same
rows: the first usable ones that the model can read.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TIMEOUT, WATCH_SECONDS = 3600, 0.02  # for the command; between two looks at its output
SIDES = ("chosen", "rejected")
WHOLE, ALONE = "start to end", "scoring alone"


def usable_rows(options: argparse.Namespace) -> list[dict]:
    """Return the first rows that hold two responses short enough for the model, as both sides read them."""
    from bradley_terry.reward_model import encode, load_reading
    from bradley_terry.score import read_texts, shape_of
    from common.conversation import BadRow

    reading = load_reading(options.model)
    rows = []
    for file in options.data:
        for row in pq.read_table(file).to_pylist():
            try:
                chosen, rejected = read_texts(row, shape_of(file))
                tokens = sum(len(encode(text, reading, "text")) for text in (chosen, rejected))
            except BadRow:
                continue
            rows.append({"chosen": chosen, "rejected": rejected, "tokens": tokens})
    return rows[: options.rows]


def rows_of(part: Path) -> int:
    return pq.read_metadata(part).num_rows


def run_ours(file: Path, folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], np.ndarray]:
    """Run the command and watch its parts appear."""
    output, seen = folder / "scored", {}
    arguments = ["--model", os.path.abspath(options.model), "--input", str(file), "--output", str(output)]
    started = time.perf_counter()
    with open(folder / "log", "w") as log:
        command = [sys.executable, "-m", "bradley_terry.score", *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and time.perf_counter() - started < TIMEOUT:
            for part in set(output.glob("part-*.parquet")) - set(seen):
                seen[part] = time.perf_counter()
            time.sleep(WATCH_SECONDS)
        wall = time.perf_counter() - started
    finally:
        process.terminate()  # nothing, where it has ended
    if process.wait(60):
        raise SystemExit(f"{(folder / 'log').read_text()[-4000:]}\nscore.py ended with status {process.returncode}")
    parts = sorted(output.glob("part-*.parquet"))
    table = pa.concat_tables(pq.read_table(part) for part in parts)
    rewards = np.stack([table[f"{side}_reward"].to_numpy() for side in SIDES], axis=1)
    first, last = min(seen, key=seen.get), max(seen.values())
    if last == seen[first]:
        raise SystemExit("all parts came at once: give more --rows")
    return {WHOLE: table.num_rows / wall, ALONE: (table.num_rows - rows_of(first)) / (last - seen[first])}, rewards


def run_pipeline(rows: list[dict], options: argparse.Namespace) -> tuple[dict[str, float], np.ndarray]:
    """Run the other side in a process of its own, which starts from nothing as a script does."""
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(1) as process:
        seconds, rewards = process.apply(score_by_pipeline, (rows, options.model))
    return {WHOLE: len(rows) / (time.perf_counter() - started), ALONE: len(rows) / seconds}, rewards


def score_by_pipeline(rows: list[dict], model: str) -> tuple[float, np.ndarray]:
    """Score one text at a time, as transformers' documentation does; return the seconds of that, and the rewards."""
    import torch
    from transformers import pipeline

    scorer = pipeline("text-classification", model=model, dtype=torch.float32, device="cpu")
    template = scorer.tokenizer.apply_chat_template

    def reward(conversation) -> float:
        plain = isinstance(conversation, str)
        text = conversation if plain else template(conversation, tokenize=False)
        return scorer(text, function_to_apply="none", add_special_tokens=plain)[0]["score"]

    reward(rows[0]["chosen"])
    started = time.perf_counter()
    rewards = np.array([[reward(row[side]) for side in SIDES] for row in rows])
    return time.perf_counter() - started, rewards


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure score.py against a transformers pipeline.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data", required=True, nargs="+", help="Parquet files of pairs, of any kind that holds two")
    parser.add_argument("--rows", type=int, help="at most")
    options = parser.parse_args()
    rows = usable_rows(options)
    print(f"{len(rows)} rows, {np.mean([row['tokens'] for row in rows]):.0f} tokens in the two texts of one, mean")
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        ours, theirs = partial(run_ours, file, Path(temporary)), partial(run_pipeline, rows)
        for name, run in {"score.py": ours, "pipeline": theirs}.items():
            print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
            found[name] = run(options)
            print(name, *(f"{what} {rate:.2f} rows/s" for what, rate in found[name][0].items()), sep=", ", flush=True)
    (ours, our_rewards), (theirs, their_rewards) = found.values()
    for what in (WHOLE, ALONE):
        print(f"{what}: {ours[what] / theirs[what]:.2f} times the pipeline")
    print(f"largest difference of a reward: {np.abs(our_rewards - their_rewards).max():.1e}")


if __name__ == "__main__":
    main()
