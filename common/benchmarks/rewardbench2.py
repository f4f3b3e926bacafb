"""RewardBench 2 (Malik et al., arXiv:2506.01937): six subsets, and the mean of their scores.

Five subsets are best of 4: the right answer must score above three wrong ones. The sixth, Ties, has questions with many
right answers, such as a colour of the rainbow, each in two rows: "ref:N" with one right answer, "tied:N" with all. A
good model puts every right answer above every wrong one, and is more sure of that than of any order among the right.

The rules are those of `reroll_and_score_dataset` and `process_single_model` in rewardbench/utils.py of
allenai/reward-bench, at 05a9005efb. Data: https://huggingface.co/datasets/allenai/reward-bench-2 (ODC-BY).
"""

from pathlib import Path

from common.conversation import BadRow

from .questions import (
    Question,
    answers_of,
    cell,
    check_questions,
    hub_rows,
    id_of,
    numbered,
    read_files,
    text_of,
    user_turn,
)

HOME = "allenai/reward-bench-2"
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
TIES = SUBSETS[-1]


def read(path: str | Path | None = None) -> list[Question]:
    """Return the questions of a file or folder, or by default of the hub. See `check_questions` for what is raised."""
    if path is None:
        return check_questions(hub_rows(HOME, "test"), to_question)
    rows = [row for file, rows in read_files(path) for row in numbered(file.name, rows)]
    return check_questions(rows, to_question)


def to_question(row: dict) -> Question:
    chosen, rejected = answers_of(row, "chosen"), answers_of(row, "rejected")
    subset, number = text_of(row, "subset"), id_of(row, "id")
    if subset not in SUBSETS:
        raise BadRow("subset", f"expected one of {', '.join(SUBSETS)}", subset)
    if cell(row, "num_correct") != len(chosen):
        raise BadRow("num_correct", f"expected the number of chosen answers, {len(chosen)}", row["num_correct"])
    if subset == TIES:
        kind, _, prompt = number.partition(":")
        if kind not in ("ref", "tied") or not prompt.isdecimal():
            raise BadRow("id", "expected ref:NUMBER or tied:NUMBER in the subset Ties", number)
        if kind == "tied" and len(chosen) < 2:
            raise BadRow("chosen", "expected two or more right answers in a row tied:NUMBER", chosen)
    elif (len(chosen), len(rejected)) != (1, 3):
        kind = "expected one chosen and three rejected answers outside the subset Ties"
        raise BadRow("chosen", kind, f"{len(chosen)} and {len(rejected)}")
    prompt = user_turn(text_of(row, "prompt"))
    return Question(f"{subset}/{number}", subset, prompt, chosen + rejected, len(chosen))
