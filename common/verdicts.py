"""What is counted of any judge's verdicts, whatever they are: scores or preferences, None where there is none."""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import permutations

from common.judge import SWAPPED, Preference

POINTS: dict[Preference, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}  # for the response shown first
Table = tuple[list[str], list[str], list[list[int]]]


def confusion(labels: Sequence, verdicts: Sequence, values: Sequence[Hashable]) -> Table:
    """Return names of labels, names of verdicts, and how often they came together: one row a label."""
    together = Counter(zip(labels, verdicts))
    counts = [[together[label, verdict] for verdict in (*values, None)] for label in values]
    return [*map(str, values)], [*map(str, values), "no verdict"], counts


def vote_metrics(
    labels: Sequence, votes: Sequence[list], verdicts: Sequence
) -> tuple[dict[str, float], list[dict[str, int]]]:
    """Return what is known only of a judge that was asked several times, every row equally often.

    Args:
        verdicts: what the votes on each row decided, None where they decided nothing.

    Returns:
        single_vote_accuracy: share of all votes on all rows that are right, one without a verdict being wrong.
        calibration_error: the expected calibration error (Guo et al., arXiv:1706.04599), the confidence being the share
        of the row's votes that its verdict has, and each such share a bin: Σ rows/N · |right/rows - share|, over the
        rows with a verdict. Absent where there is none.
        And the bins: by how many votes were for the verdict, the number of rows, and of those judged rightly.
    """
    hits = [vote == label for label, cast in zip(labels, votes) for vote in cast]
    metrics, found = {"single_vote_accuracy": sum(hits) / len(hits)}, {}
    for label, cast, verdict in zip(labels, votes, verdicts):
        if verdict is not None:
            found.setdefault(cast.count(verdict), []).append(verdict == label)
    bins = [{"agreeing": count, "rows": len(found[count]), "right": sum(found[count])} for count in sorted(found)]
    if bins:
        gaps = [abs(part["right"] - part["rows"] * part["agreeing"] / len(votes[0])) for part in bins]
        metrics["calibration_error"] = sum(gaps) / sum(part["rows"] for part in bins)
    return metrics, bins


def vote_table(bins: list[dict[str, int]], votes: int) -> Table:
    """Return `vote_metrics`' bins as a table: how many of so many votes agree, and how many verdicts are right."""
    names = [f"{part['agreeing']} of {votes}" for part in bins]
    return names, ["right", "wrong"], [[part["right"], part["rows"] - part["right"]] for part in bins]


def win_rates(count: int, verdicts: list[Preference | None]) -> list[float | None]:
    """Return each response's win rate, 0 to 1; None where no comparison with it had a verdict.

    Args:
        verdicts: on the responses in pairs, in the order of `itertools.permutations(range(count), 2)`, so in both
        orders. Where one is missing the comparison is left out in both: it is no draw, and one order alone would favour
        what stands first.
    """
    said = dict(zip(permutations(range(count), 2), verdicts, strict=True))
    points = [[] for _ in range(count)]
    for (first, second), verdict in said.items():
        if verdict is not None and said[second, first] is not None:
            points[first].append(POINTS[verdict])
            points[second].append(POINTS[SWAPPED[verdict]])
    return [sum(won) / len(won) if won else None for won in points]
