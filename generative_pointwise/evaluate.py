"""How good is a judge on held-out rows? And is it better than one that always gives the same score?

    python -m generative_pointwise.evaluate --model outputs/checkpoint --data test.parquet
    python -m generative_pointwise.evaluate --endpoint http://host:8000/v1 --model name --data test.parquet

A checkpoint and a served model are asked alike (`common/judging/asking.py`). Answers are greedy; with `--votes K` every
row is judged K times by sampling, and `decide` gives the verdict. An answer without a verdict is wrong and is counted,
never guessed at.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from scipy.stats import mannwhitneyu, spearmanr
from sklearn.metrics import cohen_kappa_score

from common.conversation import DataError
from common.grading.endpoint import EndpointError
from common.judging.asking import add_comparison, ask_judge, make_parser, read_options, report
from common.judging.rubric import read_stored_rubric
from common.judging.soft import Verdicts

from .dataset import load_rows
from .prompt import FRAME, RUBRIC, VERDICTS, decide, expected_score, parse, write

# the figure below which a baseline stands
BASELINES = {
    "majority_accuracy": "accuracy",
    "majority_mae": "mae",
    "mean_mae": "mae",
    "constant_within_one": "within_one",
}


def score_metrics(labels: list[int], verdicts: list[int | None]) -> dict[str, float]:
    """Return how near a judge's verdicts, None if it gave none, are to the labels.

    Returns:
        rows; parse_rate: share with a verdict. Over all rows, a missing verdict being wrong: accuracy, within_one.
        Over the rows with a verdict, so to be read beside parse_rate: mae, the mean of |verdict - label|; spearman,
        absent if labels or verdicts are all equal; kappa, Cohen's with quadratic weights, absent if there is only one
        value in all.
        What a judge that reads nothing reaches, over all rows: majority_accuracy and majority_mae of always giving the
        most frequent label (of several, the one with the smallest error); mean_mae of always giving the mean of the
        labels; constant_within_one of always giving the score that suits it best.
    """
    rows = len(labels)
    known = [(label, verdict) for label, verdict in zip(labels, verdicts) if verdict is not None]
    errors = [abs(label - verdict) for label, verdict in known]
    metrics = {
        "rows": rows,
        "parse_rate": len(known) / rows,
        "accuracy": errors.count(0) / rows,
        "within_one": sum(error <= 1 for error in errors) / rows,
    }
    if known:
        right, given = zip(*known)
        metrics["mae"] = sum(errors) / len(errors)
        if len(set(right)) > 1 and len(set(given)) > 1:
            metrics["spearman"] = float(spearmanr(right, given).statistic)
        if len({*right, *given}) > 1:
            metrics["kappa"] = float(cohen_kappa_score(right, given, weights="quadratic", labels=VERDICTS))

    def mean_error(score: float) -> float:
        return sum(abs(label - score) for label in labels) / rows

    counts = Counter(labels)
    most = max(counts.values())
    return metrics | {
        "majority_accuracy": most / rows,
        "majority_mae": min(mean_error(label) for label in counts if counts[label] == most),
        "mean_mae": mean_error(sum(labels) / rows),
        "constant_within_one": max(sum(abs(label - score) <= 1 for label in labels) for score in VERDICTS) / rows,
    }


def soft_metrics(
    labels: list[int], verdicts: list[int | None], soft: list[dict[int, float] | None]
) -> dict[str, float]:
    """Return how well expected scores order the rows, beside the verdicts themselves.

    Returns:
        Over the rows with a verdict: soft_mae, soft_spearman, like mae and spearman, of the expected score in place of
        the verdict. order_accuracy, of verdicts, and soft_order_accuracy, of expected scores: of every two rows with
        different labels, how often the higher label has the higher one, equal ones counting one half. Absent if all
        labels are equal. Compare these two: Spearman's rank correlation of expected scores stays below 1 even if every
        order is right, as labels have ties that they do not have.
    """
    rows = [
        (label, verdict, expected_score(shares))
        for label, verdict, shares in zip(labels, verdicts, soft)
        if verdict is not None and shares is not None
    ]
    if not rows:
        return {}
    right, given, expected = zip(*rows)
    metrics = {"soft_mae": sum(abs(label - score) for label, score in zip(right, expected)) / len(rows)}
    if len(set(right)) > 1 and len(set(expected)) > 1:
        metrics["soft_spearman"] = float(spearmanr(right, expected).statistic)
    if len(set(right)) > 1:
        metrics |= {"order_accuracy": order_accuracy(right, given)}
        metrics |= {"soft_order_accuracy": order_accuracy(right, expected)}
    return metrics


def order_accuracy(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Return, of every two rows with different labels, how often the higher one has the higher score; equal: one half.

    Of each two labels this is Mann and Whitney's U over the number of pairs.
    """
    of_label = {label: [score for known, score in zip(labels, scores) if known == label] for label in set(labels)}
    ordered = pairs = 0.0
    for low, high in combinations(sorted(of_label), 2):
        ordered += mannwhitneyu(of_label[high], of_label[low], method="asymptotic").statistic
        pairs += len(of_label[high]) * len(of_label[low])
    return float(ordered / pairs)


def evidence_metrics(evidence: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
    """Return how many answers hold all of their row's evidence, letter by letter, before `</think>`.

    Returns:
        evidence: of the answers to the evidence_rows that have evidence, how many hold all of it in their reasoning;
        absent if no row has any.
    """
    sought = [(texts, given) for texts, given in zip(evidence, answers) if texts]
    # the last one: an empty think block may stand before the reasoning
    reasonings = [(texts, one.rpartition("</think>")[0] or one) for texts, given in sought for one in given]
    found = [all(text in reasoning for text in texts) for texts, reasoning in reasonings]
    return {"evidence": sum(found) / len(found), "evidence_rows": len(sought)} if sought else {}


def main() -> None:
    parser = make_parser("A judge's scores beside the labels.", "input, output and label, or prompt and label")
    add_comparison(parser)
    options = read_options(parser)
    rubric = read_stored_rubric(options.tokenizer or options.model) or RUBRIC  # the one that the judge was trained by
    rows, bad = load_rows(options.data, options.on_bad_row, rubric)
    soft = Verdicts.of(VERDICTS, write, parse) if options.soft else None
    judged = ask_judge(options, rows, parse, decide, FRAME, soft=soft)
    metrics = score_metrics(judged.labels, judged.verdicts)
    if judged.soft:
        metrics |= soft_metrics(judged.labels, judged.verdicts, judged.soft)
    if not options.hidden_reasoning:
        metrics |= evidence_metrics([row["evidence"] for row in judged.rows], judged.answers)
    measures = [score_metrics, *([soft_metrics] if judged.soft else [])]
    measures += [evidence_metrics] if "evidence" in metrics else []
    report(options, judged, metrics, measures, VERDICTS, bad, BASELINES, weights="quadratic")


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"evaluate.py: {error}") from None
