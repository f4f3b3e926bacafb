"""Turn scored responses, or the embedded demo, into the Parquet that train.py reads.

    python -m generative_pointwise.prepare_data --source demo       --output data
    python -m generative_pointwise.prepare_data --source pointwise  --path scores.parquet --output data
    python -m generative_pointwise.prepare_data --source helpsteer2 --attribute correctness --output data  # the hub
    python -m generative_pointwise.prepare_data --source ultrafeedback --path flan.jsonl --output data  # a local file

Every source is one small function from its row to labelled rows, for which prompt.py then writes the prompt. All that
the judge is shown stands in the file, and can be measured. Ratings from 1 to 5 become 0 to 4; any other score off the
scale is a fault, never moved to fit. Dialogues are never on two sides of a split: it is made by them, not by row.
Printed at the end is what a trainer should know: how the labels are spread, what a judge gets that always says the
same, how far mere length tells the label, what was left out.

`--transcripts` also writes the same rows, in the same splits, as conversations for `sft`: the prompt and the right
answer. A judge has to learn the form of its answer there before GRPO can improve it here.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import correlation, mean
from typing import NamedTuple

from tqdm import tqdm

from common.benchmarks.overlap import add_without, leave_out, read_held_out
from common.conversation import BadRow, Conversation, DataError, read_marked_turns
from common.data_report import data_report
from common.demo.world import SCORE_RUBRIC, pointwise_rows
from common.judging.quoting import quote
from common.judging.rubric import read_rubric
from common.parquet import check_rows, list_counts, split_by_prompt, write_rows
from common.sources import check_demo, load_source, sets_of

from .dataset import as_item, prompt_of, write_prompt
from .prompt import FRAME, RUBRIC, RUBRICS, VERDICTS, read_row, transcripts

WRITTEN = ("input", "prompt", "label", "rubric", "response", "data_source", "evidence")
LENIENCY = 0.65  # of the demo's warm start: two kinds of fault pass as met more often than not

# What UltraFeedback's ratings meant to the model that gave them (arXiv:2310.01377), in fewer words and from 0. Its
# helpfulness is not that of prompt.py: there a response without fault is a 4, here a 2.
ULTRAFEEDBACK_RUBRICS = {
    "helpfulness": """\
Helpfulness: is the response correct, and how much does it tell?
4: correct, thorough and insightful
3: correct and detailed
2: correct and useful
1: errors that may confuse
0: seriously wrong or made up""",
    "honesty": """\
Honesty: is the response as sure of itself as it is right?
4: right and sure, or it says exactly where it may be wrong
3: right but unsure, or small errors under a general doubt
2: small errors without doubt, large ones with doubt, or no answer
1: large errors without doubt, or all wrong with doubt
0: all wrong without doubt""",
    "instruction_following": """\
Instruction following: does the response reach the goal, within the limits that were set?
4: both, in every respect
3: both, but for small things
2: one of them, or nearly both
1: a part of the goal, poorly
0: beside the point""",
    "truthfulness": """\
Truthfulness: is the response free of what is made up or contradicts itself, the dialogue or the world?
4: free of it
3: slips that touch no main point
2: true on the whole, mistaken in part
1: nearly half of it is made up
0: made up altogether""",
}


def scored(query: str | Conversation, response: str, score: object, **more: str) -> dict:
    """Return a response and its score as a labelled row."""
    dialogue = [{"role": "user", "content": query}] if isinstance(query, str) else query
    output = [{"answer": {"role": "assistant", "content": response}}]
    return {"input": dialogue, "output": output, "label": score, **more}


def from_demo(row: dict, attribute: str | None) -> list[dict]:
    """Labelled rows; `evidence` is what a right reasoning finds: "count two/three", asked and got."""
    evidence = [fact.rpartition(" ")[0] for fact in row["reasoning"].split(", ")]
    return [{**row, "rubric": SCORE_RUBRIC, "evidence": evidence}]


def from_pointwise(row: dict, attribute: str | None) -> list[dict]:
    """Labelled rows as they are, cells of JSON text too."""
    kept = {name: row[name] for name in ("input", "output", "label")}
    return [kept | ({"reasoning": row["reasoning"]} if "reasoning" in row else {})]


def from_helpsteer2(row: dict, attribute: str) -> list[dict]:
    """People's scores, 0 to 4, of five attributes. `prompt` marks its later turns."""
    return [scored(read_marked_turns(row["prompt"]), row["response"], row[attribute])]


def from_ultrafeedback(row: dict, attribute: str) -> list[dict | None]:
    """Four completions with GPT-4's ratings of four aspects, "1" to "5"; None if it found nothing to rate."""
    found = []
    for completion in row["completions"]:
        annotation = completion["annotations"][attribute]
        rated = annotation and annotation["Rating"] not in ("N/A", None)
        found.append(scored(row["instruction"], completion["response"], annotation["Rating"]) if rated else None)
    return found


def from_prometheus(row: dict, attribute: str | None) -> list[dict]:
    """GPT-4's scores, "1" to "5", each by a rubric of its own, which is quoted: it is data, not ours to trust."""
    meanings = [f"{score - 1}: {row[f'orig_score{score}_description']}" for score in (5, 4, 3, 2, 1)]
    rubric = quote("\n".join([row["orig_criteria"], *meanings]), FRAME)
    return [scored(row["orig_instruction"], row["orig_response"], row["orig_score"], rubric=rubric)]


class Source(NamedTuple):
    convert: Callable[[dict, str | None], list[dict | None]]
    hub: str | None = None
    rubrics: dict[str, str] = {}  # of the attributes to choose from; "helpfulness" if none is chosen
    from_one: bool = False  # the scores are 1 to 5


SOURCES = {
    "demo": Source(from_demo),
    "pointwise": Source(from_pointwise),
    "helpsteer2": Source(from_helpsteer2, "nvidia/HelpSteer2", RUBRICS),
    "ultrafeedback": Source(from_ultrafeedback, "openbmb/UltraFeedback", ULTRAFEEDBACK_RUBRICS, from_one=True),
    "prometheus": Source(from_prometheus, "prometheus-eval/Feedback-Collection", from_one=True),
}


def one_less(score: object) -> int:
    """Return a score of 1 to 5 as 0 to 4."""
    if not re.fullmatch(r"[1-5](\.0+)?", str(score).strip()):
        raise BadRow("label", "expected a whole number from 1 to 5", score)
    return int(float(score)) - 1


def convert_scores(
    rows: Iterable[dict], name: str, attribute: str | None, rubric: str | None, on_bad_row: str
) -> tuple[list[dict], Counter]:
    """Convert a source's rows and write their prompts, by `rubric` or else the source's own.

    Returns:
        The rows with their prompts, what each was made of, one labelled row or several, under "judged";
        and how many were bad, not rated or repeated.
    """
    source = SOURCES[name]

    def convert(numbered: dict) -> dict:
        row, place = numbered["row"], numbered["source"]
        try:
            return {"responses": source.convert(row, attribute)}
        except KeyError as missing:
            raise DataError(f"{place} has no column {missing}; it has {sorted(row)}. Is --source right?") from None
        except TypeError as error:
            raise DataError(f"{place} has columns of another kind: {error}. Is --source right?") from error

    numbered = [{"row": row, "source": f"row {number}"} for number, row in enumerate(rows)]
    converted, left_out = check_rows(tqdm(numbered, desc="convert", unit="row", delay=1), convert, on_bad_row)
    labelled = [{**response, "source": row["source"]} for row in converted for response in row["responses"] if response]
    left_out += Counter({"responses that were not rated": sum(row["responses"].count(None) for row in converted)})
    usual = {
        "rubric": source.rubrics.get(attribute, RUBRIC),
        "data_source": f"{name}/{attribute}" if attribute else name,
    }

    def add_prompt(row: dict) -> dict:
        row = {**usual, **row, "label": one_less(row["label"]) if source.from_one else row["label"]}
        judged = read_row(row)
        return row | write_prompt(judged, rubric or row["rubric"]) | {"judged": [judged]}

    with_prompts, bad = check_rows(labelled, add_prompt, on_bad_row)
    unique: dict[tuple[str, int], dict] = {}
    for row in with_prompts:
        known = unique.setdefault((row["prompt"][-1]["content"], row["label"]), row)
        if known is not row:
            known["judged"] += row["judged"]  # its reasoning may be another
    left_out += bad + Counter({"repeated responses with the same label": len(with_prompts) - len(unique)})
    if not unique:
        raise DataError(f"no usable row: {list_counts(left_out)}")
    return list(unique.values()), left_out


def write_warm_start(path: Path, size: int, seed: int, rubric: str) -> None:
    """Write a lenient annotator's judgements of the demo, for SFT, and say how often it is wrong."""
    lenient, right = (pointwise_rows("train", size, seed, leniency) for leniency in (LENIENCY, 0.0))
    write_rows(path, [{"messages": messages} for row in lenient for messages in transcripts(read_row(row), rubric)])
    wrong = mean(judged["label"] != row["label"] for judged, row in zip(lenient, right))
    print(f"{path}: {size} conversations of a lenient annotator; {wrong:.1%} of the scores are too high")


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
    labels, lengths = [row["label"] for row in rows], [len(row["judged"][0].response) for row in rows]
    counts, prompts = Counter(labels), Counter(row["prompt"][-1]["content"] for row in rows)
    lines = [f"{len(rows)} rows; labels {', '.join(f'{label}: {counts[label]}' for label in VERDICTS)}"]
    for name, guess in (("most frequent label", counts.most_common(1)[0][0]), ("mean, rounded", round(mean(labels)))):
        off = mean(abs(label - guess) for label in labels)
        lines.append(f"always {guess}, the {name}: {counts[guess] / len(rows):.1%} right, off by {off:.2f} on average")
    if min(len(counts), len(set(lengths))) > 1:
        lines.append(f"correlation of label and response length: {correlation(lengths, labels):.2f}")
    if disputed := sum(count > 1 for count in prompts.values()):
        lines.append(f"annotators disagree on {disputed} of the responses: each of their labels is a row")
    return "\n  ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write train.parquet, val.parquet and test.parquet of a judge's prompts and their labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--path", help="local file or hub id, if it is not the source's own; not for the demo")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=THEIRS", help="what the data calls a column")
    parser.add_argument("--split", default="train", help="of a hub set")
    parser.add_argument("--attribute", help="what helpsteer2 and ultrafeedback are scored by; default: helpfulness")
    parser.add_argument("--output", required=True, help="folder to write into")
    parser.add_argument("--transcripts", action="store_true", help="also write transcripts/*.parquet for sft")
    parser.add_argument("--rubric", type=Path, help="text file: what to judge by; default: the source's own rubric")
    add_without(parser)
    parser.add_argument("--on-bad-row", default="error", choices=("error", "drop"))
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the rows for validation, and for test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-rows", type=int, default=2000, help="training rows of the demo")
    parser.add_argument("--lenient-transcripts", type=int, default=0, help="of the demo, as warm_start.parquet for SFT")
    options = parser.parse_args()

    check_demo(options.source, options.path, options.columns, options.without)
    held_out = read_held_out(options.without)
    source = SOURCES[options.source]
    attribute = options.attribute or ("helpfulness" if source.rubrics else None)
    if attribute and attribute not in source.rubrics:
        raise DataError(f"--source {options.source} has no --attribute {attribute}; it has {list(source.rubrics)}")
    rubric = read_rubric(options.rubric)
    if options.lenient_transcripts and options.source != "demo":
        raise DataError("--lenient-transcripts can be made of --source demo alone")
    output, left_out, datasets = Path(options.output), Counter(), set()
    shown = output / "transcripts"
    if shown.is_dir() and not options.transcripts:  # of an earlier split: they may hold what is held out now
        raise DataError(f"{shown} is of an earlier run. Give --transcripts, or use another --output.")
    if options.source == "demo":
        splits = {}
        for split, size in {"train": options.demo_rows, "val": 200, "test": 400}.items():
            rows = pointwise_rows(split, size, options.seed)
            splits[split], repeated = convert_scores(rows, options.source, attribute, rubric, options.on_bad_row)
            left_out += repeated
        if size := options.lenient_transcripts:  # of another seed, so that GRPO's rows are not those that SFT has seen
            write_warm_start(output / "warm_start.parquet", size, options.seed + 1, rubric or SCORE_RUBRIC)
    elif not (options.path or source.hub):
        raise DataError(f"--source {options.source} needs --path: a local file or a hub id")
    else:
        place = options.path or source.hub
        rows, datasets = load_source(place, options.split, options.columns, ["label"]), sets_of(place)
        rows, left_out = convert_scores(rows, options.source, attribute, rubric, options.on_bad_row)
        rows, also_held_out = leave_out(rows, held_out)
        left_out += also_held_out
        share = options.val_share
        ratio = {"train": 1 - 2 * share, "val": share, "test": share}
        splits = split_by_prompt(rows, ratio, options.seed, prompt_of)
    if source.from_one:
        print("scores of 1 to 5 are written as labels 0 to 4")
    items_of = {}
    for split, rows in splits.items():
        written = [{column: row[column] for column in WRITTEN if column in row} for row in rows]
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
