"""Turn chat data, or the embedded demo, into the Parquet that train.py reads.

    python -m sft.prepare_data --source demo --output data
    python -m sft.prepare_data --source messages --path HuggingFaceH4/no_robots --output data   # or a local file

The demo is a judge's conversations about a world in which the right verdict is known. Conversations of a judge from
your own labels come from the judges' prepare_data.py, which knows their prompt: give it `--transcripts`. Prompts are
never on two sides of a split: two answers to one prompt stay together.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from common.benchmarks.overlap import add_without, leave_out, read_held_out
from common.conversation import DataError
from common.data_report import data_report
from common.demo.transcripts import comparing, scoring
from common.demo.world import pairwise_rows, pointwise_rows
from common.pairs import prompt_columns
from common.parquet import check_rows, list_counts, report_unread, split_by_prompt, write_rows
from common.sources import check_demo, load_source, sets_of

from .dataset import WEIGHTS, as_item, check_conversation, prompt_of
from .evaluate import are_numbers, find_judgements


def convert_conversations(rows: Iterable[dict], on_bad_row: str) -> tuple[list[dict], Counter]:
    """Return the rows' conversations, checked, and a count of what is left out: bad rows, repeated conversations."""
    numbered, rows = [], list(tqdm(rows, desc="read", unit="row", delay=1))
    columns = ("messages", *prompt_columns(list({name: None for row in rows for name in row})))
    report_unread(rows, columns, WEIGHTS)
    for number, row in enumerate(rows):
        if "messages" not in row:
            raise DataError(f"row {number} has no column messages; it has {sorted(row)}. Is --source right?")
        numbered.append({name: row.get(name) for name in columns} | {"source": f"row {number}"})
    checked, left_out = check_rows(numbered, check_conversation, on_bad_row)
    weighted = not all(all(row["trained"]) for row in checked)
    conversations = [add_weights(row) if weighted else row["messages"] for row in checked]
    unique = {repr(messages): {"messages": messages} for messages in conversations}
    if repeated := len(checked) - len(unique):
        left_out["repeated conversations"] = repeated
    if not unique:
        raise DataError(f"no usable row: {list_counts(left_out)}")
    return list(unique.values()), left_out


def add_weights(row: dict) -> list[dict]:
    """Return a checked row's messages, each with its weight: 1 if it is trained on, else 0."""
    trained = iter(row["trained"])
    return [{**turn, "weight": int(turn["role"] == "assistant" and next(trained))} for turn in row["messages"]]


def demo_splits(sizes: dict[str, int], seed: int) -> dict[str, list[dict]]:
    """Return the demo's conversations: the first half scores a response, the second half compares two."""
    splits = {}
    for split, size in sizes.items():
        scored = [scoring(row) for row in pointwise_rows(split, size - size // 2, seed)]
        compared = [comparing(row) for row in pairwise_rows(split, size // 2, seed)]
        splits[split] = [{"messages": messages} for messages in scored + compared]
    return splits


def describe_verdicts(rows: list[dict]) -> str:
    """Say how often each verdict is the right one: a judge must do better than always giving the most frequent."""
    balance = []
    for kind, judgements in find_judgements(rows).items():
        counts = Counter(verdict for _, verdict in judgements)
        order = sorted(counts, key=float if are_numbers(counts) else str)
        balance.append(f"{kind} " + ", ".join(f"{verdict}: {counts[verdict]}" for verdict in order))
    return "; ".join(balance) or "no verdicts, so not a judge's data"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write train.parquet, val.parquet and test.parquet of conversations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", required=True, choices=("demo", "messages"))
    parser.add_argument("--path", help="local file or hub id; not for the demo")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=THEIRS", help="what the data calls a column")
    parser.add_argument("--split", default="train", help="of a hub set")
    parser.add_argument("--output", required=True, help="folder to write into")
    add_without(parser)
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-rows", type=int, default=6000, help="training conversations of the demo")
    options = parser.parse_args()

    check_demo(options.source, options.path, options.columns, options.without)
    held_out = read_held_out(options.without)
    datasets = set()
    if options.source == "demo":
        splits, left_out = demo_splits({"train": options.demo_rows, "val": 300, "test": 600}, options.seed), Counter()
    elif not options.path:
        raise DataError("--source messages needs --path: a local file or a hub id")
    else:
        rows, datasets = load_source(options.path, options.split, options.columns), sets_of(options.path)
        rows, left_out = convert_conversations(rows, options.on_bad_row)
        rows, also_held_out = leave_out(rows, held_out)
        left_out += also_held_out
        share = options.val_share
        ratio = {"train": 1 - 2 * share, "val": share, "test": share}
        splits = split_by_prompt(rows, ratio, options.seed, prompt_of)
    for split, rows in splits.items():
        path = write_rows(Path(options.output) / f"{split}.parquet", rows, datasets)
        print(f"{path}: {len(rows)} conversations; {describe_verdicts(rows)}")
    for kind, count in left_out.items():
        print(f"left out: {count} x {kind}")
    items_of = {
        split: [as_item({**row, "source": f"{split} row {number}"}) for number, row in enumerate(rows)]
        for split, rows in splits.items()
    }
    print("\n".join(data_report(items_of)))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"prepare_data.py: {error}") from None
