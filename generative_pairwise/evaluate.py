"""How good is a judge on held-out pairs, in both orders? And is it better than one that looks at length, or at nothing?

    python -m generative_pairwise.evaluate --model outputs/checkpoint --data test.parquet
    python -m generative_pairwise.evaluate --endpoint http://host:8000/v1 --model name --data test.parquet

A checkpoint and a served model are asked alike (`common/judging/asking.py`). Answers are greedy; with `--votes K` every
row is judged K times by sampling, and `decide` gives the verdict. An answer without a verdict is wrong and is counted,
never guessed at. A judge that favours a place is right in one order at most: what counts is to be right in both.
"""

import logging
import math
from collections import Counter

from common.conversation import DataError
from common.grading.endpoint import EndpointError
from common.judging.asking import add_comparison, ask_judge, make_parser, read_options, report
from common.judging.rubric import read_stored_rubric
from common.judging.soft import Verdicts

from .dataset import load_rows
from .prompt import FRAME, RUBRIC, SWAPPED, VERDICTS, Preference, decide, parse, write
from .win_rates import POINTS, expected_points

# the figure below which a baseline stands
BASELINES = {
    "majority_accuracy": "accuracy",
    "majority_both_right": "both_right",
    "longer_both_right": "both_right",
}


def preference_metrics(
    labels: list[Preference],
    verdicts: list[Preference | None],
    swapped: list[Preference | None],
    longer: list[Preference | None],
) -> dict[str, float]:
    """Return how well a judge's verdicts, None if it gave none, agree with the labels and with one another.

    Args:
        labels: of the pairs as given. verdicts: on these. swapped: on the pairs with the responses swapped, where "A"
        is the response that was B. longer: the longer response as given, None if that is not known.

    Returns:
        pairs. Over the answers in both orders, a missing verdict being wrong: parse_rate; accuracy; tie_recall, the
        share of the answers to ties that say so. tie_precision, over the answers that say "tie", how many are right.
        first_rate, over the answers that prefer a response, how many prefer the one shown first; 0.5 is no bias, if
        only the orders differ. Over the pairs: accuracy_as_given, accuracy_swapped; both_right, right in both orders;
        consistency, the same response (or none) preferred in both. A figure over nothing is absent.
        What a judge that reads nothing reaches: majority_accuracy, of always giving the verdict that suits it best;
        majority_both_right, of always saying "tie", the only constant that can be right twice; and longer_both_right,
        of preferring the longer response, over the pairs for which it is known.
    """
    pairs, ties = len(labels), labels.count("tie")
    swapped_labels = [SWAPPED[label] for label in labels]
    right_as_given = [verdict == label for label, verdict in zip(labels, verdicts)]
    right_swapped = [verdict == label for label, verdict in zip(swapped_labels, swapped)]
    same_response = [one is not None and one == SWAPPED.get(other) for one, other in zip(verdicts, swapped)]
    answers = Counter([*verdicts, *swapped])  # of both orders
    ties_found = [*zip(labels, verdicts), *zip(swapped_labels, swapped)].count(("tie", "tie"))

    metrics = {
        "pairs": pairs,
        "parse_rate": (2 * pairs - answers[None]) / (2 * pairs),
        "accuracy": (sum(right_as_given) + sum(right_swapped)) / (2 * pairs),
        "accuracy_as_given": sum(right_as_given) / pairs,
        "accuracy_swapped": sum(right_swapped) / pairs,
        "both_right": sum(map(all, zip(right_as_given, right_swapped))) / pairs,
        "consistency": sum(same_response) / pairs,
    }
    if preferring := answers["A"] + answers["B"]:
        metrics["first_rate"] = answers["A"] / preferring
    if answers["tie"]:
        metrics["tie_precision"] = ties_found / answers["tie"]
    if ties:
        metrics["tie_recall"] = ties_found / (2 * ties)

    metrics["majority_accuracy"] = max(ties, (pairs - ties) / 2) / pairs
    metrics["majority_both_right"] = ties / pairs
    known = [(label, guess) for label, guess in zip(labels, longer) if guess is not None]
    if known:
        metrics["longer_both_right"] = sum(label == guess for label, guess in known) / len(known)
    return metrics


def soft_metrics(
    labels: list[Preference],
    verdicts: list[Preference | None],
    swapped: list[Preference | None],
    soft: list[dict[Preference, float] | None],
    soft_swapped: list[dict[Preference, float] | None],
) -> dict[str, float]:
    """Return how well the probability that A is better finds the better response, beside the verdicts themselves.

    Returns:
        Over the pairs that are no tie and have a verdict in both orders, if there are any; a pair's value is the mean
        of both orders, a tie being half of each. order_accuracy, by verdicts, and soft_order_accuracy, by
        probabilities: how often the better response has more than one half, exactly one half counting one half.
        soft_log_loss: -ln of the better one's probability; absent if one is 0, as an endpoint may say.
    """
    found: list[tuple[float, float]] = []  # of the better response: its points by verdicts, and its probability
    for label, *given, shares, shares_swapped in zip(labels, verdicts, swapped, soft, soft_swapped):
        if label == "tie" or None in given or shares is None or shares_swapped is None:
            continue
        points = (POINTS[given[0]] + 1 - POINTS[given[1]]) / 2
        probability = (expected_points(shares) + 1 - expected_points(shares_swapped)) / 2
        found.append((points, probability) if label == "A" else (1 - points, 1 - probability))
    if not found:
        return {}

    def accuracy(values: tuple[float, ...]) -> float:
        return sum((value > 0.5) + (value == 0.5) / 2 for value in values) / len(values)

    points, probabilities = zip(*found)
    metrics = {"order_accuracy": accuracy(points), "soft_order_accuracy": accuracy(probabilities)}
    if min(probabilities) > 0:
        metrics["soft_log_loss"] = -sum(map(math.log, probabilities)) / len(probabilities)
    return metrics


def main() -> None:
    columns = "input, output and metadata, or prompt, prompt_swapped and label"
    parser = make_parser("A judge's preferences beside the labels.", columns)
    add_comparison(parser)
    options = read_options(parser)
    rubric = read_stored_rubric(options.tokenizer or options.model) or RUBRIC  # the one that the judge was trained by
    rows, bad = load_rows(options.data, options.on_bad_row, rubric)
    soft = Verdicts.of(VERDICTS, write, parse) if options.soft else None
    judged = ask_judge(options, rows, parse, decide, FRAME, soft=soft)
    as_given, swapped = slice(0, None, 2), slice(1, None, 2)  # a pair is two rows, one below the other
    longer = [row["longer"] for row in judged.rows]
    metrics = preference_metrics(
        judged.labels[as_given], judged.verdicts[as_given], judged.verdicts[swapped], longer[as_given]
    )
    if judged.soft:
        weighed = judged.soft[as_given], judged.soft[swapped]
        metrics |= soft_metrics(judged.labels[as_given], judged.verdicts[as_given], judged.verdicts[swapped], *weighed)
    measures = [preference_metrics, *([soft_metrics] if judged.soft else [])]
    report(options, judged, metrics, measures, VERDICTS, bad, BASELINES, SWAPPED.get)


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"evaluate.py: {error}") from None
