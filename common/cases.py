"""Evaluation cases as training data: one query, its responses, and what people said of them.

    bradley_terry          every two responses if one of them is better: chosen, rejected, margin
    generative_pointwise   every scored response: input, output, label
    generative_pairwise    every two responses, ties too: input, output, metadata

If a case has scores, every two of its responses are compared by their scores; a stated preference must agree with them.
The judges' prepare_data.py makes conversations for `sft` from the last two.
"""

import json
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from common.conversation import BadRow, read_conversation, read_dialogue
from common.parquet import DataError, check_rows, fate_of, split_by_prompt, write_rows

KINDS = ("bradley_terry", "generative_pointwise", "generative_pairwise")  # named by the folder that reads them
COLUMNS = ("query", "responses", "scores", "preference")
PREFERENCES = ("A", "B", "tie")
FORMATS = ("parquet", "jsonl", "json")
SPLIT_RATIO = {"train": 0.8, "test": 0.2}


def export_cases(
    eval_cases: list[dict],
    output_dir: str | Path,
    formats: Iterable[str] = ("parquet",),
    split_ratio: dict[str, float] | None = None,
    seed: int = 0,
    on_bad_row: str = "error",
) -> dict[str, dict[str, list[Path]]]:
    """Write evaluation cases as training data of every kind that they can make.

    A case is `{"query": …, "responses": [text, …]}` with `"scores"`, a whole number for each response, or for two
    responses with `"preference"`: "A", "B" or "tie". The query is text or a whole dialogue. Cases are split before they
    become rows, so a query is on the same side of the split for every kind.

    Args:
        formats: of parquet, jsonl and json.
        split_ratio: split name -> share of the cases; by default {"train": 0.8, "test": 0.2}.

    Returns:
        The written paths, `output_dir/<kind>/<split>.<format>`, by kind and split. A kind for which the cases say
        nothing (no score, no preference) is left out. The same cases and seed give the same files.

    Raises:
        DataError: broken cases, all of them in one message; a split without a row of a kind; a folder that holds files
            of another export.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise DataError(f"formats: found {', '.join(unknown)}, expected some of parquet, jsonl, json")
    numbered = [{"case": case, "source": f"eval_cases row {number}"} for number, case in enumerate(eval_cases)]
    cases, dropped = check_rows(numbered, read_case, on_bad_row)
    for kind, count in dropped.items():
        print(f"dropped: {count} x {kind}")
    if not cases:
        raise DataError(f"eval_cases: no usable case{fate_of(dropped)}")
    splits = split_by_prompt(cases, split_ratio or SPLIT_RATIO, seed, prompt_of=lambda case: case["prompt"])
    rows_of = {name: rows_by_kind(part) for name, part in splits.items()}

    kinds = [kind for kind in KINDS if any(rows[kind] for rows in rows_of.values())]
    if empty := [f"{kind} in {split}" for kind in kinds for split in rows_of if not rows_of[split][kind]]:
        raise DataError(f"no row of {', '.join(empty)}: give more cases, other shares, or another seed")
    for kind in set(KINDS) - set(kinds):
        _check_no_other_export(Path(output_dir) / kind, list(splits))
    return {
        kind: {
            split: [write_rows(Path(output_dir) / kind / f"{split}.{form}", rows[kind]) for form in formats]
            for split, rows in rows_of.items()
        }
        for kind in kinds
    }


def _check_no_other_export(folder: Path, splits: list[str]) -> None:
    for split in splits:
        for form in FORMATS:
            if (path := folder / f"{split}.{form}").exists():
                raise DataError(f"{path} is of another export, and may hold what is held out here. Use another folder.")


def read_case(row: dict) -> dict:
    """Return a row's "case" checked, its query as `input`. Raise `BadRow` if it is not a case."""
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
    checked = {"input": dialogue, "responses": responses, "scores": scores, "preference": preference}
    for a, b, preferred, _ in _comparisons(checked):
        if a == b and preferred != "tie":
            raise BadRow("responses", "equal responses, one of them preferred", a)
    return checked | {"prompt": json.dumps(dialogue, sort_keys=True)}


def _check_scores(scores: object, responses: int) -> None:
    if not isinstance(scores, list) or len(scores) != responses or not all(type(score) is int for score in scores):
        raise BadRow("scores", "expected a whole number for each response", scores)


def rows_by_kind(cases: list[dict]) -> dict[str, list[dict]]:
    """Return the rows of each kind, from checked cases."""
    rows: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for case in cases:
        for response, score in zip(case["responses"], case["scores"] or []):
            scored = {"input": case["input"], "output": [{"answer": _turn(response)}], "label": score}
            rows["generative_pointwise"].append(scored)
        for a, b, preferred, strength in _comparisons(case):
            output = [{"answer": _turn(response)} for response in (a, b)]
            metadata = {"preferred": preferred, "preference_strength": strength}
            rows["generative_pairwise"].append({"input": case["input"], "output": output, "metadata": metadata})
            if preferred != "tie":
                better, worse = (a, b) if preferred == "A" else (b, a)
                chosen, rejected = ([*case["input"], _turn(response)] for response in (better, worse))
                margin = float(strength or 0)
                rows["bradley_terry"].append({"chosen": chosen, "rejected": rejected, "margin": margin})
    return rows


def _comparisons(case: dict) -> list[tuple[str, str, str, int | None]]:
    """Return every two responses of a case as (A, B, which is better, by how much if that is known)."""
    if case["scores"] is None:
        return [(*case["responses"], case["preference"], None)]
    scored = zip(case["responses"], case["scores"])
    return [
        (a, b, _better(score_a, score_b), abs(score_a - score_b) or None)
        for (a, score_a), (b, score_b) in combinations(scored, 2)
    ]


def _better(score_a: int, score_b: int) -> str:
    if score_a == score_b:
        return "tie"
    return "A" if score_a > score_b else "B"


def _turn(response: str) -> dict[str, str]:
    return {"role": "assistant", "content": response}
