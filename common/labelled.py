"""Labelled judgements in a table's rows, read and checked: a scored response, or two compared ones.

    pointwise   input    dialogue: list of {role, content}, JSON text of one, or the query as plain text
                output   one response: [{"answer": {"role": "assistant", "content": …}}]
                label    0 to 4
    pairwise    input    the same
                output   two responses, A then B
                metadata {"preferred": "A", "B" or "tie", "preference_strength": (optional), …}
    candidates  input    the same
                output   two responses or more, to be ranked
    all         reasoning (optional)   why, as text: what a judge should write before its verdict

Any cell may be JSON text. An empty response is a response, and a bad one; a missing label is an error, never a tie.
"""

import re
import sys
from pathlib import Path

from common.conversation import BadRow, Conversation, DataError, check_unicode, read_json, read_messages
from common.judge import (
    HELPFULNESS,
    MORE_HELPFUL,
    PREFERENCES,
    SCORES,
    Comparison,
    Preference,
    pairwise_prompt,
    pointwise_prompt,
    write_preference,
    write_score,
)

RESPONSE_FORM = '{"answer": {"role": "assistant", "content": text}}'
POINTWISE_COLUMNS = ("input", "output", "label")
PAIRWISE_COLUMNS = ("input", "output", "metadata")


def read_scored(row: dict) -> tuple[Conversation, str, int]:
    """Return dialogue, response and score of a pointwise row; raise `BadRow` where it is none."""
    (response,) = _read_responses(row["output"], 1)
    return read_dialogue(row["input"]), response, _read_score(row["label"])


def read_comparison(row: dict) -> Comparison:
    """Return a pairwise row as a `Comparison`; raise `BadRow` where it is none."""
    response_a, response_b = _read_responses(row["output"], 2)
    metadata = read_json("metadata", row["metadata"])
    preferred = metadata.get("preferred") if isinstance(metadata, dict) else None
    if preferred not in PREFERENCES:
        raise BadRow("metadata", f"`preferred` is not one of {', '.join(PREFERENCES)}", metadata)
    if response_a == response_b and preferred != "tie":
        raise BadRow("output", "equal responses, one of them preferred", response_a)
    return Comparison(read_dialogue(row["input"]), response_a, response_b, preferred)


def read_candidates(row: dict, least: int = 2) -> tuple[Conversation, list[str]]:
    """Return dialogue and responses, `least` or more, of a row without a label; raise `BadRow` where it is none."""
    return read_dialogue(row["input"]), _read_responses(row["output"], least, or_more=True)


def read_strength(row: dict) -> float | None:
    """Return how much better the better response of a pairwise row is, in the source's own units, if it says so."""
    metadata = read_json("metadata", row["metadata"])
    return check_strength("metadata", metadata.get("preference_strength"), metadata["preferred"])


def check_strength(column: str, strength: object, preferred: Preference) -> float | None:
    """Return a preference's strength; a tie has none, whatever is written. Raise `BadRow` where it is no strength."""
    if strength is None or preferred == "tie":
        return None
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= sys.float_info.max:
        raise BadRow(column, "the strength of a preference is a number above 0; leave it out if unknown", strength)
    return float(strength)


def longer_response(row: dict) -> Preference:
    """Return which response of a pairwise row has more characters."""
    response_a, response_b = _read_responses(row["output"], 2)
    return "tie" if len(response_a) == len(response_b) else "A" if len(response_a) > len(response_b) else "B"


def read_rubric(path: Path | None) -> str | None:
    """Return the text of a file that says what to judge by; None where there is no path. Raise `DataError` else."""
    if path is None:
        return None
    rubric = path.read_text("utf-8").strip() if path.is_file() else ""
    if not rubric:
        raise DataError(f"{path}: no such file, or nothing in it (looked in {Path.cwd()})")
    return rubric


def read_reasoning(row: dict) -> str:
    """Return the row's reasoning, or nothing where it has none."""
    reasoning = row.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadRow("reasoning", "expected text", reasoning)
    return reasoning or ""


def pointwise_transcript(row: dict, rubric: str = HELPFULNESS) -> Conversation:
    """Return a pointwise row as a judge's conversation: the prompt, and the answer it should give."""
    dialogue, response, score = read_scored(row)
    return _transcript(pointwise_prompt(dialogue, response, rubric), write_score(score, read_reasoning(row)))


def pairwise_transcripts(row: dict, rubric: str = MORE_HELPFUL) -> list[Conversation]:
    """Return a pairwise row as judge's conversations, in both orders so that no position is favoured.

    With a reasoning there is one: the reasoning speaks of A and B as they stand.
    """
    comparison, reasoning = read_comparison(row), read_reasoning(row)
    return [
        _transcript(
            pairwise_prompt(shown.dialogue, shown.response_a, shown.response_b, rubric),
            write_preference(shown.preferred, reasoning),
        )
        for shown in ([comparison] if reasoning else [comparison, comparison.swap()])
    ]


def _transcript(prompt: str, answer: str) -> Conversation:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def read_dialogue(value: object, column: str = "input") -> Conversation:
    """Return a row's `input` as messages, plain text as the user's; raise `BadRow` where it is none."""
    dialogue = read_messages(column, value)
    return [{"role": "user", "content": dialogue}] if isinstance(dialogue, str) else dialogue


def read_response(response: str, column: str = "response") -> str:
    """Return a response; raise `BadRow` where it is no text."""
    if not isinstance(response, str):
        raise BadRow(column, "expected text", response)
    return check_unicode(column, response)


def _read_responses(value: object, count: int, or_more: bool = False) -> list[str]:
    answers = read_json("output", value)
    if not isinstance(answers, list) or len(answers) < count or (len(answers) > count and not or_more):
        kind = f"expected a list of {count} {'or more ' * or_more}response{'s' * (count > 1)}, each {RESPONSE_FORM}"
        raise BadRow("output", kind, value)
    texts = []
    for answer in answers:
        message = answer.get("answer") if isinstance(answer, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str) or message.get("role") not in (None, "assistant"):
            raise BadRow("output", f"expected each response as {RESPONSE_FORM}", answer)
        texts.append(check_unicode("output", text))
    return texts


def _read_score(value: object) -> int:
    text = str(value).strip()
    if not re.fullmatch(r"[0-4](\.0+)?", text):
        raise BadRow("label", f"expected a whole number from {SCORES[0]} to {SCORES[-1]}", value)
    return int(text[0])
