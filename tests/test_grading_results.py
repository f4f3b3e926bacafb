"""What graders share: ranks, what is read, and what cannot be graded, which is named and ends nothing else."""

import asyncio
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.conversation import BadRow, read_dialogue, read_response
from common.grading.contract import Grader, GraderError, GraderScore, NoVerdict, rank_by, read_several
from common.grading.endpoint import EndpointError

# ---- ranks


@pytest.mark.parametrize(
    "figures, places, reason",
    [
        ([0.1, -2.0, 3.0], [2, 3, 1], "by reward"),
        ([0.0, 1.0], [2, 1], "by reward"),
        ([1.0, 2.0, 1.0, 2.0], [3, 1, 4, 2], "by reward; of equal ones the first given comes first"),
    ],
)
def test_ranks_by_hand(figures, places, reason):
    assert rank_by(figures, "reward") == (places, reason)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_ranks_are_places_by_figure_and_equal_ones_stand_as_given(figures):
    if len(set(figures)) == 1:
        with pytest.raises(BadRow, match="all have the same reward"):
            rank_by(figures, "reward")
        return
    places, _ = rank_by(figures, "reward")
    best_first = sorted(range(len(figures)), key=lambda index: places[index])
    assert sorted(places) == list(range(1, len(figures) + 1))
    assert best_first == sorted(range(len(figures)), key=lambda index: (-figures[index], index))


@pytest.mark.parametrize("figures, kind", [([1.0, None, None], "no win rate for response 2"), ([0.5] * 3, "no order")])
def test_what_is_no_order_is_not_ranked(figures, kind):
    with pytest.raises(BadRow, match=kind):
        rank_by(figures, "win rate")


# ---- what is read, and what cannot be graded

DIALOGUE = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]


def read_query(query: object) -> list[dict]:
    return read_dialogue(query, "query")


def test_a_query_is_text_messages_or_their_json():
    assert read_query("Hi") == DIALOGUE[1:]
    assert read_query(DIALOGUE) == read_query(json.dumps(DIALOGUE)) == DIALOGUE


def test_responses_are_a_list_or_its_json():
    assert read_several(["a", "b"]) == read_several('["a", "b"]') == ["a", "b"]
    assert read_response("") == ""


@pytest.mark.parametrize(
    "read, value, column, kind",
    [
        (read_query, "", "query", "empty text"),
        (read_query, " \n", "query", "empty text"),
        (read_query, None, "query", "expected a list of messages"),
        (read_query, [], "query", "expected a list of messages"),
        (read_query, '[{"role": "user", ', "query", "JSON that cannot be parsed"),
        (read_query, [{"role": "judge", "content": "Hi"}], "query", "unknown role"),
        (read_query, [{"role": "user", "content": 3}], "query", "content is not text"),
        (read_query, [{"role": "user", "content": "\ud83d"}], "query", "not Unicode"),
        (read_query, "\ud83d", "query", "not Unicode"),
        (read_response, None, "response", "expected text"),
        (read_response, b"Hi", "response", "expected text"),
        (read_response, {"content": "Hi"}, "response", "expected text"),
        (read_response, "\ud83d", "response", "not Unicode"),
        (read_several, None, "responses", "at least two texts"),
        (read_several, ["a"], "responses", "at least two texts"),
        (read_several, "ab", "responses", "JSON that cannot be parsed"),
        (read_several, {"a": 1, "b": 2}, "responses", "at least two texts"),
        (read_several, ["a", None], "responses", "expected text"),
        (read_several, ["a", "\ud83d"], "responses", "not Unicode"),
    ],
)
def test_what_cannot_be_graded_is_named(read, value, column, kind):
    with pytest.raises(BadRow, match=kind) as caught:
        read(value)
    assert caught.value.column == column


class Raising(Grader):
    """Grades by raising its query, if that is an error."""

    async def grade(self, query: object) -> GraderScore:
        if isinstance(query, Exception):
            raise query
        return GraderScore(name=self.name, score=query, reason="")


@pytest.mark.parametrize(
    "fault, error",
    [
        (BadRow("response", "empty response", ""), "response: empty response (found '')"),
        (BadRow("query", "empty text"), "query: empty text"),
        (NoVerdict("no well-formed verdict"), "no well-formed verdict"),
        (EndpointError("http://host: Connection error."), "http://host: Connection error."),
    ],
)
def test_a_fault_is_an_error_with_its_cause_beside_calls_that_succeed(fault, error):
    async def three_calls() -> list:
        return await asyncio.gather(*(Raising("judge").aevaluate(query=query) for query in (1.0, fault, 2.0)))

    first, wrong, last = asyncio.run(three_calls())
    assert (first.score, last.score) == (1.0, 2.0)
    assert type(wrong) is GraderError and (wrong.name, wrong.error) == ("judge", error)


def test_a_copy_of_a_grader_is_itself():
    grader = Raising("judge")
    assert copy.deepcopy(grader) is grader
    assert copy.deepcopy({"grader": grader})["grader"] is grader
