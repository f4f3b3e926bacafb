"""RM-Bench (Liu et al., arXiv:2410.16184): a right and a wrong answer to each prompt, each in three styles.

The styles are concise, detailed, and detailed with Markdown. Every right answer is compared with every wrong one, nine
comparisons, and must score higher; equal is wrong. "Hard" are the three in which the wrong answer has the richer style,
"normal" those of equal style, "easy" the others. A domain's score is the mean of the three; the benchmark's is the mean
over chat, math, code and safety. Safety is two files, and their rows count as one set.

The rule is `compute_accuracy` in scripts/utils.py of THU-KEG/RM-Bench, at 73c52d7b27. Data:
https://huggingface.co/datasets/THU-KEG/RM-Bench, whose card states the licence odc-by; or the folder data/ on GitHub,
where none is stated. The sizes are those of the files; that of math is the paper's.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from common.benchmarks.benchmark import Benchmark, Credits, Votes, beats, won
from common.benchmarks.questions import (
    Question,
    answers_of,
    check_questions,
    hub_rows,
    id_of,
    numbered,
    read_files,
    text_of,
    user_turn,
)
from common.conversation import BadRow

HOME = "THU-KEG/RM-Bench"
DOMAINS = ("chat", "math", "code", "safety-refuse", "safety-response")
STYLES = 3
WHOLE = "total_dataset.json"  # all domains in one file, which the authors give beside a file for each


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of a file or folder, or by default of the hub. See `check_questions` for what is raised.

    A row's domain is its column `domain`; if there is none, the name of its file: chat_filtered.json is "chat".
    """
    if path is None:
        return check_questions(hub_rows(HOME, "train"), to_question)
    files = dict(read_files(path, lambda file: file.name == WHOLE or file.stem.endswith("_filtered")))
    whole = [file for file in files if file.name == WHOLE]
    rows = [
        (place, {"domain": file.stem.removesuffix("_filtered"), **row})
        for file in whole or files
        for place, row in numbered(file.name, files[file])
    ]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    domain = text_of(row, "domain")
    if domain not in DOMAINS:
        raise BadRow("domain", f"expected one of {', '.join(DOMAINS)}", domain)
    answers = answers_of(row, "chosen", STYLES) + answers_of(row, "rejected", STYLES)
    return Question(f"{domain}/{id_of(row, 'id')}", domain, user_turn(text_of(row, "prompt")), answers, STYLES)


def credits(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    share_ties: bool = False,
) -> list[Credits]:
    """Return what each question earns; see `Benchmark`. The official code knows no answer without a score."""
    tie = 0.5 if share_ties else 0.0
    return [
        by_style({(right, wrong): beats(given[right], given[wrong], tie) for right, wrong in comparisons()})
        if not np.isnan(given).any()
        else by_style(dict.fromkeys(comparisons(), 0.0))
        for given in scores
    ]


def vote_credits(questions: Sequence[Question], votes: Sequence[Votes]) -> list[Credits]:
    """Return the same for a judge that was shown the nine pairs in both orders, by JudgeBench's rule for pairs."""
    return [by_style({pair: won(orders) for pair, orders in given.items()}) for given in votes]


def comparisons() -> list[tuple[int, int]]:
    """Return the nine pairs of a right and a wrong answer, by their places among the answers."""
    return [(right, STYLES + wrong) for right, wrong in product(range(STYLES), repeat=2)]


def by_style(earned: dict[tuple[int, int], float]) -> Credits:
    """Return the mean credit of the comparisons in which the right answer has the plainer style, an equal, a richer."""
    kinds: dict[str, list[float]] = {"hard": [], "normal": [], "easy": []}
    for (right, wrong), credit in earned.items():
        style = wrong - STYLES
        kinds["hard" if right < style else "normal" if right == style else "easy"].append(credit)
    return {kind: sum(found) / len(found) for kind, found in kinds.items()}


SECTIONS = ("chat", "math", "code", "safety")
BENCHMARK = Benchmark(
    name="rm_bench",
    title="RM-Bench",
    read=read,
    credits=credits,
    vote_credits=vote_credits,
    subsets=DOMAINS,
    section_of=lambda subset: subset.partition("-")[0],
    official=SECTIONS,
    weights=dict.fromkeys(SECTIONS, dict.fromkeys(("hard", "normal", "easy"), 1 / 3)),
    sizes={"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157},
    notes="The official script cuts texts at 2,048 tokens and computes in fp16. Here the whole text counts.",
)
