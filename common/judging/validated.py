"""The answers of a judge's training on the validation rows, as rows of a page.

verl writes them down at each validation, as text without special tokens. (None of these stands in a verdict: see
`check_vocabulary`.) It does not say of which row they are, so an answer is brought back to its row by the prompt. One
whose prompt is not found is shown all the same, with the prompt as verl wrote it.
"""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.generation import Answer
from common.judging.examples import judge_examples
from common.page.page import Examples
from common.tokenizer import encode_texts, render


def validated_examples(
    name: str,
    record: Path,
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    parse: Callable[[str], object],
    longest: int,
    turn: Callable[[object], object] = lambda verdict: verdict,
) -> Examples:
    """Return validation rows with the answers of one step.

    Args:
        record: verl's file of the step, a line of JSON for each answer.
        rows: the validation rows, as `measure_rows` returns them.
        parse: the method's: the verdict of an answer.
        longest: tokens that an answer may have.
        turn: see `judge_examples`.
    """
    entries = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    places = places_of(rows, tokenizer)
    found = [places[entry["input"]].pop(0) if places.get(entry["input"]) else len(rows) for entry in entries]
    order = sorted(range(len(entries)), key=lambda number: found[number])
    shown = [rows[found[number]] if found[number] < len(rows) else unknown(number, entries[number]) for number in order]
    outputs = [entries[number]["output"] for number in order]
    clipped = [len(ids) >= longest for ids in encode_texts(outputs, tokenizer, special_tokens=False)] if outputs else []
    answers = [Answer(row["begun"] + text, over) for row, text, over in zip(shown, outputs, clipped)]
    verdicts = [parse(text) for text in answers]
    return judge_examples(name, shown, [[text] for text in answers], [[each] for each in verdicts], verdicts, turn)


def places_of(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the numbers of rows by their prompt as verl writes it down."""
    places: dict[str, list[int]] = {}
    texts = [render(tokenizer, row["prompt"], "prompt", add_generation_prompt=True) for row in rows]
    for number, ids in enumerate(encode_texts(texts, tokenizer, special_tokens=False) if texts else []):
        places.setdefault(tokenizer.decode(ids, skip_special_tokens=True), []).append(number)
    return places


def unknown(number: int, entry: dict) -> dict:
    """Return an answer's row as far as verl's record knows it."""
    prompt = [{"role": "user", "content": entry["input"]}]
    return {"source": f"answer {number}", "label": entry["gts"], "prompt": prompt, "input": prompt, "begun": ""}
