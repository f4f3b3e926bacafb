"""Scoring with `bradley_terry/score.py` measured against a plain transformers pipeline: rows per second, same scores.

    python tests/benchmarks/bt_scoring.py --model outputs/checkpoint --data pairs.parquet --rows 2000

Ours is the whole command as a user starts it, Ray included, with as many workers as it takes by default. It has two
rates: of the whole command, and from the first finished part on, which is what counts where rows are many. The other
side is `pipeline("text-classification")` in a loop, one text at a time on all threads of the CPU, timed without loading
the model. Both score the same rows: the first usable ones that the model can read.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[2]
TIMEOUT, WATCH_SECONDS = 3600, 0.02  # for the command; between two looks at its output
SIDES = ("chosen", "rejected")


def usable_rows(options: argparse.Namespace) -> list[dict]:
    """Return the first rows that hold pairs short enough for the model, as both sides read them."""
    sys.path.insert(0, str(REPO / "bradley_terry"))
    from common.conversation import BadRow
    from common.reward_model import encode, load_reward_tokenizer

    from dataset import load_pairs

    tokenizer, longest = load_reward_tokenizer(options.model)
    rows = []
    for row in load_pairs(options.data, "drop")[0]:
        try:
            lengths = [len(encode(row[side], tokenizer, longest, side)) for side in SIDES]
        except BadRow:
            continue
        rows.append({side: row[side] for side in SIDES} | {"tokens": sum(lengths)})
        if len(rows) == options.rows:
            break
    return rows


def rows_of(part: Path) -> int:
    return pq.read_metadata(part).num_rows


def run_ours(file: Path, folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], np.ndarray]:
    """Run the command and watch its parts appear."""
    output, seen = folder / "scored", {}
    arguments = ["--model", os.path.abspath(options.model), "--input", str(file), "--output", str(output)]
    started = time.perf_counter()
    with open(folder / "log", "w") as log:
        command = [sys.executable, "score.py", *arguments]
        process = subprocess.Popen(command, cwd=REPO / "bradley_terry", stdout=log, stderr=subprocess.STDOUT)
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
    rates = {"ours, whole command": table.num_rows / wall}
    first, last = min(seen, key=seen.get), max(seen.values())
    if last > seen[first]:
        rates["ours, from the first part on"] = (table.num_rows - rows_of(first)) / (last - seen[first])
    return rates, rewards


def run_pipeline(rows: list[dict], options: argparse.Namespace) -> tuple[dict[str, float], np.ndarray]:
    """Score one text at a time, as transformers' documentation does."""
    import torch
    from transformers import pipeline

    scorer = pipeline("text-classification", model=options.model, dtype=torch.float32, device="cpu")
    template = scorer.tokenizer.apply_chat_template

    def reward(conversation) -> float:
        plain = isinstance(conversation, str)
        text = conversation if plain else template(conversation, tokenize=False)
        return scorer(text, function_to_apply="none", add_special_tokens=plain)[0]["score"]

    reward(rows[0]["chosen"])
    started = time.perf_counter()
    rewards = np.array([[reward(row[side]) for side in SIDES] for row in rows])
    return {"pipeline, text by text": len(rows) / (time.perf_counter() - started)}, rewards


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure score.py against a transformers pipeline.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data", required=True, help="Parquet of preference pairs")
    parser.add_argument("--rows", type=int, default=2000, help="at most")
    options = parser.parse_args()
    rows = usable_rows(options)
    print(f"{len(rows)} rows, {np.mean([row['tokens'] for row in rows]):.0f} tokens in the two texts of one, mean")
    rates, rewards = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        for side in (lambda: run_ours(file, Path(temporary), options), lambda: run_pipeline(rows, options)):
            print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
            found, scores = side()
            rates |= found
            rewards.append(scores)
            print(*(f"{name}: {rate:.2f} rows/s\n" for name, rate in found.items()), sep="", end="", flush=True)
    theirs = rates.pop("pipeline, text by text")
    for name, rate in rates.items():
        print(f"{name}: {rate / theirs:.2f} times the pipeline's")
    print(f"largest difference of a reward: {np.abs(rewards[0] - rewards[1]).max():.1e}")


if __name__ == "__main__":
    main()
