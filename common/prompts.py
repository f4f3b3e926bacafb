"""A judge's prompts once they are rendered: measured by the tokenizer, and told apart.

A row is one prompt. Rows that were rendered of the same labelled row (a comparison in both orders) share its "source"
and stay together: where one is left out, so are the others.
"""

import hashlib
from collections import Counter
from pathlib import Path

from jinja2 import TemplateError
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.conversation import BadRow
from common.files import write_text
from common.judge import begun_answer, rubric_of
from common.parquet import DataError, check_rows

RUBRIC_FILE = "rubric.txt"


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
    too_long = sorted((row for row in measured if row["tokens"] > max_length), key=lambda row: -row["tokens"])
    if too_long and not drop_too_long:
        where = [f"{row['source']}, {row['order']}" if "order" in row else row["source"] for row in too_long[:5]]
        shown = [f"  {place}: {row['tokens']} tokens" for place, row in zip(where, too_long)]
        head = f"{len(too_long)} of {len(rows)} prompts are longer than data.max_prompt_length={max_length} tokens:"
        remedy = "Raise data.max_prompt_length, or leave them out with data.filter_overlong_prompts=True."
        raise DataError("\n".join([head, *shown, remedy]))
    prompts = Counter(row["source"] for row in rows)
    usable = Counter(row["source"] for row in measured) - Counter(row["source"] for row in too_long)
    kept = [row for row in measured if usable[row["source"]] == prompts[row["source"]]]
    left_out |= {f"prompt of more than {max_length} tokens": len(too_long)} if too_long else {}
    if others := len(rows) - len(kept) - left_out.total():
        left_out["prompt left out with another of its row"] = others
    if not kept:
        raise DataError(f"no row is left: {'; '.join(f'{count} x {kind}' for kind, count in left_out.items())}")
    return kept, left_out


def store_rubric(folder: Path, rows: list[dict]) -> None:
    """Leave in a judge's checkpoint what it was trained to judge by, if that was one rubric, for those who ask it."""
    rubrics = {rubric_of(row["prompt"][-1]["content"]) for row in rows}
    if len(rubrics) == 1 and None not in rubrics:
        write_text(folder / RUBRIC_FILE, rubrics.pop())
    else:
        print(f"the training prompts have {len(rubrics)} rubrics or forms, so {folder.name} holds none for graders")


def read_stored_rubric(folder: str | None) -> str | None:
    """Return what the judge in a checkpoint's folder was trained to judge by, if its run left that there."""
    path = Path(folder) / RUBRIC_FILE if folder else None
    return path.read_bytes().decode() if path and path.is_file() else None


def digest(rows: list[dict]) -> str:
    """Identify rows and their order, so that a run is not resumed on other data."""
    total = hashlib.sha256()
    for row in rows:
        strength = [row["strength"]] if row.get("strength") else []
        total.update(repr((row["prompt"], row["label"], *strength)).encode())
    return total.hexdigest()[:16]
