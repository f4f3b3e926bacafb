"""Is one model better than another on a benchmark, or is that noise?

    python -m common.benchmarks.compare base/benchmarks/rm_bench.parquet mine/benchmarks/rm_bench.parquet

Both files hold what a benchmark command wrote of the same questions. The difference of the two scores is shown with an
interval of 95%: questions are drawn anew, with replacement and as many as there are, within each subset. Both models
are measured on the same draw, so what makes a question easy or hard for both plays no part. The two rows of a prompt of
RewardBench 2's Ties are drawn together. The interval says nothing about another training run: that takes several seeds.
"""

import argparse
import sys

import numpy as np

from common.benchmarks import BENCHMARKS
from common.benchmarks.benchmark import (
    LEVEL,
    RESAMPLES,
    Benchmark,
    Unit,
    interval,
    overall,
    resampled,
    scores_by,
    units_of,
)
from common.benchmarks.questions import Question
from common.conversation import DataError
from common.parquet import read_rows

COLUMNS = ("benchmark", "id", "subset", "question", "right", "score")


def read_result(path: str) -> tuple[Benchmark, dict[str, dict]]:
    """Return a result's benchmark and its rows by their questions' ids; raise `DataError` if it is none."""
    rows, _ = read_rows(path, COLUMNS, optional=lambda names: tuple(names))
    names = {row["benchmark"] for row in rows}
    if len(names) > 1 or not names <= {*BENCHMARKS}:
        raise DataError(f"{path}: expected the rows of one benchmark of {', '.join(BENCHMARKS)}; found {names}")
    return BENCHMARKS[names.pop()], {row["id"]: row for row in rows}


def check_same_questions(first: dict[str, dict], second: dict[str, dict]) -> None:
    """Raise `DataError` unless both results are of the same questions, with the same answers."""
    alone = [f"{len(one.keys() - other.keys())} only in the {place}" for one, other, place in (
        (first, second, "first"), (second, first, "second")) if one.keys() - other.keys()]  # fmt: skip
    changed = [name for name in first.keys() & second.keys() if first[name]["question"] != second[name]["question"]]
    if changed:
        alone.append(f"{len(changed)} with other prompts or answers, such as {min(changed)}")
    if alone:
        raise DataError(f"the two results are not of the same questions: {'; '.join(alone)}. Measure both on one set.")


def units_in(benchmark: Benchmark, rows: list[dict]) -> list[Unit]:
    """Return what each unit earned by the model's own score."""
    questions = [Question(row["id"], row["subset"], [], [], row["right"]) for row in rows]
    credits = [{part["kind"]: part["credit"] for part in row["score"]} for row in rows]
    return units_of(benchmark, questions, credits)


def lacks_an_answer(row: dict) -> bool:
    """Return whether a question's row lacks the scores, or a verdict of one of its comparisons."""
    if "votes" in row:
        return any(None in (vote["as_given"], vote["swapped"]) for vote in row["votes"])
    return row.get("scores") is None


def paired_difference(
    benchmark: Benchmark, first: list[Unit], second: list[Unit], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Return how much better the second model is than the first one, on the same units in the same order.

    Returns:
        first, second: the scores, over the official sections that are there. difference: second - first. low, high:
        the bounds of its interval, percentiles of the resampled differences. better: the share of resamples in which
        the second one is better, a tie counting one half.
    """
    scores = [float(overall(benchmark, scores_by(benchmark, units))[0]) for units in (first, second)]
    drawn = resampled(benchmark, (first, second), resamples, seed)
    differences = drawn[1] - drawn[0]
    low, high = interval(differences)
    better = np.mean(differences > 0) + np.mean(differences == 0) / 2
    named = {"first": scores[0], "second": scores[1], "difference": scores[1] - scores[0]}
    return named | {"low": low, "high": high, "better": float(better)}


def main() -> None:
    parser = argparse.ArgumentParser(description="The difference of two results on a benchmark, with its interval.")
    parser.add_argument("first", help="NAME.parquet that a benchmark command wrote")
    parser.add_argument("second", help="another model's, of the same questions")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.resamples < 100:
        raise DataError("--resamples is at least 100, or the bounds say nothing")
    (benchmark, first), (other, second) = read_result(options.first), read_result(options.second)
    if benchmark is not other:
        raise DataError(f"{options.first} is of {benchmark.title}, {options.second} of {other.title}")
    check_same_questions(first, second)
    units = [units_in(benchmark, [rows[name] for name in first]) for rows in (first, second)]
    official = [
        question for question in first.values() if benchmark.section_of(question["subset"]) in benchmark.official
    ]
    if not official:
        raise DataError(f"{options.first}: no question of the sections that make the score: {benchmark.official}")
    found = paired_difference(benchmark, *units, options.resamples, options.seed)
    missing = benchmark.missing([Question(row["id"], row["subset"], [], []) for row in first.values()])
    print(f"{benchmark.title}: {found['first']:.4f} -> {found['second']:.4f}, over {len(official)} questions")
    for place, rows in (("first", first), ("second", second)):
        if lost := sum(lacks_an_answer(rows[question["id"]]) for question in official):
            print(f"the {place} one gave no score or no verdict in {lost} of these; what is missing earns nothing")
    if missing:
        print(f"not the whole benchmark; {len(missing)} subsets are missing or not whole, such as {missing[0]}")
    bounds = f"{found['low']:+.4f} to {found['high']:+.4f}"
    print(f"difference {found['difference']:+.4f}, {LEVEL:.0%} interval {bounds}, seed {options.seed}")
    print(f"the second one is better in {found['better']:.1%} of {options.resamples} resamples")
    if found["low"] <= 0 <= found["high"]:
        print("0 lies in the interval: these questions do not tell the two apart")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"compare.py: {error}")
