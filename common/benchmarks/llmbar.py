"""LLMBar (Zeng et al., arXiv:2310.07641): does a judge see which of two answers follows the instruction?

Five sets: Natural, and four adversarial ones whose wrong answer looks the better. The figure is the mean of the five.
The official code shows a judge each pair in both orders and takes the mean of the two; by ratings, a tie is right in
one of the two orders, so it counts one half. (LLMEvaluator/evaluate.py of princeton-nlp/LLMBar.)

Data: the folder Dataset/LLMBar of https://github.com/princeton-nlp/LLMBar. Its set on the Hugging Face hub needs code
of its own, which `datasets` no longer runs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.benchmarks.benchmark import Benchmark, Credits, Votes, beats
from common.benchmarks.questions import Question, cell, check_questions, numbered, read_files, text_of, user_turn
from common.conversation import BadRow, DataError, read_response

HOME = "https://github.com/princeton-nlp/LLMBar"
SETS = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")  # folders, each with a dataset.json


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of the five sets in a folder. See `check_questions` for what is raised.

    The case studies and the sets of other authors, which stand in the same repository, are no part of the benchmark.
    """
    if path is None:
        raise DataError(f"llmbar: `git clone {HOME}`, and name its folder: llmbar=FOLDER")
    files = read_files(path, lambda file: file.name == "dataset.json" and file.parent.name in SETS)
    rows = []
    for file, of_file in files:
        if file.parent.name not in SETS:
            raise DataError(f"{file}: its folder says which set it is. Expected one of {', '.join(SETS)}.")
        named = numbered(f"{file.parent.name}/{file.name}", of_file)
        rows += [(place, row | {"set": file.parent.name, "number": n}) for n, (place, row) in enumerate(named)]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    label = cell(row, "label")
    if label not in (1, 2):
        raise BadRow("label", "expected 1 or 2", label)
    answers = [read_response(cell(row, f"output_{number}"), f"output_{number}") for number in (label, 3 - label)]
    return Question(f"{row['set']}/{row['number']}", row["set"], user_turn(text_of(row, "input")), answers)


def credits(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    official_missing: bool = False,
    share_ties: bool = False,
) -> list[Credits]:
    """Return what each question earns; see `Benchmark`. A tie is one half by the rule itself.

    official_missing: of two answers one of which could not be rated, each order names another one, so one half.
    """
    missing = 0.5 if official_missing else 0.0
    return [{"right": missing if np.isnan(given).any() else beats(*given, tie=0.5)} for given in scores]


def vote_credits(
    questions: Sequence[Question], votes: Sequence[Votes], official_missing: bool = False
) -> list[Credits]:
    """Return the same for a judge that was shown each pair in both orders: the share of them that it got right.

    Without a verdict in one of the orders it earns nothing. official_missing: only that order is wrong.
    """
    earned = []
    for given in votes:
        lost = None in given[0, 1] and not official_missing
        earned.append({"right": 0.0 if lost else sum(order == 1 for order in given[0, 1]) / 2})
    return earned


BENCHMARK = Benchmark(
    name="llmbar",
    title="LLMBar",
    read=read,
    credits=credits,
    vote_credits=vote_credits,
    subsets=SETS,
    section_of=lambda subset: subset,
    official=SETS,
    official_missing=("scores", "votes"),
    sizes={"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46},
    notes="Made for judges. A reward model is measured by the official rule for ratings.",
)
