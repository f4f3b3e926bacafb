"""Rows for the judge: read, checked and written as prompts before anything heavy starts, then handed to verl.

verl's own dataset reads what is written here, and needs no subclass. Alone it would train on whatever it finds: it
skips a row that the chat template refuses and prints a traceback, it pays something for a missing label, and it does
not say how many prompts were too long.

A file holds either labelled rows (`input`, `output`, `metadata`: see `read_row` in prompt.py), or rows for which
prepare_data.py has already written the prompts, by a rubric of its own. A row is a pair in both orders, and becomes two
prompts: no file, filter or split holds one order alone. (verl draws prompts, not pairs, into its batches, and leaves
out what does not fill one: other prompts each epoch.)

    prompt          [{"role": "user", "content": …}]: all that the judge is shown
    prompt_swapped  the same with the responses in the other order
    label           A, B or tie, of `prompt`
    data_source     (optional) a name; validation metrics are kept apart by it
    input           (optional) the dialogue; a split keeps together what answers it
    rubric          (optional) what the prompt says to judge by; goes into the checkpoint, for graders
    responses       (optional) what is compared, as it was, of `prompt`; for the report on the data
    strength        (optional) how much better the better one is, above 0; reward.py can weigh by it
    longer          (optional) A, B or tie, of `prompt`: the longer response, for evaluate.py's baseline
"""

import json
from collections import Counter
from pathlib import Path

from common.conversation import BadRow, read_dialogue, read_json, read_messages, read_response
from common.data_report import Item, dialogue_text
from common.parquet import Faults, read_rows, write_rows

from .prompt import COLUMNS, RUBRIC, SWAPPED, VERDICTS, Judged, ask, read_row, read_strength

WRITTEN = ("prompt", "prompt_swapped", "label")
OPTIONAL = ("data_source", "input", "rubric", "responses", "strength", "longer")


def load_rows(
    files, on_bad_row: str = "error", rubric: str = RUBRIC, faults: Faults | None = None
) -> tuple[list[dict], Counter]:
    """Read rows, labelled or with their prompts; return all with prompts, and how many were dropped, by fault.

    Each gives two rows, one below the other: as given, then with the responses swapped. `input` is what a split keeps
    together: the dialogue, or the whole prompt of either order if that is not known.

    Args:
        rubric: what the prompts of labelled rows say to judge by.
        faults: gathers what would be raised about rows.

    Raises:
        DataError: see `common.parquet.read_rows`.
    """
    pairs, dropped = read_rows(
        files, required_columns, OPTIONAL, lambda row: check_row(row, rubric), on_bad_row, faults
    )
    return [row for pair in pairs for row in both_orders(pair)], dropped


def required_columns(names: list[str]) -> tuple[str, ...]:
    return WRITTEN if "prompt" in names else COLUMNS


def check_row(row: dict, rubric: str = RUBRIC) -> dict:
    """Return a row with its prompts; raise `BadRow` if it is neither labelled nor has them."""
    checked = check_prompts(row) if "prompt" in row else write_prompts(read_row(row), rubric)
    data_source = row.get("data_source") or "judge"
    if not isinstance(data_source, str):
        raise BadRow("data_source", "expected text", data_source)
    return {**checked, "data_source": data_source}


def write_prompts(judged: Judged, rubric: str = RUBRIC) -> dict:
    """Return a labelled row with its prompts, in both orders."""
    swapped = judged.swap()
    return {
        "input": judged.dialogue,
        "prompt": ask(judged.dialogue, judged.response_a, judged.response_b, rubric),
        "prompt_swapped": ask(judged.dialogue, swapped.response_a, swapped.response_b, rubric),
        "label": judged.label,
        "rubric": rubric,
        "responses": [judged.response_a, judged.response_b],
        "strength": judged.strength,
        "longer": judged.longer,
    }


def check_prompts(row: dict) -> dict:
    """Return a row that has its prompts, checked; raise `BadRow` if they cannot be used."""
    prompts = {}
    for column in ("prompt", "prompt_swapped"):
        prompts[column] = read_messages(column, row[column])
        if isinstance(prompts[column], str) or prompts[column][-1]["role"] != "user":
            raise BadRow(column, "expected messages that end with the user's", row[column])
    if row["label"] not in VERDICTS:
        raise BadRow("label", f"expected one of {', '.join(VERDICTS)}", row["label"])
    if prompts["prompt"] == prompts["prompt_swapped"] and row["label"] != "tie":
        raise BadRow("prompt_swapped", "the same as `prompt`, and one response preferred", row["label"])
    rubric, longer = row.get("rubric"), row.get("longer")
    if rubric is not None and not isinstance(rubric, str):
        raise BadRow("rubric", "expected text", rubric)
    if longer not in ("A", "B", "tie", None):
        raise BadRow("longer", "expected one of A, B, tie, or nothing", longer)
    responses = read_json("responses", row.get("responses"))
    if responses is not None and not (isinstance(responses, list) and len(responses) == 2):
        raise BadRow("responses", "expected two texts", responses)
    either_order = min(prompts.values(), key=str)
    return {
        "input": either_order if row.get("input") is None else read_dialogue(row["input"]),
        **prompts,
        "label": row["label"],
        "rubric": rubric,
        "responses": None if responses is None else [read_response(text, "responses") for text in responses],
        "strength": read_strength("strength", row.get("strength"), row["label"]),
        "longer": longer,
    }


def turn_round(pair: dict) -> dict:
    """Return a pair that has its prompts with the responses in the other order."""
    prompts = {"prompt": pair["prompt_swapped"], "prompt_swapped": pair["prompt"]}
    responses = pair.get("responses") and pair["responses"][::-1]
    return {
        **pair,
        **prompts,
        "label": SWAPPED[pair["label"]],
        "longer": SWAPPED.get(pair["longer"]),
        "responses": responses,
    }


def both_orders(pair: dict) -> list[dict]:
    """Return a pair that has its prompts as two rows of one prompt each: as given, and swapped."""
    rows = [{**pair, "order": "as given"}, {**turn_round(pair), "order": "swapped"}]
    return [{name: value for name, value in row.items() if name != "prompt_swapped"} for row in rows]


def as_items(rows: list[dict]) -> list[Item]:
    """Return rows of prompts as what the report on the data reads, each pair once."""
    return [as_item(row) for row in rows if row["order"] == "as given"]


def as_item(row: dict) -> Item:
    """Return a row as what the report on the data reads. Where the responses are not known, the prompt shows them."""
    dialogue, responses = row["input"], tuple(row["responses"] or ())
    return Item(dialogue_text(dialogue if responses else row["prompt"]), responses, row["label"], row["source"])


def prompt_of(row: dict) -> str:
    """Return what a row's responses answer, as text: rows of the same text stay together in a split."""
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
                "extra_info": {
                    "index": index,
                    "source": f"{row['source']}, {row['order']}",
                    "begun": row["begun"],
                    "strength": row["strength"],
                },
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
