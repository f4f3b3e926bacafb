"""Judges behind an endpoint, as graders: one verdict a call, or an error that names its cause.

When a request is repeated is in test_endpoint.py.
"""

import asyncio
import re
import threading

import pytest
from conftest import AtOnce
from openjudge.runner.grading_runner import GradingRunner
from test_endpoint import completion, serve

from common.conversation import DataError
from common.grading.contract import GraderError, GraderMode, GraderScore
from generative_pairwise import prompt as pairwise
from generative_pairwise.grader import PairwiseGrader
from generative_pointwise import prompt as pointwise
from generative_pointwise.grader import PointwiseGrader

SCORE_3 = pointwise.write(3, "all but one")
DIALOGUE = [{"role": "user", "content": "How many?"}]


def grade(grader, *responses: object) -> list:
    async def all_at_once() -> list:
        return await asyncio.gather(*(grader.aevaluate(query="How many?", response=text) for text in responses))

    return asyncio.run(all_at_once())


def grade_by_runner(grader, *responses: object) -> list:
    runner = GradingRunner({"judge": (grader, {"query": "asked", "response": "reply"})}, show_progress=False)
    return asyncio.run(runner.arun([{"asked": "How many?", "reply": text} for text in responses]))["judge"]


def response_in(request: dict) -> str:
    return request["messages"][0]["content"].partition("<response>\n")[2].partition("\n</response>")[0]


# ---- what is asked


def test_the_prompt_goes_out_as_a_users_turn_and_the_verdict_comes_back(tiny_model, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(lambda *_: SCORE_3) as (url, requests):
        for options in ({}, {"tokenizer": str(tiny_model)}):
            (graded,) = grade(PointwiseGrader("judge", url, max_new_tokens=17, **options), "Four.")
            assert (type(graded), graded.score, graded.reason) == (GraderScore, 3, "all but one")
    asked = {"model": "judge", "messages": pointwise.ask(DIALOGUE, "Four."), "max_tokens": 17, "temperature": 0.0}
    assert requests == [{**asked, "key": "Bearer none", "path": "/v1/chat/completions"}] * 2


def test_one_grader_serves_event_loops_one_after_another_and_asks_no_more_at_once_than_allowed():
    at_once = AtOnce()

    def reply(request, _):
        at_once.take(0.02)
        return pointwise.write(int(response_in(request)))

    with serve(reply) as (url, _):
        grader = PointwiseGrader("judge", url, concurrency=3)
        given = [[result.score for result in grade(grader, *"01234340")] for _ in range(3)]
        for connection in [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]:
            connection.join(5)
            assert not connection.is_alive(), "left open by an event loop that has ended"
    assert given == [[0, 1, 2, 3, 4, 3, 4, 0]] * 3
    assert at_once.most == 3


# ---- what passes, and what does not


@pytest.mark.parametrize(
    "reply, requested, cause",
    [
        ((500, {"error": "out of memory"}), 2, "InternalServerError.*out of memory"),
        ((400, {"error": "context length is 4096"}), 1, "BadRequestError.*context length is 4096"),
        ((200, "<html>Welcome to the proxy</html>"), 2, "not what was asked for: '<html>Welcome"),
        ((200, {}), 2, "not what was asked for: .ChatCompletion"),
        ((200, "not JSON"), 2, "JSONDecodeError"),
    ],
    ids=str,
)
def test_what_stays_is_an_error_with_its_cause_after_so_many_requests(reply, requested, cause):
    with serve(lambda *_: reply) as (url, requests):
        (graded,) = grade(PointwiseGrader("judge", url, retries=1), "Four.")
    assert type(graded) is GraderError and len(requests) == requested
    assert graded.error.startswith(f"{url}/ (model judge): ") and re.search(cause, graded.error)


def test_pauses_grow(monkeypatch):
    pauses, sleep = [], asyncio.sleep

    async def noted(seconds, *given):
        pauses.append(seconds)
        return await sleep(0, *given)

    monkeypatch.setattr("common.grading.endpoint.asyncio.sleep", noted)
    with serve(lambda *_: (200, "null")) as (url, requests):
        (graded,) = grade(PointwiseGrader("judge", url), "Four.")
    assert type(graded) is GraderError and len(requests) == 7
    assert [pause for pause in pauses if pause >= 0.5] == [0.5, 1, 2, 4, 8, 8]


@pytest.mark.parametrize("graded_by", [grade, grade_by_runner])
@pytest.mark.parametrize(
    "failure, cause", [((500, {"error": "out of memory"}), "out of memory"), ("I cannot judge this.", "no well-formed")]
)
def test_a_call_that_fails_leaves_twenty_others_as_they_are(graded_by, failure, cause):
    with serve(lambda request, _: failure if response_in(request) == "bad" else SCORE_3) as (url, requests):
        graded = graded_by(PointwiseGrader("judge", url, retries=1), *["good"] * 13, "bad", *["good"] * 7)
    wrong = graded.pop(13)
    assert type(wrong) is GraderError and cause in wrong.error
    assert [(type(result), result.score) for result in graded] == [(GraderScore, 3)] * 20
    assert len(requests) == 20 + (2 if failure[0] == 500 else 1)


def test_what_no_request_can_hold_is_an_error_beside_good_calls():
    with serve(lambda *_: SCORE_3) as (url, requests):
        first, wrong, last = grade(PointwiseGrader("judge", url), "Four.", "\ud83d", "Five.")
    assert type(wrong) is GraderError and "not Unicode" in wrong.error
    assert (first.score, last.score, len(requests)) == (3, 3, 2)


# ---- answers


@pytest.mark.parametrize("text", ["", "4", "I cannot judge.", "<think>why</think>4", "<score>3</score>", SCORE_3[:-1]])
def test_an_answer_without_a_verdict_is_an_error_that_shows_it_and_is_not_asked_again(text):
    with serve(lambda *_: text) as (url, requests):
        (graded,) = grade(PointwiseGrader("judge", url), "Four.")
    assert type(graded) is GraderError and graded.error.endswith(repr(text))
    assert "no well-formed verdict" in graded.error and len(requests) == 1


@pytest.mark.parametrize("message", [{"content": None}, {"content": None, "reasoning": "<score>3</score>"}])
def test_an_answer_without_content_is_an_error(message):
    with serve(lambda *_: message) as (url, _):
        assert type(grade(PointwiseGrader("judge", url), "Four.")[0]) is GraderError


def test_an_answer_whose_tokens_ran_out_says_so():
    with serve(lambda *_: (200, completion("<think>Hm", "length"))) as (url, _):
        (graded,) = grade(PointwiseGrader("judge", url), "Four.")
    assert type(graded) is GraderError and "raise max_new_tokens" in graded.error


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_is_split_from_its_verdict_is_put_before_it(name):
    """Trap 28."""
    with serve(lambda *_: {"content": "\n\n<score>3</score>", name: "\nall but one\n"}) as (url, _):
        (graded,) = grade(PointwiseGrader("judge", url), "Four.")
    assert (graded.score, graded.reason, graded.metadata["answer"]) == (3, "all but one", SCORE_3)


def test_reasoning_that_a_server_hides_must_be_said():
    with serve(lambda *_: "<score>3</score>") as (url, _):
        (kept,) = grade(PointwiseGrader("judge", url), "Four.")
        (hidden,) = grade(PointwiseGrader("judge", url, hidden_reasoning=True), "Four.")
    assert type(kept) is GraderError and "hidden_reasoning" in kept.error
    assert (hidden.score, hidden.reason) == (3, "")


@pytest.mark.parametrize(
    "begun, content, reason",
    [
        ("<think>\n", "all but one\n</think>\n\n<score>3</score>", "all but one"),
        ("<think>\n\n</think>\n\n", "<score>3</score>", ""),
        ("<think>\n\n</think>\n\n", "<think>all but one</think>\n\n<score>3</score>", "all but one"),
        ("</think>", "<think>\nall but one</think><score>3</score>", "all but one"),
    ],
)
def test_what_the_chat_template_began_is_known_from_the_tokenizer(tiny_tokenizer, tmp_path, begun, content, reason):
    """Trap 23."""
    tiny_tokenizer.chat_template += f"{{{{- {begun!r} }}}}"
    tiny_tokenizer.save_pretrained(tmp_path)
    with serve(lambda *_: content) as (url, _):
        (graded,) = grade(PointwiseGrader("judge", url, tokenizer=str(tmp_path)), "Four.")
    assert (graded.score, graded.reason, graded.metadata["answer"]) == (3, reason, begun + content)


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("[INST]{{ messages[0].content }}[/INST][THINK]", "the chat template begins the answer with '\\[THINK\\]'"),
        ("{{ raise_exception('Never.') }}", "the model's chat template refuses the conversation: Never"),
    ],
)
def test_a_template_by_which_no_answer_could_be_read_is_refused_at_once(tiny_tokenizer, tmp_path, template, cause):
    tiny_tokenizer.chat_template = template
    tiny_tokenizer.save_pretrained(tmp_path)
    for judge in (PointwiseGrader, PairwiseGrader):
        with pytest.raises(DataError, match=cause):
            judge("judge", "http://localhost:1/v1", tokenizer=str(tmp_path))


# ---- pairs


def longer(request: dict, _) -> str:
    text = request["messages"][0]["content"]
    first, second = (text.partition(f"<response_{name}>\n")[2].partition("\n</")[0] for name in "ab")
    return pairwise.write("A" if len(first) > len(second) else "B")


def test_pairs_are_asked_in_both_orders_and_ranked():
    with serve(longer) as (url, requests):
        pair = PairwiseGrader("judge", url).aevaluate(query="Hi", response_a="short", response_b="much longer")
        assert asyncio.run(pair).score == 0.0 and len(requests) == 2
        grader = PairwiseGrader("judge", url, mode=GraderMode.LISTWISE)
        ranked = asyncio.run(grader.aevaluate(query="Hi", responses=["a", "aaaa", "aa"]))
    assert ranked.rank == [3, 1, 2] and len(requests) == 2 + 6


def test_a_pair_with_one_order_lost_is_an_error():
    with serve(lambda request, number: longer(request, number) if number % 2 else (500, {"error": "lost"})) as (url, _):
        pair = PairwiseGrader("judge", url, retries=0).aevaluate(query="Hi", response_a="a", response_b="bb")
        graded = asyncio.run(pair)
    assert type(graded) is GraderError and "lost" in graded.error
