"""What is counted of any judge's verdicts, whatever they are: scores or preferences, None if an answer has none."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from sklearn.metrics import cohen_kappa_score

from common.generation import CLOSING, THINKING, Answer
from common.report import Table

RESAMPLES = 1000
LEVEL = 0.95


def fault_of(given: Answer) -> str:
    """Return, for people to read, what keeps an answer without a verdict from having one."""
    reasoning, *rest = re.split(CLOSING, given)
    if given.clipped:
        return "its tokens ran out: raise max_new_tokens (data.max_response_length)"
    if not rest and "{" in given:
        return "it looks like JSON, and is not the verdict that was asked for: text around it, another key or value?"
    if not rest:
        return "no reasoning came; a server that keeps it to itself needs hidden_reasoning=True, --hidden-reasoning"
    if len(rest) > 1 or re.search(THINKING, rest[0]) or re.search(rf"\S\s*{THINKING}", reasoning):
        return "tags of thinking stand in it more than once"
    return "other text than one verdict stands behind the reasoning" if rest[0].strip() else "no verdict was written"


def confusion(labels: Sequence, verdicts: Sequence, values: Sequence[Hashable], title: str) -> Table:
    """Return how often each label and each verdict came together: one row a label, "no verdict" the last column."""
    names = [*map(str, values), "no verdict"]
    said = ["no verdict" if verdict is None else str(verdict) for verdict in verdicts]
    counts = Counter(zip(map(str, labels), said))
    return Table(title, names[:-1], names, [[counts[label, verdict] for verdict in names] for label in names[:-1]])


def majority(votes: Sequence) -> Hashable | None:
    """Return the verdict of more than half of all votes, those without a verdict counted; None if there is none."""
    counts = Counter(vote for vote in votes if vote is not None)
    return next((verdict for verdict, count in counts.items() if 2 * count > len(votes)), None)


def agreement(first: Sequence, second: Sequence, values: Sequence[Hashable], weights: str | None) -> dict[str, float]:
    """Return how often two judges, or a judge and the labels, say the same of the same rows.

    Args:
        first, second: verdicts, None where there is none.
        values: the verdicts that there are, in their order.
        weights: of kappa: None, or "quadratic" for verdicts that are scores.

    Returns:
        agreement: share of all rows with the same verdict; a missing verdict agrees with nothing.
        kappa: Cohen's, over the rows where both have a verdict; absent if there is only one verdict in all.
    """
    return _agreement_of(Counter(zip(first, second)), values, weights)


def _agreement_of(counts: Mapping[tuple, int], values: Sequence[Hashable], weights: str | None) -> dict[str, float]:
    """Return the figures of `agreement` from how often each two verdicts came together."""
    known = {pair: count for pair, count in counts.items() if count and None not in pair}
    same = sum(count for (one, other), count in known.items() if one == other)
    found = {"agreement": float(same / sum(counts.values()))}
    if len({verdict for pair in known for verdict in pair}) > 1:
        often = list(known.values())
        kappa = cohen_kappa_score(*zip(*known), weights=weights, labels=list(values), sample_weight=often)
        found["kappa"] = float(kappa)
    return found


def agreement_bounds(
    first: Sequence, second: Sequence, values: Sequence[Hashable], weights: str | None, groups: Sequence[Hashable]
) -> dict[str, tuple[float, float]]:
    """Return the bounds of a 95% interval of each figure of `agreement`, by a bootstrap with a fixed seed.

    Rows of the same group (a comparison in both orders) are drawn together. The interval says nothing about other rows
    than these are a sample of, nor about another training run.
    """
    pairs, places = list(zip(first, second)), {group: place for place, group in enumerate(dict.fromkeys(groups))}
    kinds = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    counts = np.zeros((len(places), len(kinds)), dtype=int)
    np.add.at(counts, ([places[group] for group in groups], [kinds[pair] for pair in pairs]), 1)
    chance, drawn = np.random.default_rng(0), {}
    for _ in range(RESAMPLES):
        sample = chance.multinomial(len(places), [1 / len(places)] * len(places)) @ counts
        for name, value in _agreement_of(dict(zip(kinds, sample)), values, weights).items():
            drawn.setdefault(name, []).append(value)
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: tuple(map(float, np.quantile(found, edges))) for name, found in drawn.items()}


def tokens_of(answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Return the tokens of a thousand judgements, asked and answered; nothing if some answer's are not known.

    Several votes on a row are one judgement.
    """
    usage = [text.usage for given in answers for text in given]
    if None in usage:
        return {}
    asked, answered = (1000 * sum(counts) / len(answers) for counts in zip(*usage))
    return {"tokens_asked": asked, "tokens_answered": answered}


def vote_metrics(
    labels: Sequence, votes: Sequence[list], verdicts: Sequence
) -> tuple[dict[str, float], list[dict[str, int]]]:
    """Return what is known only of a judge that was asked several times, every row equally often.

    And the bins of its calibration: by how many votes were for the verdict, the number of rows, and how many are right.

    Args:
        verdicts: what the votes on each row decided, None if they decided nothing.

    Returns:
        single_vote_accuracy: share of all votes on all rows that are right; one without a verdict is wrong.
        calibration_error: the expected calibration error (Guo et al., arXiv:1706.04599). The confidence is the share of
        the row's votes that its verdict has, and each such share is a bin: Σ rows/N · |right/rows - share|, over the
        rows with a verdict. Absent if there is none.
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
    """Return the bins of `vote_metrics` as a table: by how many of so many votes agree, how many verdicts are right."""
    names = [f"{part['agreeing']} of {votes}" for part in bins]
    counts = [[part["right"], part["rows"] - part["right"]] for part in bins]
    return Table("votes for the verdict (row)", names, ["right", "wrong"], counts)
