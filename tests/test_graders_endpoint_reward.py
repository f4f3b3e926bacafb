"""The reward model behind /classify, as a grader: token ids go out, one finite number comes back, or it is an error."""

import asyncio
import json

import pytest
from openjudge.runner.grading_runner import GradingRunner
from test_endpoint import serve
from transformers import AutoTokenizer

from bradley_terry import grader as grader_module
from common.grading.contract import GraderError, GraderMode, GraderRank, GraderScore

TURNS = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "How many? 四 🙂"},
]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Behind an endpoint the weights are never read here."""
    monkeypatch.delattr(grader_module, "load_reward_model")


@pytest.fixture
def served(reward_checkpoint):
    """Make a grader for an endpoint."""
    return lambda url, **options: grader_module.BradleyTerryGrader(str(reward_checkpoint), url, **options)


@pytest.fixture
def ids_of(reward_checkpoint):
    """Render a conversation and tokenise it, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(reward_checkpoint)

    def encode(dialogue: list[dict], response: str) -> list[int]:
        conversation = [*dialogue, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return encode


def vllm(*values) -> tuple[int, dict]:
    number = {"index": 0, "label": "reward", "probs": list(values), "num_classes": len(values)}
    return 200, {"data": [number]}


def sglang(*values) -> tuple[int, dict]:
    return 200, {"embedding": list(values), "meta_info": {"id": "1", "prompt_tokens": 3}}


def grade(grader, *responses: object, query: object = "Hi") -> list:
    async def all_at_once() -> list:
        return await asyncio.gather(*(grader.aevaluate(query=query, response=text) for text in responses))

    return asyncio.run(all_at_once())


def grade_by_runner(grader, *responses: object) -> list:
    runner = GradingRunner({"reward": (grader, {"query": "asked", "response": "reply"})}, show_progress=False)
    return asyncio.run(runner.arun([{"asked": "Hi", "reply": text} for text in responses]))["reward"]


# ---- what is asked, and what comes back


@pytest.mark.parametrize("form", [vllm, sglang])
@pytest.mark.parametrize("value", [-1.5, 0.0, 17, 1e-30])
def test_a_raw_number_of_either_server_is_the_reward(served, form, value):
    with serve(lambda *_: form(value)) as (url, _):
        (graded,) = grade(served(url), "Four.")
    assert (type(graded), graded.score) == (GraderScore, value)


@pytest.mark.parametrize("query, dialogue", [("Hi", TURNS[1:2]), (TURNS, TURNS), (json.dumps(TURNS), TURNS)], ids=type)
def test_token_ids_of_the_local_rendering_go_out_and_no_text(served, ids_of, reward_checkpoint, query, dialogue):
    with serve(lambda *_: vllm(-1.5)) as (url, requests):
        grade(served(url), "Four.", query=query)
    ids = ids_of(dialogue, "Four.")
    (request,) = requests
    asked = {name: value for name, value in request.items() if name not in ("key", "path")}
    assert asked == {"model": str(reward_checkpoint), "input": ids, "input_ids": ids, "use_activation": False}


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_address_may_end_as_other_endpoints_do_and_the_model_may_have_a_name(served, end):
    with serve(lambda *_: vllm(-1.5)) as (url, requests):
        (graded,) = grade(served(url.removesuffix("/v1") + end, served_name="rm"), "Four.")
    assert graded.score == -1.5
    assert [(request["path"], request["model"]) for request in requests] == [("/classify", "rm")]


def test_each_of_many_calls_gets_its_own_reward(served, ids_of):
    texts = ["many " * count for count in range(1, 41)]
    with serve(lambda request, _: vllm(float(len(request["input"])))) as (url, _):
        grader = served(url, concurrency=8)
        graded = [grade(grader, *texts), grade(grader, *texts)]
    expected = [len(ids_of(TURNS[1:2], text)) for text in texts]
    assert [[result.score for result in results] for results in graded] == [expected] * 2


def test_responses_are_ranked_by_served_rewards(served):
    with serve(lambda request, _: sglang(-float(len(request["input_ids"])))) as (url, requests):
        grader = served(url, mode=GraderMode.LISTWISE)
        ranked = asyncio.run(grader.aevaluate(query="Hi", responses=["a b c", "a", "a b"]))
    assert type(ranked) is GraderRank and ranked.rank == [3, 1, 2] and len(requests) == 3


# ---- what is no reward

NO_REWARDS = [
    vllm(),
    vllm(0.2, 0.8),
    vllm(float("nan")),
    vllm(float("inf")),
    vllm("-1.5"),
    vllm(None),
    vllm(True),
    vllm([-1.5]),
    vllm(10**400),
    sglang(),
    sglang(0.2, 0.8),
    sglang(float("nan")),
    sglang("-1.5"),
    sglang(False),
    (200, {}),
    (200, []),
    (200, "null"),
    (200, "-1.5"),
    (200, "<html>Welcome to the proxy</html>"),
    (200, ""),
    (200, "\0\0{}}"),
    (200, {"data": []}),
    (200, {"data": None}),
    (200, {"data": ["-1.5"]}),
    (200, {"data": [{"label": "reward"}]}),
    (200, {"data": [{"probs": -1.5}]}),
    (200, {"data": [{"probs": [-1.5]}, {"probs": [2.0]}]}),
    (200, {"embedding": None}),
    (200, {"embedding": -1.5}),
]


@pytest.mark.parametrize("reply", NO_REWARDS, ids=lambda reply: str(reply[1])[:95])
def test_a_reply_that_is_no_reward_is_an_error_that_names_the_endpoint(served, reply):
    with serve(lambda *_: reply) as (url, _):
        (graded,) = grade(served(url, served_name="rm", retries=0), "Four.")
    assert type(graded) is GraderError
    assert graded.error.startswith(f"{url.removesuffix('/v1')} (model rm): ")


@pytest.mark.parametrize(
    "failure, requested, cause",
    [
        ((500, {"error": "out of memory"}), 2, "out of memory"),
        ((404, {"error": "no /classify here"}), 1, "no /classify here"),
        (vllm(0.2, 0.8), 2, "[0.2, 0.8]"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_stays_is_an_error_with_its_cause_after_so_many_requests(served, failure, requested, cause):
    with serve(lambda *_: failure) as (url, requests):
        (graded,) = grade(served(url, retries=1), "Four.")
    assert type(graded) is GraderError and cause in graded.error
    assert len(requests) == requested


@pytest.mark.parametrize("graded_by", [grade, grade_by_runner])
def test_calls_that_fail_leave_twenty_others_as_they_are(served, ids_of, graded_by):
    bad = ids_of(TURNS[1:2], "bad")

    def reply(request, _):
        return (500, {"error": "out of memory"}) if request["input"] == bad else vllm(float(len(request["input"])))

    texts = ["many " * count for count in range(1, 21)]
    with serve(reply) as (url, requests):
        first, second, *graded = graded_by(served(url, retries=1), "bad", "", *texts)
    assert "out of memory" in first.error and second.error == "response: empty response (found '')"
    assert [result.score for result in graded] == [len(ids_of(TURNS[1:2], text)) for text in texts]
    assert len(requests) == 22


def test_a_rank_with_one_lost_reward_is_an_error(served):
    with serve(lambda _, number: vllm(-1.5) if number != 2 else (500, {"error": "lost"})) as (url, _):
        grader = served(url, mode=GraderMode.LISTWISE, retries=0)
        ranked = asyncio.run(grader.aevaluate(query="Hi", responses=["a", "b", "c"]))
    assert type(ranked) is GraderError and "lost" in ranked.error
