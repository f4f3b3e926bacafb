"""How good is a judge on held-out pairs, in both orders? And is it better than one that looks at length, or at nothing?

    python evaluate.py --model outputs/checkpoint --data test.parquet
    python evaluate.py --endpoint http://host:8000/v1 --model name --data test.parquet

A checkpoint and a served model are asked alike (`common/asking.py`). Answers are greedy; with `--votes K` every row is
judged K times by sampling, and `decide` gives the verdict. An answer without a verdict is wrong and is counted, never
guessed at. A judge that favours a place is right in one order at most: what counts is to be right in both.
"""

import logging
from collections import Counter

from common.asking import clipped_share, judge, read_options, report
from common.endpoint import EndpointError
from common.judge import SWAPPED, Preference
from common.parquet import DataError
from common.prompts import digest
from common.verdicts import confusion, vote_metrics, vote_table

from dataset import load_rows
from prompt import VERDICTS, parse


def decide(votes: list[Preference | None]) -> Preference | None:
    """Return the verdict of several votes on one row: the most frequent preference among those that parsed.

    Of equally frequent ones "tie" counts; without it, A as often as B, there is none. Nor is there where fewer than
    half of the votes parsed: what is left would be the verdict of a few.
    """
    parsed = [vote for vote in votes if vote is not None]
    if not parsed or 2 * len(parsed) < len(votes):
        return None
    counts = Counter(parsed)
    frequent = [verdict for verdict in counts if counts[verdict] == max(counts.values())]
    return frequent[0] if len(frequent) == 1 else "tie" if "tie" in frequent else None


def judge_metrics(
    labels: list[Preference],
    verdicts: list[Preference | None],
    swapped: list[Preference | None],
    longer: list[Preference | None],
) -> dict[str, float]:
    """Return how well a judge's verdicts, None where it gave none, agree with the labels and with one another.

    Args:
        labels: of the pairs as given. verdicts: on these. swapped: on the pairs with the responses swapped, where "A"
        is the response that was B. longer: the longer response as given, None where that is not known.

    Returns:
        pairs. Over the answers in both orders, a missing verdict being wrong: parse_rate; accuracy; tie_recall, the
        share of the answers to ties that say so. tie_precision, over the answers that say "tie", how many are right.
        first_rate, over the answers that prefer a response, how many prefer the one shown first; 0.5 is no bias, if
        only the orders differ. Over the pairs: accuracy_as_given, accuracy_swapped; both_right, right in both orders;
        consistency, the same response (or none) preferred in both. Figures of nothing are absent.
        What a judge that reads nothing reaches: majority_accuracy, of always giving the verdict that suits it best;
        majority_both_right, of always saying "tie", the only constant that can be right twice; and longer_both_right,
        of preferring the longer response, over the pairs for which it is known.
    """
    pairs = len(labels)
    turned = [SWAPPED.get(verdict) for verdict in swapped]  # in the words of the order as given
    shown = [*zip(labels, verdicts), *zip(map(SWAPPED.get, labels), swapped)]
    given = [verdict for _, verdict in shown if verdict is not None]
    counts = Counter(given)
    ties_found = sum(label == verdict == "tie" for label, verdict in shown)
    as_given = [label == verdict for label, verdict in zip(labels, verdicts)]
    when_swapped = [label == verdict for label, verdict in zip(labels, turned)]
    metrics = {
        "pairs": pairs,
        "parse_rate": len(given) / len(shown),
        "accuracy": sum(as_given + when_swapped) / len(shown),
        "accuracy_as_given": sum(as_given) / pairs,
        "accuracy_swapped": sum(when_swapped) / pairs,
        "both_right": sum(map(all, zip(as_given, when_swapped))) / pairs,
        "consistency": sum(one is not None and one == other for one, other in zip(verdicts, turned)) / pairs,
    }
    if preferring := counts["A"] + counts["B"]:
        metrics["first_rate"] = counts["A"] / preferring
    if counts["tie"]:
        metrics["tie_precision"] = ties_found / counts["tie"]
    ties = labels.count("tie")
    if ties:
        metrics["tie_recall"] = ties_found / (2 * ties)
    metrics["majority_accuracy"] = max(ties, (pairs - ties) / 2) / pairs
    metrics["majority_both_right"] = ties / pairs
    known = [(label, guess) for label, guess in zip(labels, longer) if guess is not None]
    if known:
        metrics["longer_both_right"] = sum(label == guess for label, guess in known) / len(known)
    return metrics


def main() -> None:
    options = read_options(
        "A judge's preferences beside the labels.", "input, output and metadata, or prompt, prompt_swapped and label"
    )
    rows, bad = load_rows(options.data, options.on_bad_row)
    rows, left_out, answers = judge(options, rows)
    labels, votes = [row["label"] for row in rows], [[parse(text) for text in given] for given in answers]
    verdicts = [decide(cast) for cast in votes]
    longer = [row["longer"] for row in rows]
    metrics = judge_metrics(labels[::2], verdicts[::2], verdicts[1::2], longer[::2])
    metrics["clipped"] = clipped_share(answers)
    more, bins = vote_metrics(labels, votes, verdicts) if options.votes > 1 else ({}, [])
    tables = {"label (row), verdict (column)": confusion(labels, verdicts, VERDICTS)}
    if bins:
        names, _, counts = tables["votes for the verdict (row)"] = vote_table(bins, options.votes)
        for name, (right, wrong) in zip(names, counts):
            print(f"{name + ' votes agree':28} {right} of {right + wrong} verdicts right")
    columns = [{key: row[key] for key in ("source", "order", "data_source", "prompt", "label")} for row in rows]
    answered = zip(columns, verdicts, votes, answers)
    kept = [{**row, "verdict": verdict, "votes": cast, "answers": given} for row, verdict, cast, given in answered]
    report(options, metrics | more, tables, bad + left_out, kept, {"calibration": bins, "rows_digest": digest(rows)})


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        main()
    except (DataError, EndpointError) as error:
        raise SystemExit(f"evaluate.py: {error}") from None
