"""What a benchmark is: how its questions are read, what each of them earns, and how that becomes its official figure.

Every figure here has one form. A question earns a credit, usually 1 or 0. A section's score is the mean credit of its
questions, and the benchmark's score is the mean over its sections. Some sections have several kinds of credit: then the
score is the weighted sum of the mean of each. So one function gives all scores, and one resampling all intervals.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.benchmarks.questions import Question

Credits = dict[str, float]  # what one question earns, by kind; a kind that it has no part in is absent
Votes = dict[tuple[int, int], tuple[int | None, int | None]]
RIGHT = {"right": 1.0}  # the usual weights
RESAMPLES = 2000
LEVEL = 0.95  # of an interval


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's files and rules.

    read: returns the questions at a path, or by default those of the public home.
    credits: (questions, scores, share_ties) -> what each question earns. A score is a number, for win rates a
        `Fraction`; NaN if there is none, and such a question earns nothing. share_ties: k equal best answers share the
        credit, even if the rule says that a tie is wrong.
    vote_credits: (questions, votes) -> the same for a judge that compares two answers at a time; None if answers are
        ranked by how often they win.
    official_missing: "scores" or "votes", if the official code has a rule for a judge that gave none. Then the function
        also takes official_missing=True, and a question earns what that rule gives it.
    subsets: all that there are. section_of: the section of a subset. official: the sections whose mean is the score.
    weights: of the kinds of credit, for a section that has several.
    sizes: questions in a subset, where they are known; total: in all of them. notes: how the official figures differ.
    unit_of: what is resampled as one; by default a question.
    """

    name: str
    title: str
    read: Callable[[str | Path | None], list[Question]]
    credits: Callable[..., list[Credits]]
    vote_credits: Callable[..., list[Credits]] | None
    subsets: tuple[str, ...]
    section_of: Callable[[str], str]
    official: tuple[str, ...]
    notes: str
    official_missing: tuple[str, ...] = ()
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    total: int | None = None
    unit_of: Callable[[Question], str] = lambda question: question.id

    def weights_of(self, section: str) -> dict[str, float]:
        return self.weights.get(section, RIGHT)

    def missing(self, questions: Sequence[Question]) -> list[str]:
        """Return which official subsets have no question, or another number of them than the authors publish."""
        counts = dict.fromkeys(self.subsets, 0)
        for question in questions:
            counts[question.subset] += 1
        wanted = {subset: self.sizes.get(subset) for subset in self.subsets if self.section_of(subset) in self.official}
        missing = [
            subset if not counts[subset] else f"{subset} ({counts[subset]} of {size} questions)"
            for subset, size in wanted.items()
            if not counts[subset] or counts[subset] != (size or counts[subset])
        ]
        if not missing and self.total and len(questions) != self.total:
            missing = [f"{len(questions)} of {self.total} questions"]
        return missing


def beats(first: float, second: float, tie: float = 0.0) -> float:
    """Return the credit for `first` being the right one of two scores; NaN on either side earns nothing."""
    return float(first > second) + tie * (first == second)


def best_of(scores: Sequence[float]) -> float:
    """Return the credit of a best-of-N question whose first answer is right: 1/k if it is among k equal best, else 0.

    Without a score for each answer, NaN, it earns nothing.
    """
    if any(map(math.isnan, scores)) or scores[0] < max(scores):
        return 0.0
    return 1 / sum(score == scores[0] for score in scores)


def won(orders: tuple[int | None, int | None], official_missing: bool = False) -> float:
    """Return the credit of a pair that was shown in both orders: 1 if the sum is above 0.

    Args:
        orders: +1 if the right answer was preferred, -1 if the wrong one, 0 for a tie, None without a verdict.
        official_missing: no verdict counts as a tie, as in JudgeBench's code; else the pair earns nothing.
    """
    if None in orders and not official_missing:
        return 0.0
    return float(sum(order or 0 for order in orders) > 0)


@dataclass(frozen=True)
class Unit:
    """What is resampled as one, with what it earns: a question, or several that are judged together."""

    subset: str
    credits: Credits


def units_of(benchmark: Benchmark, questions: Sequence[Question], credits: Sequence[Credits]) -> list[Unit]:
    """Return what each unit earns, in the order of the questions."""
    units: dict[str, Unit] = {}
    for question, earned in zip(questions, credits, strict=True):
        unit = units.setdefault(benchmark.unit_of(question), Unit(question.subset, {}))
        unit.credits.update(earned)
    return [*units.values()]


def scores_by(
    benchmark: Benchmark,
    units: Sequence[Unit],
    part_of: Callable[[str], str] | None = None,
    draws: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return the score of each section that has questions, or of other parts that lie within a section each.

    Args:
        part_of: the part that a subset belongs to; None: its section.
        draws: of each subset, how often each of its units counts: (resamples, units). None: each counts once.

    Returns:
        By part: (resamples,); of a kind of credit that no counted unit has a share in, the mean is 0, as officially.
    """
    by_subset: dict[str, list[Unit]] = {}
    for unit in units:
        by_subset.setdefault(unit.subset, []).append(unit)
    sums, counts, weights = {}, {}, {}
    for subset, inside in by_subset.items():
        kinds = benchmark.weights_of(benchmark.section_of(subset))
        part = (part_of or benchmark.section_of)(subset)
        values = np.array([[unit.credits.get(kind, np.nan) for kind in kinds] for unit in inside])
        times = np.ones((1, len(inside))) if draws is None else draws[subset]
        sums[part] = sums.get(part, 0) + times @ np.nan_to_num(values)
        counts[part] = counts.get(part, 0) + times @ ~np.isnan(values)
        weights[part] = [*kinds.values()]
    return {part: sums[part] / np.maximum(counts[part], 1) @ weights[part] for part in sums}


def overall(benchmark: Benchmark, sections: dict) -> np.ndarray:
    """Return the mean over the official sections that are there: the official score, if nothing is missing."""
    return np.mean([sections[name] for name in benchmark.official if name in sections], axis=0)


def resampled(benchmark: Benchmark, models: Sequence[Sequence[Unit]], resamples: int, seed: int) -> list[np.ndarray]:
    """Return the overall scores of models on drawn units: as many as there are, with replacement, in each subset.

    Every model is measured on the same draws, so `models` hold the same units in the same order (a paired bootstrap;
    Efron 1979, for benchmarks Koehn 2004).

    Returns:
        of each model: (resamples,)
    """
    chance, sizes = np.random.default_rng(seed), Counter(unit.subset for unit in models[0])
    draws = {subset: chance.multinomial(size, [1 / size] * size, size=resamples) for subset, size in sizes.items()}
    return [overall(benchmark, scores_by(benchmark, units, draws=draws)) for units in models]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bounds between which the middle 95% of resampled values lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def kind_scores(benchmark: Benchmark, units: Sequence[Unit]) -> dict[str, dict[str, float]]:
    """Return, of each section with several kinds of credit, the mean of each kind; if all have them, also "mean"."""
    earned: dict[str, dict[str, list[float]]] = {}
    for unit in units:
        section = benchmark.section_of(unit.subset)
        if section in benchmark.weights:
            for kind, value in unit.credits.items():
                earned.setdefault(section, {}).setdefault(kind, []).append(value)
    kinds = {
        section: {kind: float(np.mean(of_kind[kind])) for kind in benchmark.weights[section] if kind in of_kind}
        for section, of_kind in earned.items()
    }
    if len(kinds) > 1:
        names = next(iter(kinds.values()))
        kinds["mean"] = {kind: float(np.mean([means[kind] for means in kinds.values()])) for kind in names}
    return kinds
