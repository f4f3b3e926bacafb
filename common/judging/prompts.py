"""A judge's prompts once they are written: rendered and measured, and told apart.

A row is one prompt. Prompts that were made of the same labelled row (a comparison in both orders) have the same
"source" and stay together: if one of them is left out, so are the others.
"""

import hashlib
import sys
from collections import Counter

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.conversation import DataError
from common.generation import begun_answer, check_begun
from common.judging.tokens import TokenBreaker
from common.parquet import Faults, check_rows, list_counts, report_fault
from common.tokenizer import check_tokens, encode_texts, render


def measure_rows(
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    drop_too_long: bool,
    on_bad_row: str = "error",
    frame: str = "",
    embeddings: int = sys.maxsize,
    faults: Faults | None = None,
) -> tuple[list[dict], Counter]:
    """Render the prompts as they will be asked. Special tokens of this tokenizer in them are broken by a blank.

    Added are `tokens`, the length of the prompt through the chat template, and `begun`, what that wrote of the answer.
    If a token was broken, `written` is the prompt as it was. Who asks, asks with the `prompt` that is returned.

    Args:
        max_length: tokens allowed in a prompt. A judge's prompt is never cut: its end asks for the verdict, and what
            is judged stands before it.
        drop_too_long: leave longer ones out and count them; else they are an error.
        frame: the judge's prompt without its slots: the tags in it stay.
        embeddings: how many tokens the model knows; a prompt with another one is a bad row.
        faults: gathers what would be raised about rows.

    Returns:
        The rows that are left, and how many were left out, by reason.

    Raises:
        DataError: the template refuses a row, or begins its answer with other thinking tags than those of the prompt;
            a special token that cannot be broken; a prompt too long; no row is left.
    """
    break_tokens = TokenBreaker(tokenizer, frame)

    def measure(row: dict) -> dict:
        prompt = break_tokens(row["prompt"])
        text = render(tokenizer, prompt, "prompt", add_generation_prompt=True)
        check_begun(text, frame)
        (ids,) = encode_texts([text], tokenizer, special_tokens=False)
        check_tokens("prompt", ids, text, tokenizer, embeddings)
        broken = {} if prompt == row["prompt"] else {"prompt": prompt, "written": row["prompt"]}
        return {**row, **broken, "tokens": len(ids), "begun": begun_answer(text, frame)}

    measured, left_out = check_rows(tqdm(rows, desc="measure", unit="row", delay=1), measure, on_bad_row, faults)
    too_long = [row for row in measured if row["tokens"] > max_length]
    if too_long and not drop_too_long:
        report_fault(_report_too_long(too_long, len(rows), max_length), faults)
        return [], left_out

    # a labelled row is kept with all of its prompts, or not at all
    incomplete = Counter(row["source"] for row in rows) - Counter(row["source"] for row in measured)
    excluded = {*incomplete, *(row["source"] for row in too_long)}
    kept = [row for row in measured if row["source"] not in excluded]
    if too_long:
        left_out[f"prompt of more than {max_length} tokens"] = len(too_long)
    if others := len(rows) - len(kept) - left_out.total():
        left_out["prompt left out with another of its row"] = others
    if not kept and not faults:
        raise DataError(f"no row is left: {list_counts(left_out)}")
    if broken := sum("written" in row for row in kept):
        print(f"{broken} of {len(kept)} prompts held special tokens of this tokenizer, which are broken by a blank now")
    if any("</think>" in row["begun"] and "<think>" in row["prompt"][-1]["content"] for row in kept):
        print(
            "the chat template closes the reasoning that the prompt asks for: an answer may reason in a think block of"
        )
        print("its own, or not at all. For a judge that never reasons, PROMPT in prompt.py must not ask for it either")
    return kept, left_out


def _report_too_long(too_long: list[dict], total: int, max_length: int) -> str:
    longest = sorted(too_long, key=lambda row: -row["tokens"])[:5]
    places = [f"{row['source']}, {row['order']}" if "order" in row else row["source"] for row in longest]
    shown = [f"  {place}: {row['tokens']} tokens" for place, row in zip(places, longest)]
    head = f"{len(too_long)} of {total} prompts are longer than data.max_prompt_length={max_length} tokens:"
    raised = "Raise data.max_prompt_length (--max-prompt-length) if the model can take more, or leave them out:"
    left_out = "data.filter_overlong_prompts=True (--filter-overlong-prompts)."
    return "\n".join([head, *shown, raised, left_out])


def digest_prompts(rows: list[dict]) -> str:
    """Return a short hash of prompts and labels in their order, to tell whether two runs have the same.

    It is of the prompts as they were written, so that models of different tokenizers can be compared.
    """
    total = hashlib.sha256()
    for row in rows:
        strength = [row["strength"]] if row.get("strength") else []
        total.update(repr((row.get("written", row["prompt"]), row["label"], *strength)).encode())
    return total.hexdigest()[:16]
