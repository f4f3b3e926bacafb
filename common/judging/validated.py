"""The answers of a judge's training on the validation rows, as rows of a page.

verl writes them down at each validation, as text without special tokens. (None of these stands in a verdict: see
`check_vocabulary`.) It does not say of which row they are, so an answer is brought back to its row by the prompt. One
whose prompt is not found is shown all the same, with the prompt as verl wrote it. Of several answers to a prompt
(`val_kwargs.n`) each is a row of the page.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.generation import Answer
from common.judging.examples import judge_examples
from common.judging.votes import fault_of
from common.page.page import Examples
from common.tokenizer import encode_texts, render

BASELINES = {"majority_acc": "acc"}
MEANING = (
    "Of greedy answers to the validation prompts, means. reward: the score; it chooses the best policy. majority_acc: "
    "what always giving the most frequent label reaches."
)


def beside_baseline(metrics: dict[str, float], rows: list[dict]) -> dict[str, float]:
    """Return a validation's figures with what always giving the most frequent label would reach, as majority_acc."""
    counts = Counter(row["label"] for row in rows)
    return metrics | {"majority_acc": max(counts.values()) / counts.total()}


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
        record: verl's file of the step, a line of JSON for each answer. If it is missing, as in a run that began
            before it was written, there are no rows, and that is printed.
        rows: the validation rows, as `measure_rows` returns them.
        parse: the method's: the verdict of an answer.
        longest: tokens that an answer may have.
        turn: see `judge_examples`.
    """
    if not record.is_file():
        print(f"{record}: no such file, so the page shows no answers")
        return judge_examples(name, [], [], [], [], turn)
    entries = [json.loads(line) for line in record.read_text(encoding="utf-8").split("\n") if line]
    found = find_rows([entry["input"] for entry in entries], places_of(rows, tokenizer))
    order = sorted(range(len(entries)), key=lambda number: found[number] or (len(rows), number))
    shown = []
    for number in order:
        place, turned = found[number] or (None, 0)
        row = unknown(number, entries[number]) if place is None else rows[place]
        shown.append(row | {"source": f"{row['source']}, answer {turned + 1}"} if turned else row)
    outputs = [entries[number]["output"] for number in order]
    clipped = [len(ids) >= longest for ids in encode_texts(outputs, tokenizer, special_tokens=False)] if outputs else []
    answers = [Answer(row["begun"] + text, over) for row, text, over in zip(shown, outputs, clipped)]
    verdicts = [parse(text) for text in answers]
    examples = judge_examples(
        name, shown, [[text] for text in answers], [[each] for each in verdicts], verdicts, turn, probable_fault
    )
    said = [entries[number].get("parsed") for number in order]  # 1 if the reward function found a verdict, else 0
    other = sum(each is not None and bool(each) != (verdict is not None) for each, verdict in zip(said, verdicts))
    notes = [examples.note] if examples.note else []
    if len({row["source"] for row in shown}) < len(shown):
        notes.append("The run's figures are over prompts: each order of a pair counts by itself.")
    if other:
        notes.append(
            f"{other} answers had a verdict for the reward function and have none here, or the other way round: their "
            "text without special tokens reads otherwise."
        )
        print(f"{record}: {notes[-1]}")
    return replace(examples, note=" ".join(notes))


def probable_fault(given: Answer) -> str:
    """Return why an answer has no verdict. Its tokens are those of its text, encoded again: about as many as it had."""
    return "its tokens ran out, probably: raise data.max_response_length" if given.clipped else fault_of(given)


def places_of(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the numbers of rows by their prompt as verl writes it down."""
    places: dict[str, list[int]] = {}
    texts = [render(tokenizer, row["prompt"], "prompt", add_generation_prompt=True) for row in rows]
    for number, ids in enumerate(encode_texts(texts, tokenizer, special_tokens=False) if texts else []):
        places.setdefault(tokenizer.decode(ids, skip_special_tokens=True), []).append(number)
    return places


def find_rows(prompts: list[str], places: dict[str, list[int]]) -> list[tuple[int, int] | None]:
    """Return for each answer its row's number and how many answers that row has before it; None: no row is known.

    Args:
        prompts: what was answered. places: of `places_of`; rows of equal prompts get their answers in turn.
    """
    found, seen = [], Counter()
    for prompt in prompts:
        rows = places.get(prompt)
        found.append(rows and (rows[seen[prompt] % len(rows)], seen[prompt] // len(rows)))
        seen[prompt] += 1
    return found


def unknown(number: int, entry: dict) -> dict:
    """Return an answer's row as far as verl's record knows it."""
    prompt = [{"role": "user", "content": entry["input"]}]
    return {"source": f"answer {number}", "label": entry["gts"], "prompt": prompt, "input": prompt, "begun": ""}
