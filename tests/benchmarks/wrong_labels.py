"""How many wrong labels does a run find? The demo's pairs, a tenth of them turned round, which only this script knows.

    python tests/benchmarks/wrong_labels.py --output wrong_labels --seed 0

Three runs of run_bt.sh with the demo's settings: on the turned pairs, then without the tenth of the pairs of which the
finished model has the lowest margins (left out by `prepare_data --without-rows`), and on right labels. Printed is how
many of the turned pairs are in that tenth, how many in the tenth by the margins in training, which cost nothing, and
the test accuracy of all three. Nobody reviews the list here, so right pairs are left out with it.
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runs import metrics_of, run

from bradley_terry.dataset import check_pair, digest_row
from common.demo.world import preference_pairs
from common.parquet import write_rows

# the settings of run_bt.sh for its demo, which it does not take if it is given data
DEMO = ("data.train_batch_size=16", "optim.lr=1e-3", "optim.lr_warmup_steps_ratio=0.16")
DEMO += ("model.enable_gradient_checkpointing=False", "engine.use_torch_compile=False")


def turn(row: dict) -> dict:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def found(rows: list[dict], margin_of, turned: set[str]) -> int:
    """Return how many turned pairs are in the lowest tenth of the rows."""
    lowest = sorted(rows, key=margin_of)[: len(rows) // 10]
    return sum(row["digest"] in turned for row in lowest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for data and runs; about 30 MB")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=1, help="of each of the three runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, seed = options.output.absolute(), options.seed

    # 1. A tenth of the labels is wrong
    right = preference_pairs("train", options.pairs, seed)
    chosen = set(random.Random(f"noise-{seed}").sample(range(options.pairs), options.pairs // 10))
    wrong = [turn(row) if number in chosen else row for number, row in enumerate(right)]
    turned = {digest_row(check_pair(wrong[number])) for number in chosen}
    files = {name: write_rows(folder / f"{name}.parquet", rows) for name, rows in (("right", right), ("wrong", wrong))}
    held_out = {
        f"{split.upper()}_FILES": str(write_rows(folder / f"{split}.parquet", preference_pairs(split, size, seed)))
        for split, size in (("val", 500), ("test", 1000))
    }
    model = str(folder / "model")
    subprocess.run([sys.executable, "-m", "common.demo.tiny_model", "--seed", str(seed), "--output", model], check=True)

    def accuracy(name: str, train_files: str, *settings: str) -> float:
        data = {"TRAIN_FILES": train_files, "MODEL_PATH": model, "SEED": str(seed), **held_out}
        run(folder / name, *DEMO, f"trainer.total_epochs={options.epochs}", *settings, timeout=3600, **data)
        (reached,) = metrics_of(folder / name, "test/accuracy").values()
        return reached

    # 2. Train on it, and look at the margins
    reached = {"with the turned pairs": accuracy("on_wrong", str(files["wrong"]), "trainer.measure_train=true")}
    rows = pq.read_table(folder / "on_wrong" / "train_rewards.parquet").to_pylist()
    trained = [row for row in rows if row["margins"]]
    print(f"turned pairs: {len(turned)} of {len(rows)}. Of them are in the lowest tenth")
    print(f"  of the finished model's margins: {found(rows, lambda row: row['final_margin'], turned)}")
    print(f"  of the margins in training:      {found(trained, lambda row: row['margins'][-1], turned)}")
    steps = sorted(row["steps"][-1] for row in trained)
    limits = [0, steps[len(steps) // 3], steps[2 * len(steps) // 3], steps[-1]]
    for start, end in zip(limits, limits[1:]):
        part = [row for row in trained if start < row["steps"][-1] <= end]
        there = sum(row["digest"] in turned for row in part)
        share = found(part, lambda row: row["margins"][-1], turned) / there
        print(f"    of steps {start + 1} to {end} alone: {share:.1%} of the {there} that are there")

    # 3. Leave the list out, and train again
    lowest = sorted(rows, key=lambda row: row["final_margin"])[: len(rows) // 10]
    listed = folder / "lowest_tenth.txt"
    listed.write_text("".join(f"{row['digest']}  {row['source']}\n" for row in lowest))
    prepare = [sys.executable, "-m", "bradley_terry.prepare_data", "--source", "pairs", "--path", str(files["wrong"])]
    subprocess.run([*prepare, "--without-rows", str(listed), "--output", str(folder / "rest")], check=True)
    rest = ",".join(str(folder / "rest" / f"{split}.parquet") for split in ("train", "val", "test"))
    reached["without the lowest tenth"] = accuracy("on_rest", rest)
    reached["with right labels"] = accuracy("on_right", str(files["right"]))
    for name, value in reached.items():
        print(f"test accuracy {name}: {value:.3f}")


if __name__ == "__main__":
    main()
