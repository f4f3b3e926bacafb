"""Evaluation cases as training data: one query, its responses, and what people said of them, for all four methods.

    bradley_terry          every two responses of which one is better: chosen, rejected, margin
    sft                    a judge's conversations about each scored response, and about each two in both orders
    generative_pointwise   every scored response: input, output, label
    generative_pairwise    every two responses, ties too: input, output, metadata

Where a case has scores, every two responses of it are compared by them; a stated preference must agree.
"""

from itertools import combinations

from common.conversation import BadRow, read_conversation
from common.judge import PREFERENCES, SCORES, Preference
from common.labelled import (
    pairwise_transcripts,
    pointwise_transcript,
    read_comparison,
    read_dialogue,
)

METHODS = ("bradley_terry", "sft", "generative_pointwise", "generative_pairwise")
COLUMNS = ("query", "responses", "scores", "preference")


def read_case(row: dict) -> dict:
    """Return a row's "case" checked, its query as `input`; raise `BadRow` where it is none."""
    case = row["case"]
    if not isinstance(case, dict):
        raise BadRow("case", f"expected a case of {', '.join(COLUMNS)}", case)
    missing = [name for name in COLUMNS[:2] if case.get(name) is None]
    if missing:
        raise BadRow(missing[0], f"expected a case of {', '.join(COLUMNS)}", sorted(case))
    dialogue, responses = read_dialogue(case["query"], "query"), case["responses"]
    if not isinstance(responses, list) or not responses:
        raise BadRow("responses", "expected a list of texts", responses)
    for response in responses:
        if not isinstance(response, str):
            raise BadRow("responses", "expected texts", response)
        read_conversation("responses", [*dialogue, _turn(response)])
    scores, preference = case.get("scores"), case.get("preference")
    if scores is None and preference is None:
        raise BadRow("scores", "neither scores nor a preference: nothing to learn from")
    if scores is not None:
        _check_scores(scores, len(responses))
    if preference is not None:
        if preference not in PREFERENCES or len(responses) != 2:
            raise BadRow("preference", f"expected one of {', '.join(PREFERENCES)}, for two responses", preference)
        if scores is not None and preference != _better(*scores):
            raise BadRow("preference", "contradicts the scores", f"{preference} with {scores}")
    read = {"input": dialogue, "responses": responses, "scores": scores, "preference": preference}
    for row in _comparisons(read):
        read_comparison(row)
    return read


def method_rows(cases: list[dict]) -> dict[str, list[dict]]:
    """Return the rows of each method, from checked cases."""
    rows: dict[str, list[dict]] = {method: [] for method in METHODS}
    for case in cases:
        scored = [
            {"input": case["input"], "output": [_answer(response)], "label": score}
            for response, score in zip(case["responses"], case["scores"] or [])
        ]
        compared = _comparisons(case)
        rows["generative_pointwise"] += scored
        rows["generative_pairwise"] += compared
        rows["sft"] += [{"messages": pointwise_transcript(row)} for row in scored]
        rows["sft"] += [{"messages": messages} for row in compared for messages in pairwise_transcripts(row)]
        rows["bradley_terry"] += [pair for row in compared if (pair := _pair(row))]
    return rows


def _comparisons(case: dict) -> list[dict]:
    scores = case["scores"]
    if scores is None:
        verdicts = [((0, 1), case["preference"], None)]
    else:
        places = combinations(range(len(scores)), 2)
        verdicts = [((a, b), _better(scores[a], scores[b]), abs(scores[a] - scores[b]) or None) for a, b in places]
    return [
        {
            "input": case["input"],
            "output": [_answer(case["responses"][place]) for place in pair],
            "metadata": {"preferred": preferred, "preference_strength": strength},
        }
        for pair, preferred, strength in verdicts
    ]


def _pair(row: dict) -> dict | None:
    comparison = read_comparison(row)
    if comparison.preferred == "tie":
        return None
    better = comparison if comparison.preferred == "A" else comparison.swap()
    chosen, rejected = ([*better.dialogue, _turn(text)] for text in (better.response_a, better.response_b))
    return {"chosen": chosen, "rejected": rejected, "margin": float(row["metadata"]["preference_strength"] or 0)}


def _better(score_a: int, score_b: int) -> Preference:
    return "tie" if score_a == score_b else "A" if score_a > score_b else "B"


def _check_scores(scores: object, responses: int) -> None:
    whole = isinstance(scores, list) and all(type(score) is int and score in SCORES for score in scores)
    if not whole or len(scores) != responses:
        raise BadRow("scores", f"expected a whole number of 0 to {SCORES[-1]} for each response", scores)


def _turn(response: str) -> dict[str, str]:
    return {"role": "assistant", "content": response}


def _answer(response: str) -> dict:
    return {"answer": _turn(response)}
