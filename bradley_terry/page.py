"""What the page of a reward model shows: its figures, pictures and pairs (`common/page/page.py` makes the page)."""

import numpy as np

from common.page.page import MOST_ROWS, Band, Example, Examples, Text, View, by_interest
from common.page.pictures import Boxes, Calibration, Picture, Scatter, calibration_bins
from common.pairs import split_texts
from common.report import Histogram

from .dataset import Pair, digest_row

BASELINES = {"longer_wins_accuracy": "accuracy", "majority_accuracy": "accuracy"}
FROM_TRAINING = (
    "margin: reward of chosen - reward of rejected in the step in which the pair was trained on, the last time. Early "
    "steps say little: the model knew little then. trainer.measure_train=true asks the finished model about every pair."
)
FROM_FINISHED = (
    "margin: the finished model's reward of chosen - reward of rejected; when trained on: the same in the last step "
    "in which the pair was trained on. Mark the rows whose label is wrong and save the list: "
    "prepare_data --without-rows leaves them out."
)
OF_EPOCHS = (
    " Of the margins in all epochs, first is the earliest, mean their mean, spread their standard deviation, change "
    "the last less the first. ever right: one of them, or the margin, is above 0."
)
VIEWS = [
    View("most confidently wrong", "margin", only={"right": "no"}),
    View("closest to a tie", "confidence"),
    View("largest rewards of chosen answers", "chosen", falling=True),
    View("largest rewards of rejected answers", "rejected", falling=True),
    View("smallest rewards of chosen answers", "chosen"),
    View("smallest rewards of rejected answers", "rejected"),
    View("longest", "tokens", falling=True),
    View("all, lowest margin first", "margin"),
]


def pair_examples(name: str, pairs: list[Pair], rewards: np.ndarray, rows: dict[str, dict]) -> Examples:
    """Return measured pairs as rows of a page.

    Args:
        name: of the split.
        rewards: (pairs, 2), chosen then rejected.
        rows: the checked rows of `load_pairs`, by their source.
    """
    margins, examples = rewards[:, 0].astype(np.float64) - rewards[:, 1], []
    confidences = confidence_of(margins)
    for pair, (chosen, rejected), margin, confidence in zip(pairs, rewards.tolist(), margins.tolist(), confidences):
        row = rows[pair.source]
        values = {
            "source": pair.source,
            "right": "yes" if margin > 0 else "no",
            "margin": margin,
            "chosen": chosen,
            "rejected": rejected,
            "confidence": float(confidence),
            **about_pair(pair, row),
        }
        examples.append(Example(digest_row(row), values, pair_bands(row)))
    leave_out_unknown(examples)
    parts = [name for name in ("subset", "file") if len({example.values.get(name) for example in examples}) > 1]
    note = "margin: reward of chosen - reward of rejected. confidence: σ(|margin|). A margin of 0 is wrong."
    return Examples(f"{name}: {len(pairs):,} pairs", examples, VIEWS, ("right", *parts), note=note)


def suspect_examples(
    pairs: list[Pair], margins: list[list[tuple[int, float]]], final: np.ndarray | None, rows: dict[str, dict]
) -> Examples:
    """Return the training pairs that the model agrees with least: those to look at for wrong labels.

    Args:
        margins: of `read_margins`: for each pair the steps in which it was trained on, and its margins there.
        final: (pairs, 2), the finished model's rewards; None if it was not asked.
        rows: the checked rows of `load_pairs`, by their source.
    """
    lists = [np.array([margin for _, margin in seen]) for seen in margins]
    if final is None:
        decisive = {number: float(seen[-1]) for number, seen in enumerate(lists) if len(seen)}
    else:
        decisive = dict(enumerate((final[:, 0].astype(np.float64) - final[:, 1]).tolist()))
    again, examples = max(map(len, lists), default=0) > 1, []
    wrong = {"ever right": "no"} if again else {"right": "no"}
    views = [View("never agreed with, lowest margin first", "margin", only=wrong), View("lowest margin", "margin")]
    views += [View("moved most between epochs", "spread", falling=True)] if again else []

    # 1. Choose those that stand first in some view. Their texts are made afterwards, as there may be very many pairs.
    order, light = sorted(decisive, key=decisive.get), []
    for number in order:
        right = {"right": "yes" if decisive[number] > 0 else "no", "margin": decisive[number]}
        if again:
            seen = lists[number]
            right["ever right"] = "yes" if decisive[number] > 0 or (seen > 0).any() else "no"
            right["spread"] = float(seen.std()) if len(seen) else None
        light.append(Example("", right, []))
    chosen = sorted(by_interest(Examples("", light, views))[:MOST_ROWS])

    # 2. Show them, the lowest margin first
    for place in chosen:
        number, known = order[place], light[place].values
        pair, seen = pairs[number], lists[number]
        values = {"source": pair.source, "right": known["right"], "margin": known["margin"]}
        if final is not None:
            values["when trained on"] = float(seen[-1]) if len(seen) else None
        if again:
            values["ever right"] = known["ever right"]
            values["first"] = float(seen[0]) if len(seen) else None
            values["mean"] = float(seen.mean()) if len(seen) else None
            values["spread"] = known["spread"]
            values["change"] = float(seen[-1] - seen[0]) if len(seen) else None
        values["step"] = margins[number][-1][0] if len(seen) else None
        row = rows[pair.source]
        examples.append(Example(digest_row(row), values | about_pair(pair, row), pair_bands(row)))
    choices = ("right", "ever right") if again else ("right",)
    note = (FROM_TRAINING if final is None else FROM_FINISHED) + (OF_EPOCHS if again else "")
    leave_out_unknown(examples)
    title = f"train: {len(decisive):,} pairs. Which labels may be wrong?"
    return Examples(title, examples, views, choices, note=note, markable=True, total=len(decisive))


def confidence_of(margins: np.ndarray) -> np.ndarray:
    """Return σ(|margin|), in [0.5, 1]: how sure the model is of the answer that it prefers."""
    return 1 / (1 + np.exp(-np.abs(margins)))


def about_pair(pair: Pair, row: dict) -> dict[str, object]:
    """Return what is known of a pair, a checked row, without a model."""
    return {
        "label strength": pair.margin or None,
        "tokens": pair.tokens,
        "tokens of chosen": len(pair.chosen),
        "tokens of rejected": len(pair.rejected),
        "subset": row.get("subset"),
        "file": pair.source.rpartition(" row ")[0],
    }


def leave_out_unknown(examples: list[Example]) -> None:
    """Take out the columns of `about_pair` that no row has a value for."""
    for name in ("label strength", "subset"):
        if all(example.values[name] is None for example in examples):
            for example in examples:
                del example.values[name]


def pair_bands(row: dict) -> list[Band]:
    """Return a checked row's texts: what is answered, then both answers beside each other."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        prompt, *answers = split_texts(chosen, rejected)
        asked = [Text("both start with", prompt)]
    else:
        answers = [chosen[-1]["content"], rejected[-1]["content"]]
        asked = turns_of(chosen[:-1])
    compared = Band([[Text("chosen", answers[0])], [Text("rejected", answers[1])]], marked=True)
    if not isinstance(chosen, str) and chosen[:-1] != rejected[:-1]:
        return [Band([asked, turns_of(rejected[:-1])]), compared]
    return [Band([asked]), compared]


def turns_of(messages: list[dict]) -> list[Text]:
    return [Text(message["role"], message["content"]) for message in messages]


def pair_pictures(name: str, pairs: list[Pair], rewards: np.ndarray, rows: dict[str, dict]) -> list[Picture]:
    """Return the pictures of measured pairs; the arguments are those of `pair_examples`."""
    margins = rewards[:, 0].astype(np.float64) - rewards[:, 1]
    sides = {"chosen": rewards[:, 0].tolist(), "rejected": rewards[:, 1].tolist()}
    lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs])
    points = {side: (lengths[:, column].tolist(), sides[side]) for column, side in enumerate(sides)}
    bins = calibration_bins(confidence_of(margins), margins > 0)
    pictures = [
        Picture(
            Histogram(f"{name}: chosen - rejected", {"margin": margins.tolist()}, "pairs"),
            f"Margins. {(margins > 0).sum()} of {len(pairs)} are above 0, that is right.",
        ),
        Picture(
            Scatter(f"{name}: length and reward", points, "tokens of the answer", "reward"),
            f"Reward by length. Correlation: {correlation(lengths.flatten(), rewards.flatten())}. "
            "If long answers get high rewards on both sides, the model may reward length.",
        ),
        Picture(
            Calibration(f"{name}: calibration", bins),
            "How often the answer that the model prefers is the chosen one. Below the line the model is too sure.",
        ),
    ]
    of_part: dict[str, list[float]] = {}
    for pair, margin in zip(pairs, margins.tolist()):
        part = rows[pair.source].get("subset") or pair.source.rpartition(" row ")[0]
        of_part.setdefault(part, []).append(margin)
    if len(of_part) > 1:
        boxes = Boxes(f"{name}: margin by subset or file", of_part, "chosen - rejected")
        pictures.append(Picture(boxes, "Margins of the parts with most pairs; beside a name the number of its pairs."))
    return pictures


def correlation(first: np.ndarray, second: np.ndarray) -> str:
    """Return Pearson's correlation as text; it is not known if one side does not vary."""
    if first.std() == 0 or second.std() == 0:
        return "not known"
    return f"{np.corrcoef(first, second)[0, 1]:.2f}"
