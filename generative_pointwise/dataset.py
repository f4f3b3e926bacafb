"""Rows for the judge: read, checked and written as prompts before anything heavy starts, then handed to verl.

verl's own dataset reads what is written here, and needs no subclass. Alone it would train on whatever it finds: it
skips a row that the chat template refuses and prints a traceback, it pays something for a missing label, and it does
not say how many prompts were too long.

A file holds either labelled rows (`input`, `output`, `label`: see `read_row` in prompt.py), or rows for which
prepare_data.py has already written the prompt, by a rubric of its own:

    prompt       [{"role": "user", "content": …}]: all that the judge is shown
    label        0 to 4
    data_source  (optional) a name; validation metrics are kept apart by it
    input        (optional) the dialogue; a split keeps together what answers it
    rubric       (optional) what the prompt says to judge by; goes into the checkpoint, for graders
    response     (optional) what is judged, as it was; for the report on the data
    evidence     (optional) texts that a right reasoning holds; evaluate.py counts them
"""

import json
from collections import Counter
from pathlib import Path

from common.conversation import BadRow, read_dialogue, read_messages, read_response
from common.data_report import Item, dialogue_text
from common.parquet import Faults, read_rows, write_rows

from .prompt import COLUMNS, RUBRIC, VERDICTS, Judged, ask, read_label, read_row

WRITTEN = ("prompt", "label")
OPTIONAL = ("data_source", "input", "rubric", "response", "evidence")


def load_rows(
    files, on_bad_row: str = "error", rubric: str = RUBRIC, faults: Faults | None = None
) -> tuple[list[dict], Counter]:
    """Read rows, labelled or with their prompts; return all with prompts, and how many were dropped, by fault.

    `input` is what a split keeps together: the dialogue, or the whole prompt if that is not known.

    Args:
        rubric: what the prompts of labelled rows say to judge by.
        faults: gathers what would be raised about rows.

    Raises:
        DataError: see `common.parquet.read_rows`.
    """
    return read_rows(files, required_columns, OPTIONAL, lambda row: check_row(row, rubric), on_bad_row, faults)


def required_columns(names: list[str]) -> tuple[str, ...]:
    return WRITTEN if "prompt" in names else COLUMNS


def check_row(row: dict, rubric: str = RUBRIC) -> dict:
    """Return a row with its prompt; raise `BadRow` if it is neither labelled nor has one."""
    checked = check_prompt(row) if "prompt" in row else write_prompt(read_row(row), rubric)
    data_source, evidence = row.get("data_source") or "judge", row.get("evidence") or []
    if not isinstance(data_source, str):
        raise BadRow("data_source", "expected text", data_source)
    if not isinstance(evidence, list) or not all(isinstance(text, str) for text in evidence):
        raise BadRow("evidence", "expected a list of texts", evidence)
    return {**checked, "data_source": data_source, "evidence": evidence}


def write_prompt(judged: Judged, rubric: str = RUBRIC) -> dict:
    """Return a labelled row with its prompt."""
    return {
        "input": judged.dialogue,
        "prompt": ask(judged.dialogue, judged.response, rubric),
        "label": judged.label,
        "rubric": rubric,
        "response": judged.response,
    }


def check_prompt(row: dict) -> dict:
    """Return a row that has its prompt, checked; raise `BadRow` if that cannot be used."""
    prompt = read_messages("prompt", row["prompt"])
    if isinstance(prompt, str) or prompt[-1]["role"] != "user":
        raise BadRow("prompt", "expected messages that end with the user's", row["prompt"])
    rubric = row.get("rubric")
    if rubric is not None and not isinstance(rubric, str):
        raise BadRow("rubric", "expected text", rubric)
    dialogue = prompt if row.get("input") is None else read_dialogue(row["input"])
    response = None if row.get("response") is None else read_response(row["response"])
    known = {"rubric": rubric, "response": response}
    return {"input": dialogue, "prompt": prompt, "label": read_label(row["label"])} | known


def as_items(rows: list[dict]) -> list[Item]:
    """Return rows of prompts as what the report on the data reads."""
    return [as_item(row) for row in rows]


def as_item(row: dict) -> Item:
    """Return a row as what the report on the data reads. Where the response is not known, the prompt shows it."""
    dialogue, responses = row["input"], (row["response"],)
    if row["response"] is None:
        dialogue, responses = row["prompt"], ()
    return Item(dialogue_text(dialogue), responses, row["label"], row["source"])


def prompt_of(row: dict) -> str:
    """Return what a row's response answers, as text: rows of the same text stay together in a split."""
    return json.dumps(row["input"], sort_keys=True)


def write_for_verl(rows: list[dict], path: Path) -> Path:
    """Write rows in the columns of verl's RL dataset; the reward function gets `ground_truth` and `extra_info`."""
    return write_rows(
        path,
        [
            {
                "data_source": row["data_source"],
                "prompt": row["prompt"],
                "reward_model": {"style": "rule", "ground_truth": row["label"]},
                "extra_info": {"index": index, "source": row["source"], "begun": row["begun"]},
            }
            for index, row in enumerate(rows)
        ],
    )


def report_rows(name: str, rows: list[dict], left_out: Counter) -> None:
    """Say how many rows there are, how long, how the labels are spread, and what was left out."""
    if not rows:
        return
    labels, tokens = Counter(row["label"] for row in rows), [row["tokens"] for row in rows]
    spread = ", ".join(f"{verdict}: {labels[verdict]}" for verdict in VERDICTS)
    print(f"{name}: {len(rows)} prompts of {sum(tokens) / len(tokens):.0f} tokens, the longest {max(tokens)}; {spread}")
    for kind, count in left_out.items():
        print(f"  left out: {count} x {kind}")
