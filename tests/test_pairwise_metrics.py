"""A pairwise judge's figures on cases counted by hand, and what they must not depend on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generative_pairwise.evaluate import decide, preference_metrics
from generative_pairwise.prompt import PREFERENCES, SWAPPED

LABEL = st.sampled_from(PREFERENCES)
VERDICT = st.none() | LABEL
VOTES = st.lists(VERDICT, min_size=1, max_size=9)
# label, verdict as given, verdict on the swapped pair, longer response
PAIRS = st.lists(st.tuples(LABEL, VERDICT, VERDICT, VERDICT), min_size=1)


def measure(pairs: list[tuple]) -> dict:
    return preference_metrics(*map(list, zip(*pairs)))


def swap(verdicts: list) -> list:
    return [SWAPPED.get(verdict) for verdict in verdicts]


# ---- both orders

BY_HAND = [
    ("A", "A", "B", "A"),  # right in both orders
    ("A", "A", "A", "B"),  # what stands first, twice
    ("B", "A", "B", None),  # wrong twice, and consistent
    ("B", None, "A", "B"),  # right in the swapped order alone
    ("tie", "tie", "tie", "tie"),
    ("tie", "A", "tie", "A"),
    ("A", "tie", "tie", "A"),  # consistent
]


def test_figures_of_seven_pairs():
    """By hand: of 13 verdicts six say "A", two "B" and five "tie", three of them to ties. The longer one: 4 of 6."""
    assert measure(BY_HAND) == {
        "pairs": 7,
        "parse_rate": pytest.approx(13 / 14),
        "accuracy": pytest.approx(7 / 14),
        "accuracy_as_given": pytest.approx(3 / 7),
        "accuracy_swapped": pytest.approx(4 / 7),
        "both_right": pytest.approx(2 / 7),
        "consistency": pytest.approx(4 / 7),
        "first_rate": pytest.approx(6 / 8),
        "tie_precision": pytest.approx(3 / 5),
        "tie_recall": pytest.approx(3 / 4),
        "majority_accuracy": pytest.approx(2.5 / 7),
        "majority_both_right": pytest.approx(2 / 7),
        "longer_both_right": pytest.approx(4 / 6),
    }


def test_a_judge_that_is_always_right_and_one_that_always_prefers_the_worse():
    labels = ["A", "B", "tie", "A"]
    right = preference_metrics(labels, labels, swap(labels), labels)
    names = ("accuracy", "both_right", "consistency", "parse_rate", "tie_precision", "tie_recall", "longer_both_right")
    assert [right[name] for name in names] == [1.0] * 7 and right["first_rate"] == 0.5
    worse = preference_metrics(labels, swap(labels), labels, labels)
    assert (worse["consistency"], worse["accuracy"], worse["both_right"]) == (1.0, 0.25, 0.25)  # the tie is right


@pytest.mark.parametrize(("letter", "first_rate"), [("A", 1.0), ("B", 0.0)])
def test_a_judge_that_looks_at_the_place_alone_is_never_consistent(letter, first_rate):
    metrics = preference_metrics(["A", "B", "A", "tie"], [letter] * 4, [letter] * 4, [None] * 4)
    assert (metrics["consistency"], metrics["both_right"], metrics["first_rate"]) == (0.0, 0.0, first_rate)
    assert metrics["accuracy"] == metrics["majority_accuracy"] == 3 / 8 and metrics["tie_recall"] == 0.0
    assert not {"tie_precision", "longer_both_right"} & metrics.keys()


def test_a_judge_that_always_says_tie_is_right_twice_on_ties_and_never_else():
    metrics = preference_metrics(["A", "B", "A", "tie"], ["tie"] * 4, ["tie"] * 4, [None] * 4)
    assert metrics["consistency"] == metrics["tie_recall"] == 1.0 and "first_rate" not in metrics
    assert metrics["accuracy"] == metrics["both_right"] == metrics["tie_precision"] == 0.25
    assert metrics["majority_both_right"] == 0.25 and metrics["majority_accuracy"] == 3 / 8


def test_missing_verdicts_are_wrong_whatever_the_label_and_never_consistent():
    """Trap 14: a tie is no default."""
    metrics = preference_metrics(["tie", "A", "tie"], [None] * 3, [None] * 3, ["A"] * 3)
    names = ("parse_rate", "accuracy", "both_right", "consistency", "tie_recall")
    assert [metrics[name] for name in names] == [0.0] * 5
    assert not {"first_rate", "tie_precision"} & metrics.keys()
    assert "tie_recall" not in preference_metrics(["A"], ["A"], [None], [None])


@given(PAIRS, st.randoms())
def test_figures_are_shares_that_agree_with_each_other_in_any_order_of_pairs(pairs, random):
    metrics = measure(pairs)
    json.dumps(metrics, allow_nan=False)
    assert metrics["accuracy"] == pytest.approx((metrics["accuracy_as_given"] + metrics["accuracy_swapped"]) / 2)
    assert metrics["both_right"] <= min(metrics["accuracy_as_given"], metrics["accuracy_swapped"])
    assert metrics["both_right"] <= metrics["consistency"] <= metrics["parse_rate"] <= 1
    random.shuffle(pairs)
    assert measure(pairs) == pytest.approx(metrics)


@given(PAIRS)
def test_no_figure_depends_on_which_order_is_called_the_given_one(pairs):
    labels, verdicts, swapped, longer = map(list, zip(*pairs))
    metrics, turned = measure(pairs), preference_metrics(swap(labels), swapped, verdicts, swap(longer))
    assert turned.pop("accuracy_as_given") == metrics.pop("accuracy_swapped")
    assert turned.pop("accuracy_swapped") == metrics.pop("accuracy_as_given")
    assert turned == metrics


@given(PAIRS)
def test_the_baselines_are_what_judges_get_that_read_nothing(pairs):
    labels, _, _, longer = map(list, zip(*pairs))
    constant = [preference_metrics(labels, [word] * len(pairs), [word] * len(pairs), longer) for word in PREFERENCES]
    assert constant[0]["majority_accuracy"] == max(metrics["accuracy"] for metrics in constant)
    assert constant[0]["majority_both_right"] == max(metrics["both_right"] for metrics in constant)
    known = [(label, guess, SWAPPED[guess], guess) for label, _, _, guess in pairs if guess]
    assert ("longer_both_right" in constant[0]) == bool(known)
    if known:
        assert constant[0]["longer_both_right"] == measure(known)["both_right"]


# ---- several votes


@pytest.mark.parametrize(
    "votes, verdict",
    [
        (["A"], "A"),
        ([None], None),
        ([], None),
        (["A", "A", "B"], "A"),
        (["A", "B"], None),  # no vote said tie
        (["A", "tie"], "tie"),
        (["A", "A", "B", "B", "tie"], None),
        (["B", "B", "tie", "tie", "A"], "tie"),
        ([None, "B"], "B"),  # half of them parse
        ([None, None, "B"], None),
        ([None, None, None, "B", "B"], None),
        ([None, None, "B", "B"], "B"),
    ],
)
def test_the_verdict_of_votes(votes, verdict):
    assert decide(votes) == verdict


@given(VOTES, st.randoms())
def test_neither_the_order_of_votes_nor_that_of_the_responses_changes_the_verdict(votes, random):
    verdict, parsed = decide(votes), [vote for vote in votes if vote is not None]
    drawn = parsed.count("A") == parsed.count("B") > parsed.count("tie")
    assert (verdict is None) == (len(parsed) < len(votes) / 2 or drawn)
    if verdict in ("A", "B"):
        assert all(parsed.count(verdict) > parsed.count(other) for other in PREFERENCES if other != verdict)
    assert decide(swap(votes)) == SWAPPED.get(verdict)
    random.shuffle(votes)
    assert decide(votes) == verdict
