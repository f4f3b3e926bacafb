"""Rows for the judge: read, checked, rendered and measured before anything heavy starts, then handed to verl.

verl's own dataset reads what is written here, and needs no subclass. Left alone it would train on what it finds: a row
that its chat template refuses is skipped with a printed traceback, a missing label is rewarded with something, and
nobody is told how many prompts were too long.

A file holds either labelled rows (`input`, `output`, `label`: see prompt.py), rendered here with the rubric there, or
rows that prepare_data.py has rendered with a rubric of its own:

    prompt       [{"role": "user", "content": …}]: all that the judge is shown
    label        0 to 4
    data_source  (optional) a name; validation metrics are kept apart by it
    evidence     (optional) texts that a right reasoning holds; evaluate.py counts them
"""

import hashlib
from collections import Counter
from pathlib import Path

from jinja2 import TemplateError
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.conversation import BadRow, read_messages
from common.judge import begun_answer
from common.parquet import DataError, check_rows, read_rows, write_rows

from prompt import COLUMNS, VERDICTS, render

RENDERED = ("prompt", "label")


def load_rows(files, on_bad_row: str = "error") -> tuple[list[dict], Counter]:
    """Read labelled or rendered rows; return them rendered, each with its origin under "source", and what was dropped.

    `input` is what a split keeps together: a labelled row's dialogue, or else the whole prompt.

    Raises:
        DataError: see `common.parquet.read_rows`.
    """
    columns = ("data_source", "evidence")
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
    return {"input": row["input"], "prompt": prompt, "label": label}


def check_rendered(row: dict) -> dict:
    """Return a rendered row checked; raise `BadRow` where it is none."""
    prompt = read_messages("prompt", row["prompt"])
    if isinstance(prompt, str) or prompt[-1]["role"] != "user":
        raise BadRow("prompt", "expected messages that end with the user's", row["prompt"])
    if row["label"] not in VERDICTS or isinstance(row["label"], bool):
        raise BadRow("label", f"expected one of {', '.join(map(str, VERDICTS))}", row["label"])
    return {"input": prompt, "prompt": prompt, "label": VERDICTS[VERDICTS.index(row["label"])]}


def measure_rows(
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    drop_too_long: bool,
    on_bad_row: str = "error",
) -> tuple[list[dict], Counter]:
    """Add `tokens`, the length of the prompt through the chat template, and `begun`, what that wrote of the answer.

    Args:
        max_length: tokens allowed in a prompt. A judge's prompt is never cut: its end asks for the verdict, and what
            is judged stands before it.
        drop_too_long: leave longer ones out and count them; else they are an error.

    Raises:
        DataError: the template refuses a row; a prompt too long; no row is left.
    """

    def measure(row: dict) -> dict:
        try:
            text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise BadRow("prompt", f"the chat template refuses it: {error}") from error
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return {**row, "tokens": tokens, "begun": begun_answer(text)}

    measured, left_out = check_rows(tqdm(rows, desc="measure", unit="row", delay=1), measure, on_bad_row)
    kept = [row for row in measured if row["tokens"] <= max_length]
    if too_long := sorted((row for row in measured if row["tokens"] > max_length), key=lambda row: -row["tokens"]):
        left_out[f"prompt of more than {max_length} tokens"] = len(too_long)
        if not drop_too_long:
            shown = [f"  {row['source']}: {row['tokens']} tokens" for row in too_long[:5]]
            head = f"{len(too_long)} of {len(rows)} prompts are longer than data.max_prompt_length={max_length} tokens:"
            remedy = "Raise data.max_prompt_length, or leave them out with data.filter_overlong_prompts=True."
            raise DataError("\n".join([head, *shown, remedy]))
    if not kept:
        raise DataError(f"no row is left: {'; '.join(f'{count} x {kind}' for kind, count in left_out.items())}")
    return kept, left_out


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


def digest(rows: list[dict]) -> str:
    """Identify rows and their order, so that a run is not resumed on other data."""
    total = hashlib.sha256()
    for row in rows:
        total.update(repr((row["prompt"], row["label"])).encode())
    return total.hexdigest()[:16]


def report_rows(name: str, rows: list[dict], left_out: Counter) -> None:
    """Say how many rows there are, how long, how the labels are spread, and what was left out."""
    if not rows:
        return
    labels, tokens = Counter(row["label"] for row in rows), [row["tokens"] for row in rows]
    spread = ", ".join(f"{verdict}: {labels[verdict]}" for verdict in VERDICTS)
    print(f"{name}: {len(rows)} prompts of {sum(tokens) / len(tokens):.0f} tokens, the longest {max(tokens)}; {spread}")
    for kind, count in left_out.items():
        print(f"  left out: {count} x {kind}")
