"""The rewards that each training pair had when it was trained on, kept for those who look for wrong labels.

They are computed anyway, so keeping them costs nothing. A pair that the model never came to agree with has, often
enough, a wrong label. With several epochs the margins also say how a pair moved (dataset cartography, Swayamdipta et
al., arXiv 2009.10795). With one epoch read them with care: a pair at the start was seen by a model that knew little.

Each start of a run writes its steps into a file of its own, as for the metrics, and where a restart repeats steps the
repetition counts. So an interrupted run leaves the same `train_rewards.parquet` as an uninterrupted one.
"""

import json
from pathlib import Path

import numpy as np

from common.cluster import TrainingError
from common.parquet import write_rows
from common.report import read_steps

from .dataset import Pair

FILES = "rewards_from_step"


class StepRewards:
    """Writes down the rewards of each step's pairs.

    Args:
        folder: of the run.
        pairs: all training pairs; a step names its own by their number.
        from_step: where this start of the run begins.
    """

    def __init__(self, folder: Path, pairs: list[Pair], from_step: int):
        path = folder / "metrics" / f"{FILES}_{from_step:06d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8", buffering=1)  # a line is on disk when its step is over
        self.numbers = {pair.source: number for number, pair in enumerate(pairs)}

    def note(self, step: int, pairs: list[Pair], rewards: list[list[float]]) -> None:
        """Write down a step.

        Args:
            pairs: of the step.
            rewards: for each, in any order: its place in `pairs`, its reward of chosen, and of rejected.
        """
        numbers = [self.numbers[pairs[int(place)].source] for place, _, _ in rewards]
        data = {"pairs": numbers, "rewards": [[chosen, rejected] for _, chosen, rejected in rewards]}
        self.file.write(json.dumps({"step": step, "data": data}) + "\n")

    def close(self) -> None:
        self.file.close()


def read_margins(folder: Path, pairs: int) -> list[list[tuple[int, float]]]:
    """Return for each training pair, by its number, the steps in which it was trained on and its margins there."""
    margins: list[list[tuple[int, float]]] = [[] for _ in range(pairs)]
    for step, data in sorted(read_steps(folder, FILES).items()):
        for number, (chosen, rejected) in zip(data["pairs"], data["rewards"]):
            margins[number].append((step, chosen - rejected))
    return margins


def save_train_rewards(
    path: Path,
    pairs: list[Pair],
    digests: dict[str, str],
    margins: list[list[tuple[int, float]]],
    final: np.ndarray | None,
) -> None:
    """Write a row for each training pair.

    Args:
        digests: of `digest_row`, by source.
        margins: of `read_margins`.
        final: (pairs, 2), the finished model's rewards; None if it was not asked.

    The columns are source, digest, steps and margins (lists, one for each time the pair was trained on; empty if it did
    not fill a batch), and final_margin, null if the finished model was not asked.

    Raises:
        TrainingError: a reward of the finished model is not finite.
    """
    if final is not None and not np.isfinite(final).all():
        bad = [pair.source for pair, rewards in zip(pairs, final) if not np.isfinite(rewards).all()]
        raise TrainingError(f"the finished model: {len(bad)} train rewards are not finite, the first for {bad[0]}")
    finals = [None] * len(pairs) if final is None else (final[:, 0] - final[:, 1]).tolist()
    rows = [
        {
            "source": pair.source,
            "digest": digests[pair.source],
            "steps": [step for step, _ in seen],
            "margins": [margin for _, margin in seen],
            "final_margin": last,
        }
        for pair, seen, last in zip(pairs, margins, finals)
    ]
    write_rows(path, rows)
