"""Rows for the judge: read, checked and rendered before anything heavy starts, then handed to verl.

verl's own dataset reads what is written here, and needs no subclass. Left alone it would train on what it finds: a row
that its chat template refuses is skipped with a printed traceback, a missing label is rewarded with something, and
nobody is told how many prompts were too long.

A file holds either labelled rows (`input`, `output`, `label`: see prompt.py), rendered here with the rubric there, or
rows that prepare_data.py has rendered with a rubric of its own:

    prompt       [{"role": "user", "content": …}]: all that the judge is shown
    label        0 to 4
    data_source  (optional) a name; validation metrics are kept apart by it
    input        (optional) the dialogue; a split keeps together what answers it
    evidence     (optional) texts that a right reasoning holds; evaluate.py counts them
"""

from collections import Counter
from pathlib import Path

from common.conversation import BadRow, read_messages
from common.labelled import read_dialogue
from common.parquet import read_rows, write_rows

from prompt import COLUMNS, VERDICTS, render

RENDERED = ("prompt", "label")


def load_rows(files, on_bad_row: str = "error") -> tuple[list[dict], Counter]:
    """Read labelled or rendered rows; return them rendered, each with its origin under "source", and what was dropped.

    `input` is what a split keeps together: the dialogue, or where that is not known the whole prompt.

    Raises:
        DataError: see `common.parquet.read_rows`.
    """
    columns = ("data_source", "evidence", "input")
    return read_rows(files, required_columns, columns, check_row, on_bad_row)


def required_columns(names: list[str]) -> tuple[str, ...]:
    return RENDERED if "prompt" in names else COLUMNS


def check_row(row: dict) -> dict:
    """Return a labelled or rendered row as a rendered one; raise `BadRow` where it is neither."""
    rendered = check_rendered(row) if "prompt" in row else render_row(row)
    data_source, evidence = row.get("data_source") or "judge", row.get("evidence") or []
    if not isinstance(data_source, str):
        raise BadRow("data_source", "expected text", data_source)
    if not isinstance(evidence, list) or not all(isinstance(text, str) for text in evidence):
        raise BadRow("evidence", "expected a list of texts", evidence)
    return {**rendered, "data_source": data_source, "evidence": evidence}


def render_row(row: dict) -> dict:
    """Turn a labelled row into a rendered one."""
    prompt, label = render(row)
    return {"input": read_dialogue(row["input"]), "prompt": prompt, "label": label}


def check_rendered(row: dict) -> dict:
    """Return a rendered row checked; raise `BadRow` where it is none."""
    prompt = read_messages("prompt", row["prompt"])
    if isinstance(prompt, str) or prompt[-1]["role"] != "user":
        raise BadRow("prompt", "expected messages that end with the user's", row["prompt"])
    if row["label"] not in VERDICTS or isinstance(row["label"], bool):
        raise BadRow("label", f"expected one of {', '.join(map(str, VERDICTS))}", row["label"])
    dialogue = prompt if row.get("input") is None else read_dialogue(row["input"])
    return {"input": dialogue, "prompt": prompt, "label": VERDICTS[VERDICTS.index(row["label"])]}


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
