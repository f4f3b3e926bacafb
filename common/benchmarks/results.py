"""What a model reached on a benchmark: its figures beside those of models that read nothing, printed and written.

Three such models stand beside every score, measured by the same rule: "longer", which scores an answer by its number of
characters; "constant", which gives all answers one score; and "random", the mean over `DRAWS` seeded draws of normal
scores. A benchmark of which some subsets are missing has no score: the mean of what is there has another name.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np

from common.benchmarks.benchmark import (
    RESAMPLES,
    Benchmark,
    Credits,
    Votes,
    interval,
    kind_scores,
    overall,
    resampled,
    scores_by,
    units_of,
)
from common.benchmarks.questions import Question
from common.card import extend_model_card
from common.files import write_text
from common.parquet import write_rows
from common.report import Histogram, draw, format_value

DRAWS = 20
MOST_LINES = 20  # of a printed table; more subsets stand in the file alone
BASELINES = ("longer", "constant", "random")


@dataclass
class Answered:
    """What a model said on the questions of a benchmark.

    columns: of each figure's name, the questions' credits by it. The first one is the model's score.
    counts: of each count's name, which questions count.
    kept: what is written of each question beside its credits, such as its scores.
    said: what else is known of the answers, such as how many had no verdict, or in what precision they were scored.
    """

    benchmark: Benchmark
    questions: list[Question]
    columns: dict[str, list[Credits]]
    counts: dict[str, list[bool]]
    kept: list[dict]
    said: dict[str, float | str] = field(default_factory=dict)


def answer_by_scores(benchmark: Benchmark, questions: list[Question], scores: list[list[float]]) -> Answered:
    """Return what a model reached that scores single answers; NaN where it gives none, which earns nothing."""
    counts = {
        "ties": [has_tie(question, given) for question, given in zip(questions, scores)],
        "unscored": [any(map(math.isnan, given)) for given in scores],
    }
    kept = [{"scores": None if lost else [*map(float, given)]} for given, lost in zip(scores, counts["unscored"])]
    return Answered(benchmark, questions, {"score": benchmark.credits(questions, scores)}, counts, kept)


def answer_by_ratings(benchmark: Benchmark, questions: list[Question], ratings: list[list[float]]) -> Answered:
    """Return what a judge reached that rates single answers; NaN where it gave no rating.

    Up to three figures: "score", in which a question with a missing rating earns nothing; "official", in which it earns
    what the official code gives it, if that has a rule for missing ratings; "ties shared", like "score", but k equal
    best answers share the credit. A judge of few different ratings has many ties.
    """
    answered = answer_by_scores(benchmark, questions, ratings)
    if "scores" in benchmark.official_missing:
        answered.columns["official"] = benchmark.credits(questions, ratings, official_missing=True)
    answered.columns["ties shared"] = benchmark.credits(questions, ratings, share_ties=True)
    return answered


def answer_by_votes(benchmark: Benchmark, questions: list[Question], votes: list[Votes]) -> Answered:
    """Return what a judge reached that compares two answers, in both orders, each right one with each wrong one.

    One figure or two: "score", in which a pair that lacks a verdict earns nothing, and "official", in which it earns
    what the official code gives it, if that has a rule for missing verdicts.
    """
    columns = {"score": benchmark.vote_credits(questions, votes)}
    if "votes" in benchmark.official_missing:
        columns["official"] = benchmark.vote_credits(questions, votes, official_missing=True)
    counts = {"unanswered": [any(None in orders for orders in given.values()) for given in votes]}
    kept = [
        {"votes": [{"right": i, "wrong": j, "as_given": a, "swapped": b} for (i, j), (a, b) in given.items()]}
        for given in votes
    ]
    return Answered(benchmark, questions, columns, counts, kept)


def has_tie(question: Question, scores: Sequence[float]) -> bool:
    """Return whether a right answer and a wrong one have the same score."""
    return any(right == wrong for right, wrong in product(scores[: question.right], scores[question.right :]))


def baseline_scores(questions: Sequence[Question]) -> dict[str, list[list[list[float]]]]:
    """Return, of each model that reads nothing, one or several scorings of all answers."""
    chance = np.random.default_rng(0)
    return {
        "longer": [[[float(len(answer)) for answer in question.answers] for question in questions]],
        "constant": [[[0.0] * len(question.answers) for question in questions]],
        "random": [
            [chance.standard_normal(len(question.answers)).tolist() for question in questions] for _ in range(DRAWS)
        ],
    }


def measure(answered: Answered) -> dict:
    """Return the figures of a benchmark, as they are written.

    Returns:
        score: the official figure, None if something is `missing`. interval: of 95%, of the score (or the mean that
        stands for it) on very many such questions, by drawing anew within each subset; None if nothing varies. parts: a
        line for the mean over sections, for each section and each subset: its name, how many questions, what the model
        and the baselines reached, the counts. kinds: of each section with several kinds of credit, the model's mean of
        each. answers: what else is known of them.
    """
    benchmark, questions = answered.benchmark, answered.questions
    scorings = {name: [credits] for name, credits in answered.columns.items()}
    for name, draws in baseline_scores(questions).items():
        scorings[name] = [benchmark.credits(questions, scores) for scores in draws]
    units = {name: [units_of(benchmark, questions, by) for by in draws] for name, draws in scorings.items()}

    sections = {name: mean_of([scores_by(benchmark, draw) for draw in draws]) for name, draws in units.items()}
    subsets = {name: mean_of([scores_by(benchmark, draw, str) for draw in draws]) for name, draws in units.items()}
    first = next(iter(answered.columns))
    missing = benchmark.missing(questions)
    official = [name for name in benchmark.official if name in sections[first]]
    lines, low, high = {}, 0.0, 0.0
    if official:
        low, high = interval(resampled(benchmark, units[first], RESAMPLES, seed=0)[0])
        whole = f"mean of {len(official)} of {len(benchmark.official)} sections, not whole" if missing else "score"
        figures = {name: float(overall(benchmark, by)) for name, by in sections.items()}
        lines[whole] = figures, lambda subset: benchmark.section_of(subset) in official
    for by, part_of in ((sections, benchmark.section_of), (subsets, str)):
        for part in (part for part in dict.fromkeys(map(part_of, benchmark.subsets)) if part in by[first]):
            figures = {name: scores[part] for name, scores in by.items()}
            lines.setdefault(part, (figures, lambda subset, part=part, part_of=part_of: part_of(subset) == part))
    return {
        "benchmark": benchmark.name,
        "score": lines["score"][0][first] if official and not missing else None,
        "interval": [low, high] if low < high else None,
        "missing": missing,
        "parts": [line_of(answered, part, figures, belongs) for part, (figures, belongs) in lines.items()],
        "kinds": kind_scores(benchmark, units[first][0]),
        "answers": answered.said,
    }


def mean_of(draws: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Return each part's mean over several scorings."""
    return {part: float(np.mean([by[part] for by in draws])) for part in draws[0]}


def line_of(answered: Answered, part: str, figures: dict[str, float], belongs: Callable[[str], bool]) -> dict:
    """Return a part's figures, with how many questions are in it, by their subsets, and how many have each mark."""
    members = [belongs(question.subset) for question in answered.questions]
    marked = {name: sum(map(all, zip(members, marks))) for name, marks in answered.counts.items()}
    return {"part": part, "questions": sum(members), **figures, **marked}


def report(answered: Answered, output: Path, model: str, card: bool) -> dict:
    """Print the figures of a benchmark; write them, their picture and a row of each question; return them.

    Args:
        output: the folder for NAME.json, NAME.parquet and NAME.png.
        model: whose figures they are; with `card` its folder, whose model card gets a section.
    """
    benchmark, figures = answered.benchmark, measure(answered)
    print_figures(benchmark, figures)
    place = output / benchmark.name
    write_text(place.with_suffix(".json"), json.dumps(figures | {"model": model}, indent=1))
    write_rows(place.with_suffix(".parquet"), rows_of(answered))
    panels = picture_of(answered, figures)
    draw(place.with_suffix(".png"), panels)
    print(f"written: {place}.json, .parquet and .png")
    if card:
        picture = f"benchmark_{benchmark.name}.png"
        draw(Path(model) / picture, panels)
        first, *others = answered.columns
        shown = {line["part"]: line[first] for line in figures["parts"][:MOST_LINES]}
        whole = {f"{figures['parts'][0]['part']}: {name}": figures["parts"][0][name] for name in (*others, *BASELINES)}
        known = {name: value for name, value in answered.said.items() if isinstance(value, str)}
        known |= {"missing": shortened(figures["missing"])} if figures["missing"] else {}
        title, results = f"Benchmark: {benchmark.title}", ("score",)  # if something is missing there is no "score"
        extend_model_card(Path(model), title, shown | whole | known, picture, results, benchmark.title)
    return figures


def print_figures(benchmark: Benchmark, figures: dict) -> None:
    """Print a line for each part of a benchmark, and what to know when reading it."""
    names = [name for name in figures["parts"][0] if name != "part"]
    shown = figures["parts"][:MOST_LINES]
    width = max(len(line["part"]) for line in shown)
    print(f"\n{benchmark.title}")
    print(" " * width, *(f"{name:>10}" for name in names))
    for line in shown:
        print(f"{line['part']:{width}}", *(f"{format_value(line[name]):>10}" for name in names))
    if more := len(figures["parts"]) - len(shown):
        print(f"and {more} subsets, in {benchmark.name}.json")
    if figures["interval"]:
        low, high = map(format_value, figures["interval"])
        print(f"{shown[0]['part']}: 95% interval {low} to {high}, the score on very many questions like these")
    for section, kinds in figures["kinds"].items():
        print(f"{section}: {', '.join(f'{kind} {format_value(mean)}' for kind, mean in kinds.items())}")
    for name, value in figures["answers"].items():
        print(f"{name}: {format_value(value)}")
    if figures["missing"]:
        print(f"missing, so there is no official score: {shortened(figures['missing'])}")
    print(f"longer: the answer with more characters wins; random: mean of {DRAWS} seeded draws. {benchmark.notes}")


def shortened(names: list[str]) -> str:
    """Return names as text, the first ones of many."""
    more = [f"and {len(names) - MOST_LINES} more"] if len(names) > MOST_LINES else []
    return ", ".join(names[:MOST_LINES] + more)


def rows_of(answered: Answered) -> list[dict]:
    """Return a row of each question: which it is, what was kept of the answers, and what it earned by each figure."""
    rows = []
    for number, (question, kept) in enumerate(zip(answered.questions, answered.kept, strict=True)):
        about = {"benchmark": answered.benchmark.name, "id": question.id, "subset": question.subset}
        about |= {"question": digest(question), "right": question.right}
        earned = {}
        for name, credits in answered.columns.items():
            earned[name] = [{"kind": kind, "credit": credit} for kind, credit in credits[number].items()]
        rows.append(about | kept | earned)
    return rows


def digest(question: Question) -> str:
    """Hash what is asked, so that two results can be known to be of the same questions."""
    return sha256(json.dumps([question.prompt, question.answers, question.right]).encode()).hexdigest()[:16]


@dataclass
class Bars:
    """A panel of figures, one group of bars for each part."""

    title: str
    parts: list[str]
    series: dict[str, list[float]]

    def draw_on(self, axis) -> None:
        width = 0.8 / len(self.series)
        for place, (label, values) in enumerate(self.series.items()):
            axis.bar([part + place * width for part in range(len(self.parts))], values, width, label=label)
        axis.set(title=self.title, xticks=[part + 0.4 - width / 2 for part in range(len(self.parts))])
        axis.set_xticklabels(self.parts, rotation=45, ha="right", fontsize=7)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3, axis="y")


def picture_of(answered: Answered, figures: dict) -> list:
    """Return the panels of a benchmark: its sections beside the baselines; of scores, how far the answers are apart."""
    benchmark, first = answered.benchmark, next(iter(answered.columns))
    sections = {benchmark.section_of(question.subset) for question in answered.questions}
    lines = [line for line in figures["parts"] if line is figures["parts"][0] or line["part"] in sections]
    series = {name: [line[name] for line in lines] for name in (first, *BASELINES)}
    panels: list = [Bars(benchmark.title, [line["part"].replace(", not whole", "") for line in lines], series)]
    margins = [
        min(kept["scores"][: question.right]) - max(kept["scores"][question.right :])
        for question, kept in zip(answered.questions, answered.kept)
        if kept.get("scores")
    ]
    if margins:
        panels.append(Histogram("worst right answer - best wrong one", {"score": margins}, "questions"))
    return panels
