"""A judge's figures on cases counted by hand."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from common.generation import answer_prompts
from common.judging.votes import confusion, vote_metrics, vote_table
from common.report import Table
from generative_pointwise.evaluate import decide, evidence_metrics, score_metrics
from generative_pointwise.prompt import VERDICTS

VOTES = st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=9)


def measure_votes(labels: list, votes: list[list]) -> tuple[dict, list[dict]]:
    return vote_metrics(labels, votes, [decide(cast) for cast in votes])


def test_figures_of_six_rows():
    """By hand: errors 0, 1, 0, 2, 0 over the five rows with a verdict.

    Ranks of the verdicts 0 2 2 1 4 are 1, 3.5, 3.5, 2, 5, those of the labels 1 to 5: covariance 6.5, variances 10 and
    9.5. Quadratic kappa: observed squares 5; expected Σl² + Σv² - 2 Σl Σv / 5 = 30 + 25 - 36 = 19.
    Constants, over six labels of mean 7/3: always 4 is right twice, its errors sum to 10; the mean's sum to 8; always 3
    is off by more than one twice.
    """
    assert score_metrics([0, 1, 2, 3, 4, 4], [0, 2, 2, 1, 4, None]) == {
        "rows": 6,
        "parse_rate": pytest.approx(5 / 6),
        "accuracy": pytest.approx(3 / 6),
        "within_one": pytest.approx(4 / 6),
        "mae": pytest.approx(3 / 5),
        "spearman": pytest.approx(6.5 / math.sqrt(10 * 9.5)),
        "kappa": pytest.approx(1 - 5 / 19),
        "majority_accuracy": pytest.approx(2 / 6),
        "majority_mae": pytest.approx(10 / 6),
        "mean_mae": pytest.approx(8 / 6),
        "constant_within_one": pytest.approx(4 / 6),
    }


def test_a_judge_that_is_always_right_and_one_that_turns_the_scale_round():
    labels = [0, 1, 2, 3, 4]
    right, reverse = score_metrics(labels, labels), score_metrics(labels, labels[::-1])
    for metrics, sign in ((right, 1), (reverse, -1)):
        assert metrics["spearman"] == pytest.approx(sign) and metrics["kappa"] == pytest.approx(sign)
    assert (right["accuracy"], right["within_one"], right["mae"]) == (1.0, 1.0, 0.0)
    assert (reverse["accuracy"], reverse["within_one"], reverse["mae"]) == (0.2, 0.2, pytest.approx(12 / 5))


def test_two_scores_that_the_data_lacks_do_not_change_what_a_step_weighs():
    """Kappa over the five scores of the scale: 1 - 1/(2 + 1 - 2·2·1/4), whatever values the rows happen to hold."""
    assert score_metrics([0, 0, 1, 1], [0, 0, 0, 1])["kappa"] == pytest.approx(1 - 1 / (2 + 1 - 2 * 2 * 1 / 4))
    assert score_metrics([0, 0, 4, 4], [0, 0, 0, 4])["kappa"] == pytest.approx(1 - 16 / (32 + 16 - 2 * 8 * 4 / 4))


def test_a_missing_verdict_is_wrong_whatever_the_label():
    """Trap 14: 0 is no default."""
    metrics = score_metrics([0, 0, 2], [None, None, None])
    assert (metrics["parse_rate"], metrics["accuracy"], metrics["within_one"]) == (0, 0, 0)
    assert not {"mae", "spearman", "kappa"} & metrics.keys()
    assert metrics["majority_accuracy"] == pytest.approx(2 / 3) and metrics["mean_mae"] == pytest.approx(8 / 9)


def test_where_all_labels_are_equal_there_is_no_rank_correlation():
    metrics = score_metrics([2, 2, 2, 2], [2, 3, 2, None])
    assert "spearman" not in metrics and metrics["kappa"] == 0.0  # no better than chance
    assert (metrics["accuracy"], metrics["mae"]) == (0.5, pytest.approx(1 / 3))
    assert (metrics["majority_accuracy"], metrics["majority_mae"], metrics["mean_mae"]) == (1, 0, 0)
    assert not {"spearman", "kappa"} & score_metrics([2, 2], [2, 2]).keys()
    assert "spearman" not in score_metrics([1, 2, 3], [2, 2, 2])


@pytest.mark.parametrize("verdict, kappa", [(3, None), (1, 0.0), (None, None)])
def test_one_row(verdict, kappa):
    metrics = score_metrics([3], [verdict])
    assert metrics["rows"] == 1 and metrics["accuracy"] == (verdict == 3) and metrics.get("kappa") == kappa


@pytest.mark.parametrize("labels", [[0, 0, 1, 4, 4], [4, 4, 1, 0, 0]])
def test_of_two_labels_as_frequent_the_nearer_one_is_the_baseline(labels):
    """By hand: always 0 errs by 1 + 4 + 4, always 4 by 4 + 4 + 3."""
    assert score_metrics(labels, labels)["majority_mae"] == pytest.approx(9 / 5)


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=1), st.randoms())
def test_figures_are_numbers_that_no_order_of_rows_changes(rows, random):
    metrics = score_metrics(*map(list, zip(*rows)))
    json.dumps(metrics, allow_nan=False)
    random.shuffle(rows)
    assert score_metrics(*map(list, zip(*rows))) == pytest.approx(metrics)


# ---- several votes


@pytest.mark.parametrize(
    "votes, verdict",
    [
        ([3], 3),
        ([None], None),
        ([0], 0),
        ([2, 2, 4], 2),
        ([0, 4, 4, 0, 3], 4),  # twice each; the mean is 2.2
        ([0, 4, 4, 0, 1], 0),  # 1.8
        ([3, 1, 3, 1], 1),  # the mean lies in between: the lower
        ([0, 1, 2, 3, 4], 2),
        ([None, 3], 3),  # half of them parse
        ([None, None, 3], None),
        ([None, None, None, 3, 3], None),
        ([None, None, 3, 3], 3),
        ([], None),
    ],
)
def test_the_verdict_of_votes(votes, verdict):
    assert decide(votes) == verdict


@given(VOTES, st.randoms())
def test_the_verdict_is_a_most_frequent_vote_in_any_order(votes, random):
    verdict, parsed = decide(votes), [vote for vote in votes if vote is not None]
    assert (verdict is None) == (len(parsed) < len(votes) / 2)
    assert verdict is None or parsed.count(verdict) == max(map(parsed.count, parsed))
    random.shuffle(votes)
    assert decide(votes) == verdict


def test_what_several_votes_tell():
    """By hand: of 20 votes 4 + 2 + 1 + 1 + 1 are right.

    Calibration over four rows: unanimous and right; two with half of the votes, one right; three of four and wrong, a
    gap of 0.75 for a quarter of the rows.
    """
    labels = [1, 2, 3, 4, 0]
    votes = [[1, 1, 1, 1], [2, 2, 0, None], [0, 0, 3, 4], [None, None, None, 4], [3, 3, 3, 0]]
    assert [decide(cast) for cast in votes] == [1, 2, 0, None, 3]
    metrics, bins = measure_votes(labels, votes)
    assert metrics == {"single_vote_accuracy": 9 / 20, "calibration_error": pytest.approx(0.75 / 4)}
    assert bins == [
        {"agreeing": 2, "rows": 2, "right": 1},
        {"agreeing": 3, "rows": 1, "right": 0},
        {"agreeing": 4, "rows": 1, "right": 1},
    ]


def test_a_judge_that_is_sure_and_right_is_calibrated_and_one_that_is_sure_and_wrong_is_not():
    assert measure_votes([0, 4], [[0] * 5, [4] * 5])[0]["calibration_error"] == 0.0
    assert measure_votes([0, 4], [[4] * 5, [0] * 5])[0]["calibration_error"] == 1.0


def test_votes_of_which_none_is_readable():
    assert measure_votes([0, 4], [[None] * 3] * 2) == ({"single_vote_accuracy": 0.0}, [])


# ---- clipped answers, evidence, confusion


def test_an_answer_is_clipped_unless_it_came_to_an_end_token(tiny_model, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = tiny_tokenizer.pad_token_id  # one that this model does not write here
    (written,) = answer_prompts(model, tiny_tokenizer, ["Hi"], 6, 99)[0]
    last = tiny_tokenizer(written)["input_ids"][-1]
    model.generation_config.eos_token_id = last
    ((whole,),) = answer_prompts(model, tiny_tokenizer, ["Hi"], 6, 99)
    assert written.clipped and not whole.clipped and written.startswith(whole) and len(whole) < len(written)


def test_evidence_is_sought_whole_in_the_reasoning_of_every_answer():
    """By hand: of four answers to rows with evidence, the second's is behind </think>, the third lacks one text."""
    evidence = [["topic yes", "tone no"], ["topic yes"], []]
    answers = [
        ["<think>tone no, topic yes</think><score>3</score>", "<think>topic yes</think>tone no"],
        ["<think>Topic yes</think><score>3</score>", "<think>topic yes"],  # letter by letter; a clipped one counts
        ["<think>whatever</think>", ""],
    ]
    assert evidence_metrics(evidence, answers) == {"evidence": 0.5, "evidence_rows": 2}


def test_evidence_is_sought_in_the_reasoning_behind_an_empty_think_block():
    """Trap 37: the template has closed a think block, and the answer reasons as the prompt asks."""
    empty, right = "<think>\n\n</think>\n\n", "<think>topic yes</think><score>3</score>"
    assert evidence_metrics([["topic yes"]], [[empty + right]]) == {"evidence": 1.0, "evidence_rows": 1}
    assert evidence_metrics([["topic yes"]], [[empty + "<score>3</score>topic yes"]])["evidence"] == 0.0


def test_without_evidence_there_is_no_figure():
    assert evidence_metrics([[], []], [["topic yes"], [""]]) == {}


def test_the_confusion_has_a_row_a_label_and_a_column_for_no_verdict():
    labels = ["0", "1", "2", "3", "4"]
    counts = [[1, 0, 0, 0, 0, 1], [0] * 6, [0] * 6, [0] * 6, [1, 0, 0, 0, 1, 1]]
    expected = Table("label (row)", labels, [*labels, "no verdict"], counts)
    assert confusion([0, 0, 4, 4, 4], [0, None, 0, 4, None], VERDICTS, "label (row)") == expected


def test_the_table_of_votes_has_a_row_for_each_number_that_agrees():
    bins = [{"agreeing": 2, "rows": 5, "right": 1}, {"agreeing": 3, "rows": 4, "right": 4}]
    expected = Table("votes for the verdict (row)", ["2 of 3", "3 of 3"], ["right", "wrong"], [[1, 4], [4, 0]])
    assert vote_table(bins, 3) == expected
