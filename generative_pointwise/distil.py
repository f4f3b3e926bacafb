"""Replace an API judge: ask it about your rows, and keep the answers that are right, for the warm start by sft.

    python -m generative_pointwise.distil --teacher https://host/v1 --teacher-model NAME --data data/train.parquet \\
        --output distilled

The teacher is any OpenAI-compatible endpoint (its key is OPENAI_API_KEY's), or, without --teacher, a checkpoint: a
judge can teach itself. It gets the prompt of prompt.py, so that what it answers is what the student should answer.

- Rows with a label: the first answer is kept whose score is the label.
- Rows without one: the first whose score has more than half of `--votes`. That score is the label from then on.
- A command that was killed goes on with what is in its output. No answer that has come is asked for again.
"""

import logging
from collections import Counter

from common.conversation import DataError
from common.grading.endpoint import EndpointError
from common.judging.rubric import read_rubric
from common.judging.teacher import ask_teacher, make_teacher_parser, read_teacher_options, write_lessons
from common.judging.votes import majority
from common.parquet import read_rows

from .dataset import OPTIONAL, check_row
from .prepare_data import WRITTEN
from .prompt import FRAME, RUBRIC, VERDICTS, decide, parse, retell

ANY = VERDICTS[0]  # stands in for a label that is not known while the rest of its row is checked


def load_rows(files: str, on_bad_row: str, rubric: str) -> tuple[list[dict], Counter]:
    """Read rows as `dataset.load_rows` does; the label of each may be missing, and is None then."""

    def check(row: dict) -> dict:
        if row.get("label") is not None:
            return check_row(row, rubric)
        return check_row({**row, "label": ANY}, rubric) | {"label": None}

    return read_rows(files, required_columns, (*OPTIONAL, "label", "reasoning"), check, on_bad_row)


def required_columns(names: list[str]) -> tuple[str, ...]:
    return ("prompt",) if "prompt" in names else ("input", "output")


def settle_labels(rows: list[dict], votes: list[list]) -> list[int | None]:
    """Return each prompt's label, that of its row or else the majority's."""
    return [majority(cast) if row["label"] is None else row["label"] for row, cast in zip(rows, votes)]


def labelled_rows(rows: list[dict], labels: list[int | None]) -> list[dict]:
    """Return the rows with a label, as prepare_data writes them."""
    return [
        {name: row.get("written", row["prompt"]) if name == "prompt" else row[name] for name in WRITTEN}
        for row in ({**row, "label": label} for row, label in zip(rows, labels) if label is not None)
    ]


def main() -> None:
    options = read_teacher_options(make_teacher_parser("input and output, or prompt; and label, if it is known"))
    rows, bad = load_rows(options.data, options.on_bad_row, read_rubric(options.rubric) or RUBRIC)
    judged = ask_teacher(options, rows, parse, decide, FRAME)
    labels = settle_labels(judged.rows, judged.votes)
    kept = labelled_rows(judged.rows, labels)
    write_lessons(options, judged, labels, kept, retell, VERDICTS, bad, weights="quadratic")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"distil.py: {error}") from None
