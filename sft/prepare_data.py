"""Turn labelled judgements, chat data or the embedded demo into the Parquet that train.py reads.

    python prepare_data.py --source demo --output data
    python prepare_data.py --source pointwise --path scores.parquet --output data   # input, output, label 0 to 4
    python prepare_data.py --source pairwise --path pairs.parquet --output data     # input, output, metadata.preferred
    python prepare_data.py --source messages --path HuggingFaceH4/no_robots --output data   # any chat data

A judgement becomes a conversation: the prompt that the judges are trained and served with (`common/judge.py`), and the
answer that they should give to it, `<think>why</think>` and the verdict. Why is the data's `reasoning` column where it
has one; without it the model learns the format and the verdict alone. Pairs without reasoning are written in both
orders. Prompts are never on two sides of a split: it is made before anything is rendered, so the two orders of a pair,
and two answers to one query, stay together.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from common.conversation import Conversation
from common.demo import PREFERENCE_RUBRIC, SCORE_RUBRIC, pairwise_rows, pointwise_rows
from common.judge import HELPFULNESS, MORE_HELPFUL
from common.labelled import PAIRWISE_COLUMNS, POINTWISE_COLUMNS, pairwise_transcripts, pointwise_transcript, read_rubric
from common.parquet import DataError, check_rows, split_by_prompt, write_rows
from common.sources import load_source

from dataset import check_conversation
from evaluate import find_judgements

COLUMNS = {"pointwise": POINTWISE_COLUMNS, "pairwise": PAIRWISE_COLUMNS, "messages": ("messages",)}
RUBRICS = {"pointwise": HELPFULNESS, "pairwise": MORE_HELPFUL, "messages": ""}


def read_source(rows: Iterable[dict], source: str) -> list[dict]:
    """Keep the columns that the source needs, and each row's number as its origin."""
    names = (*COLUMNS[source], "reasoning")
    kept = []
    for number, row in enumerate(tqdm(rows, desc="read", unit="row", delay=1)):
        if missing := [name for name in COLUMNS[source] if name not in row]:
            raise DataError(
                f"row {number} has no column {', '.join(missing)}; it has {sorted(row)}. Is --source right?"
            )
        kept.append({name: row[name] for name in names if name in row} | {"source": f"row {number}"})
    return kept


def transcripts(row: dict, source: str, rubric: str) -> list[Conversation]:
    """Return one row's conversations; raise `BadRow` where it is not what the source says."""
    if source == "messages":
        return [check_conversation(row)["messages"]]
    return [pointwise_transcript(row, rubric)] if source == "pointwise" else pairwise_transcripts(row, rubric)


def convert_rows(rows: list[dict], source: str, rubric: str, on_bad_row: str) -> tuple[list[dict], Counter]:
    """Convert a source's rows and count what is left out: bad rows, and repeated conversations.

    Returns:
        Rows with the source's columns and `conversations`.
    """
    converted, left_out = check_rows(
        rows, lambda row: {**row, "conversations": transcripts(row, source, rubric)}, on_bad_row
    )
    seen, unique = set(), []
    for row in converted:
        fresh = {repr(conversation): conversation for conversation in row["conversations"]}
        fresh = {key: conversation for key, conversation in fresh.items() if key not in seen}
        seen.update(fresh)
        if repeated := len(row["conversations"]) - len(fresh):
            left_out["repeated conversations"] += repeated
        if fresh:
            unique.append({**row, "conversations": list(fresh.values())})
    if not unique:
        raise DataError(f"no usable row: {'; '.join(f'{count} x {kind}' for kind, count in left_out.items())}")
    return unique, left_out


def demo_splits(sizes: dict[str, int], seed: int) -> dict[str, list[dict]]:
    """Return the demo's judgements, scores and comparisons in turn."""
    splits = {}
    for split, size in sizes.items():
        scored = [pointwise_transcript(row, SCORE_RUBRIC) for row in pointwise_rows(split, size - size // 2, seed)]
        compared = [pairwise_transcripts(row, PREFERENCE_RUBRIC)[0] for row in pairwise_rows(split, size // 2, seed)]
        splits[split] = [{"conversations": [conversation]} for conversation in scored + compared]
    return splits


def describe_verdicts(rows: list[dict]) -> str:
    """Say how often each verdict is the right one: a judge must do better than always giving the most frequent."""
    balance = []
    for kind, judgements in find_judgements(rows).items():
        counts = Counter(str(verdict) for _, verdict in judgements)
        balance.append(f"{kind} " + ", ".join(f"{verdict}: {counts[verdict]}" for verdict in sorted(counts)))
    return "; ".join(balance) or "no verdicts, so no judge's data"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write train.parquet, val.parquet and test.parquet of conversations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", required=True, choices=["demo", *COLUMNS])
    parser.add_argument("--path", help="local file or hub id; not for the demo")
    parser.add_argument("--split", default="train", help="of a hub set")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--rubric", type=Path, help="text file: what judges should judge by; default: helpfulness")
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-rows", type=int, default=6000, help="training conversations of the demo")
    options = parser.parse_args()

    if options.source == "demo":
        splits, left_out = demo_splits({"train": options.demo_rows, "val": 300, "test": 600}, options.seed), Counter()
    elif not options.path:
        raise DataError(f"--source {options.source} needs --path: a local file or a hub id")
    else:
        rubric = read_rubric(options.rubric) or RUBRICS[options.source]
        rows = read_source(load_source(options.path, options.split), options.source)
        rows, left_out = convert_rows(rows, options.source, rubric, options.on_bad_row)
        share = options.val_share
        splits = split_by_prompt(rows, {"train": 1 - 2 * share, "val": share, "test": share}, options.seed)
    for split, rows in splits.items():
        written = [{"messages": messages} for row in rows for messages in row["conversations"]]
        path = write_rows(Path(options.output) / f"{split}.parquet", written)
        print(f"{path}: {len(written)} conversations; {describe_verdicts(written)}")
    for kind, count in left_out.items():
        print(f"left out: {count} x {kind}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"prepare_data.py: {error}") from None
