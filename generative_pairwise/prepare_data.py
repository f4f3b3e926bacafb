"""Turn compared responses, or the embedded demo, into the Parquet that train.py reads.

    python -m generative_pairwise.prepare_data --source demo       --output data
    python -m generative_pairwise.prepare_data --source pairwise   --path pairs.parquet --output data
    python -m generative_pairwise.prepare_data --source helpsteer3 --output data                        # from the hub
    python -m generative_pairwise.prepare_data --source ultrafeedback --path prefs.jsonl --output data  # a local file

Every source is one small function from its row to a labelled row, for which prompt.py then writes the prompt in both
orders. All that the judge is shown stands in the file, and can be measured. Responses that a source finds equal are
ties, and stay; a missing or unknown label is a fault, never a tie. Dialogues are never on two sides of a split: it is
made by them, not by row. Printed at the end is what a trainer should know: how the labels are spread, what a judge gets
that always says the same, how far mere length tells the label, what was left out.

`--transcripts` also writes the same rows, in the same splits, as conversations for `sft`: the prompt and the right
answer. A judge has to learn the form of its answer there before GRPO can improve it here.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from math import inf, isfinite
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tqdm import tqdm

from common.benchmarks.overlap import add_without, leave_out, read_held_out
from common.conversation import (
    BadRow,
    Conversation,
    DataError,
    read_marked_turns,
    read_transcript,
)
from common.data_report import data_report
from common.demo.world import PREFERENCE_RUBRIC, pairwise_rows
from common.judging.rubric import read_rubric
from common.pairs import optional_columns, read_pair
from common.parquet import check_rows, list_counts, split_by_prompt, write_rows
from common.sources import check_demo, load_source, sets_of

from .dataset import as_item, prompt_of, turn_round, write_prompts
from .prompt import RUBRIC, SWAPPED, VERDICTS, read_row, transcripts

WRITTEN = ("input", "prompt", "prompt_swapped", "label", "rubric", "responses", "strength", "longer", "data_source")
POSITION_BIAS = 0.65  # of the demo's warm start: ties are called "A", what stands first, more often than not


def compared(
    dialogue: Conversation, response_a: str, response_b: str, preferred: str, strength: float | None = None
) -> dict:
    """Return two responses and which is better, by how much, as a labelled row."""
    output = [{"answer": {"role": "assistant", "content": response}} for response in (response_a, response_b)]
    return {"input": dialogue, "output": output, "metadata": {"preferred": preferred, "preference_strength": strength}}


def signed(column: str, b_is_better_by: object, largest: float = inf) -> tuple[str, float | None]:
    """Return who is better and by how much, of a strength whose sign says who; 0 is a tie, nothing is a fault."""
    value = number(column, b_is_better_by)
    if abs(value) > largest:
        raise BadRow(column, f"expected a strength from -{largest} to {largest}", value)
    return "B" if value > 0 else "A" if value < 0 else "tie", abs(value) or None


def number(column: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadRow(column, "expected a number", value)
    return value


def chosen_and_rejected(row: dict, preferred: str = "A", strength: float | None = None) -> dict:
    """Return two conversations that differ in the last turn alone as a labelled row, `chosen` as response A."""
    wanted = ("chosen", "rejected", *optional_columns(list(row)))
    chosen, rejected = read_pair({name: row[name] for name in wanted if name in row})
    if isinstance(chosen, str):
        raise BadRow("chosen", "expected a conversation, found plain text", chosen)
    return compared(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], preferred, strength)


def from_demo(row: dict) -> dict:
    """Labelled rows, with what the demo's better responses are better at."""
    return {**row, "rubric": PREFERENCE_RUBRIC}


def from_pairwise(row: dict) -> dict:
    """Labelled rows as they are, cells of JSON text too."""
    kept = {name: row[name] for name in ("input", "output", "metadata")}
    return kept | ({"reasoning": row["reasoning"]} if "reasoning" in row else {})


def from_helpsteer2(row: dict) -> dict:
    """`preference_strength`, -3 to 3, is positive where response 2 is better. `prompt` marks its later turns.

    The column `split` is not used: rows are split again.
    """
    dialogue = read_marked_turns(row["prompt"])
    preference = signed("preference_strength", row["preference_strength"], largest=3)
    return compared(dialogue, row["response_1"], row["response_2"], *preference)


def from_helpsteer3(row: dict) -> dict:
    """`overall_preference`, -3 to 3, is positive where response 2 is better. `context` is a list of messages."""
    preference = signed("overall_preference", row["overall_preference"], largest=3)
    return compared(row["context"], row["response1"], row["response2"], *preference)


def from_ultrafeedback(row: dict) -> dict:
    """GPT-4's scores; pairs of equal score are ties."""
    chosen, rejected = (number(column, row[column]) for column in ("score_chosen", "score_rejected"))
    if chosen < rejected:
        raise BadRow("score_chosen", "chosen is scored below rejected", [chosen, rejected])
    return chosen_and_rejected(row, *signed("score_rejected", rejected - chosen))


def from_hh_rlhf(row: dict) -> dict:
    """Transcripts as one text, turn by turn."""
    return chosen_and_rejected({side: read_transcript(side, row[side]) for side in ("chosen", "rejected")})


class Source(NamedTuple):
    convert: Callable[[dict], dict]
    hub: str | None = None
    split: str = "train"
    options: dict[str, str] = {}
    chosen_first: bool = False  # then every second pair is turned round, so that either letter is right equally often


SOURCES = {
    "demo": Source(from_demo),
    "pairwise": Source(from_pairwise),
    "helpsteer2": Source(from_helpsteer2, "nvidia/HelpSteer2", options={"data_dir": "preference"}),
    "helpsteer3": Source(from_helpsteer3, "nvidia/HelpSteer3", options={"name": "preference"}),
    "ultrafeedback": Source(
        from_ultrafeedback, "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", chosen_first=True
    ),
    "skywork": Source(chosen_and_rejected, "Skywork/Skywork-Reward-Preference-80K-v0.2", chosen_first=True),
    "hh-rlhf": Source(from_hh_rlhf, "Anthropic/hh-rlhf", chosen_first=True),
}


def convert_comparisons(
    rows: Iterable[dict], name: str, rubric: str | None, on_bad_row: str
) -> tuple[list[dict], Counter]:
    """Convert a source's rows and write their prompts, by `rubric` or else the source's own.

    Returns:
        The rows with their prompts, what each was made of, one labelled row or several, under "judged";
        and how many were bad or repeated.
    """
    source = SOURCES[name]

    def convert(numbered: dict) -> dict:
        row, place = numbered["row"], numbered["source"]
        try:
            labelled = source.convert(row)
        except KeyError as missing:
            raise DataError(f"{place} has no column {missing}; it has {sorted(row)}. Is --source right?") from None
        judged = read_row(labelled)
        return write_prompts(judged, rubric or labelled.get("rubric", RUBRIC)) | {
            "data_source": name,
            "judged": [judged],
        }

    numbered = [{"row": row, "source": f"row {number}"} for number, row in enumerate(rows)]
    converted, left_out = check_rows(tqdm(numbered, desc="convert", unit="row", delay=1), convert, on_bad_row)
    unique: dict[tuple[str, str], dict] = {}
    for row in converted:
        known = unique.setdefault(pair_key(row), row)
        if known is not row:
            known["judged"] += row["judged"]  # its reasoning, or its order, may be another
    left_out += Counter({"repeated pairs with the same label": len(converted) - len(unique)})
    if not unique:
        raise DataError(f"no usable row: {list_counts(left_out)}")
    pairs = list(unique.values())
    if source.chosen_first:
        pairs[1::2] = [
            turn_round(pair) | {"judged": [judged.swap() for judged in pair["judged"]]} for pair in pairs[1::2]
        ]
    return pairs, left_out


def pair_key(row: dict) -> tuple[str, str]:
    """Return what a pair has in common with itself in the other order."""
    as_given = row["prompt"][-1]["content"], row["label"]
    return min(as_given, (row["prompt_swapped"][-1]["content"], SWAPPED[row["label"]]))


def write_warm_start(path: Path, size: int, seed: int, rubric: str) -> None:
    """Write a biased annotator's judgements of the demo, for SFT, and say how often it is wrong."""
    biased, right = (pairwise_rows("train", size, seed, bias) for bias in (POSITION_BIAS, 0.0))
    known = [read_row(row) for row in biased if is_known(row)]
    write_rows(path, [{"messages": messages} for judged in known for messages in transcripts(judged, rubric)])
    ties = [is_tie(judged) for judged, row in zip(biased, right) if is_tie(row)]
    called_a = f"{ties.count(False)} of {len(ties)} ties are called A"
    print(f"{path}: {len(known)} conversations of a biased annotator; {called_a}")


def is_known(row: dict) -> bool:
    """Return whether prompt.py knows the preference of a row of the demo; a judge may know no ties."""
    return row["metadata"]["preferred"] in VERDICTS


def is_tie(row: dict) -> bool:
    return row["metadata"]["preferred"] == "tie"


def conversations(rows: list[dict]) -> list[dict]:
    """Return all different conversations of converted rows, also of those that make the same prompt and label."""
    different = {}
    for row in rows:
        for judged in row["judged"]:
            for messages in transcripts(judged, row["rubric"]):
                different.setdefault(repr(messages), {"messages": messages})
    return list(different.values())


def describe(rows: list[dict]) -> str:
    """Say how the labels are spread, what always saying one of them gets, and how far mere length tells them."""
    counts, prompts = Counter(row["label"] for row in rows), Counter(pair_key(row)[0] for row in rows)
    spread = ", ".join(f"{label}: {counts[label]}" for label in VERDICTS)
    longer = mean(row["longer"] == row["label"] for row in rows)
    lines = [f"{len(rows)} pairs, each in both orders; labels {spread}"]
    lines.append(f"always tie: {counts['tie'] / len(rows):.1%} right in both orders")
    lines.append(f"always the longer response: {longer:.1%} right in both orders")
    if disputed := sum(count > 1 for count in prompts.values()):
        lines.append(f"annotators disagree on {disputed} of the pairs: each of their labels is a row")
    return "\n  ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write train.parquet, val.parquet and test.parquet of a judge's prompts and their labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--path", help="local file or hub id, if it is not the source's own; not for the demo")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=THEIRS", help="what the data calls a column")
    parser.add_argument("--split", help="of a hub set; default: the source's own for training")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--transcripts", action="store_true", help="also write transcripts/*.parquet for sft")
    parser.add_argument("--rubric", type=Path, help="text file: what to judge by; default: the source's own rubric")
    add_without(parser)
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-rows", type=int, default=2000, help="training pairs of the demo")
    parser.add_argument("--biased-transcripts", type=int, default=0, help="of the demo, as warm_start.parquet for SFT")
    options = parser.parse_args()

    check_demo(options.source, options.path, options.columns, options.without)
    held_out = read_held_out(options.without)
    source = SOURCES[options.source]
    rubric = read_rubric(options.rubric)
    if options.biased_transcripts and options.source != "demo":
        raise DataError("--biased-transcripts can be made of --source demo alone")
    output, left_out, datasets = Path(options.output), Counter(), set()
    shown = output / "transcripts"
    if shown.is_dir() and not options.transcripts:  # of an earlier split: they may hold what is held out now
        raise DataError(f"{shown} is of an earlier run. Give --transcripts, or use another --output.")
    if options.source == "demo":
        splits = {}
        for split, size in {"train": options.demo_rows, "val": 100, "test": 200}.items():
            rows = [row for row in pairwise_rows(split, size, options.seed) if is_known(row)]
            splits[split], repeated = convert_comparisons(rows, options.source, rubric, options.on_bad_row)
            left_out += repeated
        if size := options.biased_transcripts:  # of another seed, so that GRPO's rows are not those that SFT has seen
            write_warm_start(output / "warm_start.parquet", size, options.seed + 1, rubric or PREFERENCE_RUBRIC)
    elif not (options.path or source.hub):
        raise DataError(f"--source {options.source} needs --path: a local file or a hub id")
    else:
        place, split = options.path or source.hub, options.split or source.split
        rows, datasets = load_source(place, split, options.columns, **source.options), sets_of(place)
        rows, left_out = convert_comparisons(rows, options.source, rubric, options.on_bad_row)
        rows, also_held_out = leave_out(rows, held_out)
        left_out += also_held_out
        share = options.val_share
        ratio = {"train": 1 - 2 * share, "val": share, "test": share}
        splits = split_by_prompt(rows, ratio, options.seed, prompt_of)
    items_of = {}
    for split, rows in splits.items():
        written = [{column: row[column] for column in WRITTEN} for row in rows]
        path = write_rows(output / f"{split}.parquet", written, datasets)
        print(f"{path}: {describe(rows)}")
        items_of[split] = [as_item({**row, "source": f"{split} row {number}"}) for number, row in enumerate(rows)]
        if options.transcripts:
            write_rows(shown / f"{split}.parquet", conversations(rows), datasets)
    for kind, count in left_out.items():
        print(f"left out: {count} x {kind}")
    print("\n".join(data_report(items_of)))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"prepare_data.py: {error}") from None
