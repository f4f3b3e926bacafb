"""Turn public preference sets, or the embedded demo, into the Parquet that train.py reads.

    python -m bradley_terry.prepare_data --source demo        --output data
    python -m bradley_terry.prepare_data --source helpsteer3  --output data                                    # the hub
    python -m bradley_terry.prepare_data --source ultrafeedback --path train_prefs.parquet --output data  # a file

Every source is one small function from its row to `Preference`, or to None if the annotators saw no difference: a
tie says nothing about which answer is better, so it is counted and left out, never written as a pair. Prompts are never
on two sides of a split. Printed at the end is what a trainer should know about the data: how many rows, ties and
duplicates, and how often simply the longer answer is the better one.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.conversation import BadRow, Conversation, DataError, read_marked_turns, read_transcript
from common.demo.world import preference_pairs
from common.parquet import check_rows, split_by_prompt, write_rows
from common.sources import load_source

from .dataset import check_pair, prompt_of


class Preference(NamedTuple):
    """Two conversations that share their prompt; margin: how much better chosen is, in the source's own units."""

    chosen: Conversation | str
    rejected: Conversation | str
    margin: float | None = None


def prefer(prompt: Conversation, first: str, second: str, second_is_better_by: float) -> Preference | None:
    """Order two answers to a prompt by a signed strength; 0 is a tie."""
    if second_is_better_by == 0:
        return None
    better, worse = (second, first) if second_is_better_by > 0 else (first, second)
    chosen, rejected = ([*prompt, {"role": "assistant", "content": answer}] for answer in (better, worse))
    return Preference(chosen, rejected, abs(float(second_is_better_by)))


def from_helpsteer2(row: dict) -> Preference | None:
    """`preference_strength`, -3 to 3, is positive where response 2 is better. `prompt` marks its later turns."""
    prompt = read_marked_turns(row["prompt"])
    return prefer(prompt, row["response_1"], row["response_2"], row["preference_strength"])


def from_helpsteer3(row: dict) -> Preference | None:
    """`overall_preference`, -3 to 3, is positive where response 2 is better. `context` is a list of messages."""
    return prefer(row["context"], row["response1"], row["response2"], row["overall_preference"])


def from_ultrafeedback(row: dict) -> Preference | None:
    """GPT-4's scores; pairs of equal score are ties."""
    gap = row["score_chosen"] - row["score_rejected"]
    return Preference(row["chosen"], row["rejected"], gap) if gap > 0 else None


def from_skywork(row: dict) -> Preference:
    """Already pairs of conversations, without a strength."""
    return Preference(row["chosen"], row["rejected"])


def from_hh_rlhf(row: dict) -> Preference:
    """Transcripts as one text, turn by turn."""
    return Preference(*(read_transcript(side, row[side]) for side in ("chosen", "rejected")))


class Source(NamedTuple):
    convert: Callable[[dict], Preference | None]
    hub: str
    split: str = "train"
    options: dict[str, str] = {}


SOURCES = {
    "helpsteer2": Source(from_helpsteer2, "nvidia/HelpSteer2", options={"data_dir": "preference"}),
    "helpsteer3": Source(from_helpsteer3, "nvidia/HelpSteer3", options={"name": "preference"}),
    "ultrafeedback": Source(from_ultrafeedback, "HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    "skywork": Source(from_skywork, "Skywork/Skywork-Reward-Preference-80K-v0.2"),
    "hh-rlhf": Source(from_hh_rlhf, "Anthropic/hh-rlhf"),
}


def convert_pairs(rows: Iterable[dict], convert: Callable[[dict], Preference | None]) -> tuple[list[dict], Counter]:
    """Convert a source's rows and count what is left out: ties, repeated pairs, rows that are not a preference."""
    pairs, left_out, seen = [], Counter(), set()
    for number, row in enumerate(tqdm(rows, desc="convert", unit="row")):
        try:
            preference = convert(row)
        except KeyError as missing:
            raise DataError(f"row {number} has no column {missing}; it has {sorted(row)}. Is --source right?") from None
        except (TypeError, BadRow) as error:
            raise DataError(f"row {number} has columns of another kind: {error}. Is --source right?") from error
        if preference is None:
            left_out["ties"] += 1
        elif (key := repr(preference[:2])) in seen:
            left_out["repeated pairs"] += 1
        else:
            seen.add(key)
            pairs.append({**preference._asdict(), "source": f"row {number}"})
    good, bad = check_rows(pairs, check_pair, "drop")
    return [{name: row[name] for name in ("chosen", "rejected", "margin")} for row in good], left_out + bad


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
    parser.add_argument("--path", help="hub id or local file, if it is not the source's usual one")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-pairs", type=int, default=10000, help="training pairs of the demo")
    options = parser.parse_args()

    if options.source == "demo":
        sizes = {"train": options.demo_pairs, "val": 500, "test": 1000}
        splits = {split: preference_pairs(split, size, options.seed) for split, size in sizes.items()}
        left_out = Counter()
    else:
        source = SOURCES[options.source]
        rows, left_out = convert_pairs(
            load_source(options.path or source.hub, source.split, **source.options), source.convert
        )
        share = options.val_share
        ratio = {"train": 1 - 2 * share, "val": share, "test": share}
        splits = split_by_prompt(rows, ratio, options.seed, prompt_of)
    for split, rows in splits.items():
        path = write_rows(Path(options.output) / f"{split}.parquet", rows)
        print(f"{path}: {len(rows)} pairs, the longer answer is the better one in {longer_wins(rows):.1%}")
    for kind, count in left_out.items():
        print(f"left out: {count} x {kind}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"prepare_data.py: {error}") from None
