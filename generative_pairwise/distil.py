"""Replace an API judge: ask it about your rows, and keep the answers that are right, for the warm start by sft.

    python -m generative_pairwise.distil --teacher https://host/v1 --teacher-model NAME --data data/train.parquet \\
        --output distilled

The teacher is any OpenAI-compatible endpoint (its key is OPENAI_API_KEY's), or, without --teacher, a checkpoint: a
judge can teach itself. It gets the prompt of prompt.py, so that what it answers is what the student should answer. Each
pair is asked in both orders.

- Rows with a label: in each order the first answer is kept whose preference is the label.
- Rows without one: the first whose preference has more than half of `--votes` in both orders together. With one vote
  the two orders must agree. That preference is the label from then on.
- A command that was killed goes on with what is in its output. No answer that has come is asked for again.
"""

import logging
from collections import Counter

from common.conversation import BadRow, DataError, read_json
from common.grading.endpoint import EndpointError
from common.judging.rubric import read_rubric
from common.judging.teacher import ask_teacher, make_teacher_parser, read_teacher_options, write_lessons
from common.judging.votes import majority
from common.parquet import read_rows

from .dataset import OPTIONAL, both_orders, check_row
from .prepare_data import WRITTEN
from .prompt import FRAME, RUBRIC, SWAPPED, VERDICTS, Preference, decide, parse, retell

ANY = VERDICTS[-1]  # stands in for a label that is not known while the rest of its row is checked


def load_rows(files: str, on_bad_row: str, rubric: str) -> tuple[list[dict], Counter]:
    """Read rows as `dataset.load_rows` does, two of each pair; the label of each may be missing, and is None then."""

    def check(row: dict) -> dict:
        if is_labelled(row):
            return check_row(row, rubric)
        return check_row({**row, "label": ANY, "metadata": {"preferred": ANY}}, rubric) | {"unlabelled": True}

    optional = (*OPTIONAL, "label", "metadata", "reasoning")
    pairs, dropped = read_rows(files, required_columns, optional, check, on_bad_row)
    rows = [row for pair in pairs for row in both_orders(pair)]
    return [{**row, "label": None} if row.pop("unlabelled", False) else row for row in rows], dropped


def is_labelled(row: dict) -> bool:
    if "prompt" in row:
        return row.get("label") is not None
    metadata = read_json("metadata", row.get("metadata"))
    if not isinstance(metadata, dict | None):
        raise BadRow("metadata", "expected an object", metadata)
    if metadata and "preferred" not in metadata:
        raise BadRow(
            "metadata", "no key 'preferred'; without a label leave metadata empty, or preferred null", metadata
        )
    return bool(metadata) and metadata["preferred"] is not None


def required_columns(names: list[str]) -> tuple[str, ...]:
    return ("prompt", "prompt_swapped") if "prompt" in names else ("input", "output")


def settle_labels(rows: list[dict], votes: list[list]) -> list[Preference | None]:
    """Return each prompt's label, that of its row or else the majority's over both orders."""
    labels = []
    for row, cast, cast_swapped in zip(rows[::2], votes[::2], votes[1::2]):  # a pair is two rows
        label = row["label"] or majority([*cast, *map(SWAPPED.get, cast_swapped)])
        labels += [label, SWAPPED.get(label)]
    return labels


def labelled_rows(rows: list[dict], labels: list[Preference | None]) -> list[dict]:
    """Return the pairs with a label, as prepare_data writes them."""
    written = [row.get("written", row["prompt"]) for row in rows]
    pairs = zip(rows[::2], written[::2], written[1::2], labels[::2])
    return [
        {name: found[name] for name in WRITTEN}
        for row, prompt, swapped, label in pairs
        if label is not None
        for found in [{**row, "prompt": prompt, "prompt_swapped": swapped, "label": label}]
    ]


def main() -> None:
    columns = "input and output, or prompt and prompt_swapped; and metadata or label, if it is known"
    options = read_teacher_options(make_teacher_parser(columns))
    rows, bad = load_rows(options.data, options.on_bad_row, read_rubric(options.rubric) or RUBRIC)
    judged = ask_teacher(options, rows, parse, decide, FRAME)
    labels = settle_labels(judged.rows, judged.votes)
    kept = labelled_rows(judged.rows, labels)
    write_lessons(options, judged, labels, kept, retell, VERDICTS, bad)


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"distil.py: {error}") from None
