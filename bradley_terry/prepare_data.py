"""Turn public preference sets, or the embedded demo, into the Parquet that train.py reads.

    python -m bradley_terry.prepare_data --source demo          --output data
    python -m bradley_terry.prepare_data --source pairs         --path mine.jsonl --output data         # your own pairs
    python -m bradley_terry.prepare_data --source pairs         --path mine.csv --columns chosen=better rejected=worse …
    python -m bradley_terry.prepare_data --source helpsteer3    --output data                           # from the hub
    python -m bradley_terry.prepare_data --source ultrafeedback --path train_prefs.parquet --output data  # a file

Every source is one small function from its row to a pair, or to None if the annotators saw no difference: a tie says
nothing about which answer is better, so it is counted and left out, never written as a pair. Prompts are never on two
sides of a split. Printed at the end is what a trainer should know about the data: how many rows, ties and duplicates,
and how often simply the longer answer is the better one.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.benchmarks.overlap import add_without, leave_out, read_held_out
from common.conversation import (
    BadRow,
    Conversation,
    DataError,
    read_dialogue,
    read_json,
    read_marked_turns,
    read_responses,
    read_transcript,
)
from common.data_report import data_report
from common.demo.world import preference_pairs
from common.pairs import DIFFERENT_PROMPTS
from common.parquet import check_rows, list_counts, report_unread, split_by_prompt, write_rows
from common.row_list import without_rows
from common.sources import check_demo, load_source, sets_of

from .dataset import as_item, check_pair, columns_beside, digest_row, prompt_of

WRITTEN = ("chosen", "rejected", "margin")


def prefer(prompt: Conversation, first: object, second: object, second_is_better_by: object) -> dict | None:
    """Order two answers to a prompt by a signed strength; 0 is a tie."""
    if isinstance(second_is_better_by, bool) or not isinstance(second_is_better_by, int | float):
        raise BadRow("preference_strength", "expected a number", second_is_better_by)
    if second_is_better_by == 0:
        return None
    better, worse = (second, first) if second_is_better_by > 0 else (first, second)
    chosen, rejected = ([*prompt, {"role": "assistant", "content": answer}] for answer in (better, worse))
    return {"chosen": chosen, "rejected": rejected, "margin": abs(float(second_is_better_by))}


def from_helpsteer2(row: dict) -> dict | None:
    """`preference_strength`, -3 to 3, is positive where response 2 is better. `prompt` marks its later turns."""
    prompt = read_marked_turns(row["prompt"])
    return prefer(prompt, row["response_1"], row["response_2"], row["preference_strength"])


def from_helpsteer3(row: dict) -> dict | None:
    """`overall_preference`, -3 to 3, is positive where response 2 is better. `context` is a list of messages."""
    return prefer(
        read_dialogue(row["context"], "context"), row["response1"], row["response2"], row["overall_preference"]
    )


def from_ultrafeedback(row: dict) -> dict | None:
    """GPT-4's scores; pairs of equal score are ties."""
    scores = [row["score_chosen"], row["score_rejected"]]
    if not all(isinstance(score, int | float) for score in scores):
        raise BadRow("score_chosen", "expected a number, and one in score_rejected", scores)
    if scores[0] < scores[1]:
        raise BadRow("score_chosen", "chosen is scored below rejected", scores)
    return from_pairs(row) | {"margin": scores[0] - scores[1]} if scores[0] > scores[1] else None


def from_pairs(row: dict) -> dict:
    """Pairs in the columns that training reads, and whatever else may be a part of their prompt."""
    wanted = ("chosen", "rejected", *columns_beside(list(row)))
    return {"chosen": row["chosen"], "rejected": row["rejected"]} | {name: row[name] for name in wanted if name in row}


def from_pairwise(row: dict) -> dict | None:
    """Rows of generative_pairwise: `input`, `output` of two responses, `metadata` with `preferred`. Any may be JSON."""
    first, second = read_responses(row["output"], 2, 2)
    metadata = read_json("metadata", row["metadata"])
    preferred = metadata.get("preferred") if isinstance(metadata, dict) else None
    if preferred not in ("A", "B", "tie"):
        raise BadRow("metadata", "`preferred` is not one of A, B, tie", metadata)
    strength = metadata.get("preference_strength")
    pair = prefer(read_dialogue(row["input"]), first, second, {"A": -1, "B": 1, "tie": 0}[preferred])
    return pair and pair | {"margin": strength}


def from_hh_rlhf(row: dict) -> dict:
    """Transcripts as one text, turn by turn."""
    return {side: read_transcript(side, row[side]) for side in ("chosen", "rejected")}


class Source(NamedTuple):
    convert: Callable[[dict], dict | None]
    hub: str | None = None
    split: str = "train"
    options: dict[str, str] = {}


SOURCES = {
    "pairs": Source(from_pairs),
    "pairwise": Source(from_pairwise),
    "helpsteer2": Source(from_helpsteer2, "nvidia/HelpSteer2", options={"data_dir": "preference"}),
    "helpsteer3": Source(from_helpsteer3, "nvidia/HelpSteer3", options={"name": "preference"}),
    "ultrafeedback": Source(from_ultrafeedback, "HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    "skywork": Source(from_pairs, "Skywork/Skywork-Reward-Preference-80K-v0.2"),
    "hh-rlhf": Source(from_hh_rlhf, "Anthropic/hh-rlhf"),
}


def convert_pairs(
    rows: Iterable[dict], convert: Callable[[dict], dict | None], on_bad_row: str, different_prompts: str = "error"
) -> tuple[list[dict], Counter]:
    """Convert a source's rows and count what is left out: ties, repeated pairs, rows that are not a preference.

    Raises:
        DataError: bad rows with on_bad_row="error"; no usable row.
    """

    def check(numbered: dict) -> dict:
        row, place = numbered["row"], numbered["source"]
        try:
            pair = convert(row)
        except KeyError as missing:
            found = f"{place} has no column {missing}; it has {sorted(row)}"
            raise DataError(f"{found}. Is --source right? --columns says what your columns are called") from None
        return {"pair": check_pair(pair, different_prompts) if pair else None}

    rows = list(rows)
    if convert is from_pairs and rows:
        names = list({name: None for row in rows for name in row})
        report_unread(rows, ("chosen", "rejected", *columns_beside(names)))
    numbered = [{"row": row, "source": f"row {number}"} for number, row in enumerate(rows)]
    checked, left_out = check_rows(tqdm(numbered, desc="convert", unit="row", delay=1), check, on_bad_row)
    pairs = [row["pair"] for row in checked if row["pair"]]
    unique = {repr((pair["chosen"], pair["rejected"])): pair for pair in reversed(pairs)}
    left_out |= {"ties": len(checked) - len(pairs), "repeated pairs": len(pairs) - len(unique)}
    left_out = +left_out
    if not unique:
        raise DataError(f"no usable row: {list_counts(left_out)}. Is --source right?")
    return list(reversed(unique.values())), left_out


def longer_wins(rows: list[dict]) -> float:
    """Share of pairs whose chosen answer has more characters, equal lengths counting one half: 0.5 is no bias."""
    sides = [
        [len(row[side] if isinstance(row[side], str) else row[side][-1]["content"]) for side in ("chosen", "rejected")]
        for row in rows
    ]
    return sum((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in sides) / len(sides)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write train.parquet, val.parquet and test.parquet of preference pairs."
    )
    parser.add_argument("--source", required=True, choices=["demo", *SOURCES])
    parser.add_argument("--path", help="local file or hub id, if it is not the source's own; not for the demo")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=THEIRS", help="what the data calls a column")
    parser.add_argument("--split", help="of a hub set; default: the source's own for training")
    parser.add_argument("--output", required=True, help="folder to write into")
    add_without(parser)
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--different-prompts", default="error", choices=DIFFERENT_PROMPTS, help="of the two sides")
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--without-rows", type=Path, help="a list of rows to leave out, as the page of a run saves it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-pairs", type=int, default=10000, help="training pairs of the demo")
    options = parser.parse_args()

    check_demo(options.source, options.path, options.columns, options.without)
    held_out = read_held_out(options.without)
    if options.source == "demo" and options.without_rows:
        raise DataError("--without-rows is for data of your own: the demo's labels are right")
    datasets = set()
    if options.source == "demo":
        sizes = {"train": options.demo_pairs, "val": 500, "test": 1000}
        splits = {split: preference_pairs(split, size, options.seed) for split, size in sizes.items()}
        left_out = Counter()
    else:
        source = SOURCES[options.source]
        if not (options.path or source.hub):
            raise DataError(f"--source {options.source} needs --path: a local file or a hub id")
        place, split = options.path or source.hub, options.split or source.split
        rows, datasets = load_source(place, split, options.columns, ["margin"], **source.options), sets_of(place)
        rows, left_out = convert_pairs(rows, source.convert, options.on_bad_row, options.different_prompts)
        rows, also_held_out = leave_out(rows, held_out)
        left_out += also_held_out
        share = options.val_share
        ratio = {"train": 1 - 2 * share, "val": share, "test": share}
        splits = split_by_prompt(rows, ratio, options.seed, prompt_of)
        if options.without_rows:
            splits, left_out["rows of --without-rows"] = without_rows(splits, options.without_rows, digest_row)
    has_subsets = any("subset" in row for rows in splits.values() for row in rows)
    columns = (*WRITTEN, "subset") if has_subsets else WRITTEN
    for split, rows in splits.items():
        written = [{name: row.get(name) for name in columns} for row in rows]
        path = write_rows(Path(options.output) / f"{split}.parquet", written, datasets)
        print(f"{path}: {len(rows)} pairs, the longer answer is the better one in {longer_wins(rows):.1%}")
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
