"""The demo's annotators, a lenient and a biased one: wrong in known ways, about responses that stay what they are."""

import hashlib
import json
import re

import pytest

import generative_pairwise.prompt as pairwise
import generative_pointwise.prompt as pointwise
from common.demo.transcripts import comparing, scoring
from common.demo.world import NUMBERS, PREFERENCE_RUBRIC, SCORE_RUBRIC, SPLITS, VALUES, pairwise_rows, pointwise_rows

# Of the rows as they were before there were annotators. Whoever changes the demo's words may change these.
TRAIN_3000 = "ee3f97bcccb0af8c25b93da4f49c3e59ff3c8ce4d17cbcf0561ec858047543d6"
VAL_3000 = "74ae18c030de316f9296fb312a9316b70f2616a835b6aa2a2d20a97e38fd0248"
COMPARED_TRAIN_3000 = "b6a7b257ad4245b3b93059a382e6062c469d2ab27dcb2c75e5a0344d9a514d2f"
COMPARED_VAL_3000 = "ae58b9d5c61dc6270e7c5077227c6a5b733ebb04a7c9a8d6d70af356c367642a"

FACTS = re.compile(r"(\w+) (\w+)/(\w+) (yes|no)")


def facts(row: dict) -> list[tuple[str, str, str, bool]]:
    return [(name, asked, got, met == "yes") for name, asked, got, met in FACTS.findall(row["reasoning"])]


def can_be_overlooked(name: str, asked: str, got: str) -> bool:
    """More things than asked for, or no reason where one was."""
    return (name == "count" and NUMBERS[got] > NUMBERS[asked]) or (name, asked, got) == ("reason", "why", "none")


@pytest.mark.parametrize(("split", "digest"), [("train", TRAIN_3000), ("val", VAL_3000)])
def test_without_leniency_the_rows_are_what_they_were_to_the_byte(split, digest):
    for rows in (pointwise_rows(split, 3000, 0), pointwise_rows(split, 3000, 0, leniency=0)):
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == digest


@pytest.mark.parametrize("split", SPLITS)
def test_a_lenient_annotator_sees_the_same_responses_and_overlooks_two_kinds_of_fault_alone(split):
    right, lenient = pointwise_rows(split, 2000, 1), pointwise_rows(split, 2000, 1, leniency=0.65)
    overlooked = {"count": [], "reason": []}
    for row, judged in zip(right, lenient):
        assert (judged["input"], judged["output"]) == (row["input"], row["output"])
        assert [fact[0] for fact in facts(judged)] == list(VALUES)
        assert judged["label"] == sum(met for *_, met in facts(judged))
        for (name, asked, got, met), found in zip(facts(row), facts(judged)):
            assert found[:3] == (name, asked, got)
            if can_be_overlooked(name, asked, got):
                assert not met
                overlooked[name].append(found[3])
            else:
                assert found[3] == met
    for kinds in overlooked.values():
        assert len(kinds) > 300 and sum(kinds) / len(kinds) == pytest.approx(0.65, abs=0.08)
    wrong = [judged["label"] - row["label"] for row, judged in zip(right, lenient)]
    assert set(wrong) == {0, 1, 2}
    assert sum(error > 0 for error in wrong) / 2000 == pytest.approx(0.29, abs=0.03)


def test_a_more_lenient_annotator_overlooks_all_that_a_less_lenient_one_does_and_at_last_everything():
    rows = [pointwise_rows("train", 500, 2, leniency) for leniency in (0.0, 0.3, 0.6, 1.0)]
    for less, more in zip(rows, rows[1:]):
        assert all(a["label"] <= b["label"] for a, b in zip(less, more))
        assert sum(a["label"] < b["label"] for a, b in zip(less, more)) > 20
    for row in rows[-1]:
        assert all(met == (asked == got or can_be_overlooked(name, asked, got)) for name, asked, got, met in facts(row))


def test_the_same_arguments_give_the_same_annotations():
    rows = pointwise_rows("train", 200, 5, 0.5)
    assert pointwise_rows("train", 300, 5, 0.5)[:200] == rows


# ---- which of two is better, by one who calls ties "A"


def preferred(rows: list[dict]) -> list[str]:
    return [row["metadata"]["preferred"] for row in rows]


@pytest.mark.parametrize(("split", "digest"), [("train", COMPARED_TRAIN_3000), ("val", COMPARED_VAL_3000)])
def test_without_bias_the_comparisons_are_what_they_were_to_the_byte(split, digest):
    for rows in (pairwise_rows(split, 3000, 0), pairwise_rows(split, 3000, 0, position_bias=0)):
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == digest


@pytest.mark.parametrize("split", SPLITS)
def test_a_biased_annotator_calls_ties_a_and_changes_nothing_else(split):
    right, biased = pairwise_rows(split, 2000, 1), pairwise_rows(split, 2000, 1, position_bias=0.65)
    called = []
    for row, judged in zip(right, biased):
        assert {**judged, "metadata": row["metadata"]} == row  # the reasoning too
        if row["metadata"]["preferred"] == "tie":
            called += preferred([judged])
        else:
            assert judged == row
    assert set(called) == {"A", "tie"} and called.count("A") / len(called) == pytest.approx(0.65, abs=0.05)


def test_a_more_biased_annotator_calls_all_ties_a_that_a_less_biased_one_does_and_at_last_every_one():
    found = [preferred(pairwise_rows("train", 500, 2, bias)) for bias in (0.0, 0.3, 0.6, 1.0)]
    for less, more in zip(found, found[1:]):
        changed = [pair for pair in zip(less, more) if pair[0] != pair[1]]
        assert set(changed) == {("tie", "A")} and len(changed) > 20
    assert set(found[-1]) == {"A", "B"}


def test_the_same_arguments_give_the_same_biased_comparisons():
    rows = pairwise_rows("train", 200, 5, 0.5)
    assert pairwise_rows("train", 300, 5, 0.5)[:200] == rows


# ---- what they say, as a judge's conversations


@pytest.mark.parametrize(
    ("transcript", "prompt", "rubric", "make_rows", "mistake"),
    [
        (scoring, pointwise, SCORE_RUBRIC, pointwise_rows, {"leniency": 0.65}),
        (comparing, pairwise, PREFERENCE_RUBRIC, pairwise_rows, {"position_bias": 0.65}),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_the_demos_conversations_are_those_that_the_judges_own_prompts_make(
    split, transcript, prompt, rubric, make_rows, mistake
):
    """To the byte: a judge trained by sft on the demo is asked in these words by GRPO, evaluation and grader."""
    for rows in (make_rows(split, 200, 0), make_rows(split, 200, 1, **mistake)):
        expected = [prompt.transcripts(prompt.read_row(row), rubric) for row in rows]
        assert [[transcript(row)] for row in rows] == expected
        verdicts = [prompt.parse(messages[-1]["content"]) for (messages,) in expected]
        assert set(verdicts) == set(prompt.VERDICTS)


def test_a_transcript_of_a_lenient_row_says_what_the_annotator_believes():
    for row in pointwise_rows("train", 50, 0, leniency=0.65):
        prompt, answer = scoring(row)
        assert f"<think>\n{row['reasoning']}\n</think>" in answer["content"]
        assert pointwise.parse(answer["content"]) == row["label"] == answer["content"].count(" yes")
        assert row["output"][0]["answer"]["content"] in prompt["content"]


def test_a_transcript_of_a_biased_row_reasons_rightly_and_ends_with_what_the_annotator_says():
    biased, right = pairwise_rows("train", 200, 0, position_bias=0.65), preferred(pairwise_rows("train", 200, 0))
    for row, label in zip(biased, right):
        _, answer = comparing(row)
        assert [pairwise.parse(answer["content"])] == preferred([row])
        of_a, of_b = (len(re.findall(rf"/\w+ {letter}\b", answer["content"])) for letter in "AB")
        assert label == ("A" if of_a > of_b else "B" if of_a < of_b else "tie")
