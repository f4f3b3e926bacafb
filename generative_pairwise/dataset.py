"""Rows for the judge: read, checked and rendered before anything heavy starts, then handed to verl.

verl's own dataset reads what is written here, and needs no subclass. Left alone it would train on what it finds: a row
that its chat template refuses is skipped with a printed traceback, a missing label is rewarded with something, and
nobody is told how many prompts were too long.

A file holds either labelled rows (`input`, `output`, `metadata`: see prompt.py), rendered here with the rubric there,
or rows that prepare_data.py has rendered with a rubric of its own. A row is a pair in both orders, and becomes two
prompts: no file, filter or split holds one order alone. (verl draws prompts, not pairs, into its batches, and leaves
out what does not fill one: other prompts each epoch.)

    prompt          [{"role": "user", "content": …}]: all that the judge is shown
    prompt_swapped  the same with the responses in the other order
    label           A, B or tie, of `prompt`
    data_source     (optional) a name; validation metrics are kept apart by it
    strength        (optional) how much better the better one is, above 0; reward.py can weigh by it
    longer          (optional) A, B or tie, of `prompt`: the longer response, for evaluate.py's baseline
    input           (optional) the dialogue; a split keeps together what answers it
"""

from collections import Counter
from pathlib import Path

from common.conversation import BadRow, read_messages
from common.judge import SWAPPED
from common.labelled import check_strength, longer_response, read_dialogue, read_strength
from common.parquet import read_rows, write_rows

from prompt import COLUMNS, VERDICTS, render

RENDERED = ("prompt", "prompt_swapped", "label")


def load_rows(files, on_bad_row: str = "error") -> tuple[list[dict], Counter]:
    """Read labelled or rendered rows; return them rendered, each with its origin under "source", and what was dropped.

    Each gives two rows, one below the other: as given, then with the responses swapped. `input` is what a split keeps
    together: the dialogue, or where that is not known the whole prompt of either order.

    Raises:
        DataError: see `common.parquet.read_rows`.
    """
    columns = ("data_source", "strength", "longer", "input")
    pairs, dropped = read_rows(files, required_columns, columns, check_row, on_bad_row)
    return [row for pair in pairs for row in both_orders(pair)], dropped


def required_columns(names: list[str]) -> tuple[str, ...]:
    return RENDERED if "prompt" in names else COLUMNS


def check_row(row: dict) -> dict:
    """Return a labelled or rendered row as a rendered one; raise `BadRow` where it is neither."""
    rendered = check_rendered(row) if "prompt" in row else render_row(row)
    data_source = row.get("data_source") or "judge"
    if not isinstance(data_source, str):
        raise BadRow("data_source", "expected text", data_source)
    return {**rendered, "data_source": data_source}


def render_row(row: dict) -> dict:
    """Turn a labelled row into a rendered one."""
    (prompt, label), (prompt_swapped, _) = render(row)
    more = {"strength": read_strength(row), "longer": longer_response(row)}
    dialogue = read_dialogue(row["input"])
    return {"input": dialogue, "prompt": prompt, "prompt_swapped": prompt_swapped, "label": label, **more}


def check_rendered(row: dict) -> dict:
    """Return a rendered row checked; raise `BadRow` where it is none."""
    prompts = {}
    for column in ("prompt", "prompt_swapped"):
        prompts[column] = read_messages(column, row[column])
        if isinstance(prompts[column], str) or prompts[column][-1]["role"] != "user":
            raise BadRow(column, "expected messages that end with the user's", row[column])
    if row["label"] not in VERDICTS:
        raise BadRow("label", f"expected one of {', '.join(VERDICTS)}", row["label"])
    if prompts["prompt"] == prompts["prompt_swapped"] and row["label"] != "tie":
        raise BadRow("prompt_swapped", "the same as `prompt`, and one response preferred", row["label"])
    if row.get("longer") not in (*VERDICTS, None):
        raise BadRow("longer", f"expected one of {', '.join(VERDICTS)}, or nothing", row["longer"])
    more = {"strength": check_strength("strength", row.get("strength"), row["label"]), "longer": row.get("longer")}
    either_order = min(prompts.values(), key=str)
    dialogue = either_order if row.get("input") is None else read_dialogue(row["input"])
    return {"input": dialogue, **prompts, "label": row["label"], **more}


def turn_round(pair: dict) -> dict:
    """Return a rendered pair with the responses in the other order."""
    prompts = {"prompt": pair["prompt_swapped"], "prompt_swapped": pair["prompt"]}
    return {**pair, **prompts, "label": SWAPPED[pair["label"]], "longer": SWAPPED.get(pair["longer"])}


def both_orders(pair: dict) -> list[dict]:
    """Return a rendered pair as two rows of one prompt each: as given, and swapped."""
    rows = [{**pair, "order": "as given"}, {**turn_round(pair), "order": "swapped"}]
    return [{name: value for name, value in row.items() if name != "prompt_swapped"} for row in rows]


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
