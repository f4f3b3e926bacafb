"""What the page of a language model shows: its figures, pictures and conversations (see `common/page/page.py`)."""

import hashlib
import json

import numpy as np

from common.page.page import Band, Examples, Text, View
from common.page.page import Example as Shown
from common.page.pictures import Picture, Scatter
from common.report import Histogram

from .dataset import Example

BASELINES = {"majority_accuracy": "accuracy"}
VIEWS = [
    View("wrong verdicts", "loss", falling=True, only={"right": "no"}),
    View("worst predicted", "loss", falling=True),
    View("best predicted", "loss"),
    View("longest", "tokens", falling=True),
]


def conversation_examples(
    name: str, examples: list[Example], measured: list[np.ndarray], rows: dict[str, dict], judged: list[dict] = ()
) -> Examples:
    """Return measured conversations as rows of a page.

    Args:
        name: of the split.
        measured: see `token_metrics`.
        rows: the checked rows of `load_conversations`, by their source.
        judged: of those that the model judged by itself, what `judge_rows` returns.
    """
    said, shown = {row["source"]: row for row in judged}, []
    for example, (losses, correct) in zip(examples, measured):
        values = {
            "source": example.source,
            "loss": float(losses.mean()),
            "tokens right": float(correct.mean()),
            "tokens": example.tokens,
            "trained tokens": losses.size,
            "file": example.source.rpartition(" row ")[0],
        }
        judgement = said.get(example.source)
        if said:
            values |= judgement_values(judgement)
        messages = rows[example.source]["messages"]
        last = [[Text(f"{messages[-1]['role']}, in the data", messages[-1]["content"])]]
        if judgement:
            last.append([Text("the model's answer", judgement["answer"])])
        bands = [Band([[Text(turn["role"], turn["content"]) for turn in messages[:-1]]]), Band(last, marked=True)]
        key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        shown.append(Shown(key, values, bands if messages[:-1] else bands[1:]))
    columns = shown[0].values if shown else {}
    choices = [each for each in ("right", "kind", "label", "verdict") if each in columns]
    choices += ["file"] if len({row.values["file"] for row in shown}) > 1 else []
    return Examples(
        f"{name}: {len(shown):,} conversations",
        shown,
        [view for view in VIEWS if {view.column, *view.only} <= set(columns)],
        tuple(choices),
        (("label", "verdict"),) if said else (),
        "loss: mean of the trained tokens, in nats. tokens right: share of them that are the most probable ones.",
    )


def judgement_values(judgement: dict | None) -> dict[str, str | None]:
    """Return what the model said by itself; None everywhere if it was not asked."""
    if judgement is None:
        return dict.fromkeys(("right", "kind", "label", "verdict"))
    verdict = judgement["verdict"]
    right = "yes" if verdict == judgement["label"] else "no"
    said = "no verdict" if verdict is None else verdict
    return {"right": right, "kind": judgement["kind"], "label": judgement["label"], "verdict": said}


def conversation_pictures(name: str, examples: list[Example], measured: list[np.ndarray]) -> list[Picture]:
    """Return the pictures of measured conversations; `measured` as in `token_metrics`."""
    losses = [float(each[0].mean()) for each in measured]
    points = {"conversations": ([example.tokens for example in examples], losses)}
    return [
        Picture(
            Histogram(f"{name}: loss of a conversation", {"loss": losses}, "conversations"),
            "How well conversations are predicted. A long tail to the right is worth reading.",
        ),
        Picture(
            Scatter(f"{name}: length and loss", points, "tokens", "loss, nats a token"),
            "Whether long conversations are predicted worse than short ones.",
        ),
    ]
