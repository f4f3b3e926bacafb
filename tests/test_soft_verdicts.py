"""Soft verdicts: how probable each verdict was, from a checkpoint and from an endpoint, and what is made of it."""

import asyncio
import json
import math
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_endpoint import serve
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.conversation import DataError
from common.demo.world import pointwise_rows
from common.generation import Answer, make_plain
from common.grading.contract import GraderError
from common.grading.endpoint import EndpointError, ask
from common.judging import asking
from common.judging.soft import (
    CannotWeigh,
    Verdicts,
    from_tokens,
    mean_of,
    steps_to,
    weigh,
    weigh_answers,
    weigh_served,
)
from common.parquet import write_rows
from generative_pairwise import evaluate as pairwise_evaluate
from generative_pairwise import prompt as pairwise
from generative_pairwise.grader import PairwiseGrader
from generative_pairwise.win_rates import expected_points
from generative_pointwise import evaluate as pointwise_evaluate
from generative_pointwise import prompt as pointwise
from generative_pointwise.grader import PointwiseGrader

SCORES = Verdicts.of(pointwise.VERDICTS, pointwise.write, pointwise.parse)
PREFERENCES = Verdicts.of(pairwise.VERDICTS, pairwise.write, pairwise.parse)


def to_ten(score: int) -> str:
    return f'<think></think>{{"score": {score}}}'


TEN = Verdicts.of(range(11), to_ten, lambda text: next((s for s in range(11) if text.endswith(to_ten(s))), None))
BARE = Verdicts.of((1, 10), "Score: {}".format, lambda text: {"Score: 1": 1, "Score: 10": 10}.get(text))


@pytest.fixture(scope="module")
def judge(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    make_plain(model, tokenizer)
    return model, tokenizer


# ---- how verdicts are written


def test_what_differs_between_verdicts_is_found_in_what_write_writes():
    assert SCORES.texts == {score: str(score) for score in range(5)} and SCORES.tail == "</score>"
    assert PREFERENCES.texts == {"A": "A", "B": "B", "tie": "tie"} and PREFERENCES.tail == "</preference>"
    assert TEN.texts == {score: str(score) for score in range(11)} and TEN.tail == "}"
    assert BARE.texts == {1: "", 10: "0"} and BARE.tail == ""


def test_an_answer_is_cut_before_its_verdict_and_one_without_a_verdict_is_not_weighed():
    assert SCORES.before(pointwise.write(3, "so so") + "\n") == "<think>\nso so\n</think>\n\n<score>"
    lenient = Verdicts.of(range(5), pointwise.write, lambda text: 3 if "three" in text else None)
    answers = [Answer("<think></think>three", False), Answer("four", False)]
    for answer in answers:
        answer.tokens = [("three", {"three": 0.0})]
    weigh_served(lenient, answers)
    assert [answer.probabilities for answer in answers] == [None, None]
    assert "not written as `write` in prompt.py writes it" in answers[0].unweighed and answers[1].unweighed == ""


# ---- a model in this process


def joint(model, tokenizer, text: str, verdicts: Verdicts) -> np.ndarray:
    """How probable whole answers are, token by token, each by a forward pass of its own: another way to the same."""
    found = []
    for value in verdicts.texts.values():
        ids = tokenizer(text + value + verdicts.tail, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append([log_probs[place - 1, ids[place]].item() for place in range(1, len(ids))])
    return found


@pytest.mark.parametrize("verdicts", [SCORES, PREFERENCES, TEN, BARE], ids=["scores", "preferences", "ten", "bare"])
def test_the_probabilities_are_those_of_the_tokens_that_tell_the_verdicts_apart(judge, verdicts):
    """Beside texts of other lengths, and alone."""
    model, tokenizer = judge
    texts = [f"<|im_start|>user\nHi{' there' * n}<|im_end|>\n<|im_start|>assistant\n<think></think>" for n in (0, 3, 9)]
    together = weigh(model, tokenizer, verdicts, texts, 1000)
    for text, weighed in zip(texts, together):
        assert sum(weighed.values()) == pytest.approx(1)
        assert list(weigh(model, tokenizer, verdicts, [text], 1)[0].values()) == pytest.approx(
            list(weighed.values()), abs=1e-6
        )
        written = [
            (*tokenizer(text + value + verdicts.tail, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
            for value in verdicts.texts.values()
        ]
        log_probs = joint(model, tokenizer, text, verdicts)
        sums = [
            sum(of_verdict[len(read) - 1] for read, _ in steps_to(ids, written))
            for ids, of_verdict in zip(written, log_probs)
        ]
        assert list(weighed.values()) == pytest.approx(np.exp(sums) / np.exp(sums).sum(), abs=1e-6)


def test_tokens_are_read_until_a_sequence_is_told_from_all_others():
    written = [(7, 1, 9), (7, 1, 0, 9), (7, 2, 9)]
    assert steps_to(written[0], written) == [((7,), 1), ((7, 1), 9)]
    assert steps_to(written[1], written) == [((7,), 1), ((7, 1), 0)]
    assert steps_to(written[2], written) == [((7,), 2)]


def test_what_the_template_began_is_read_once(judge):
    model, tokenizer = judge
    prompt, begun = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<think>\n"
    plain, given = Answer(pointwise.write(2), False), Answer(pointwise.write(2), False)
    clipped = Answer("", True)
    asked = [(prompt, "", plain), (prompt + begun, begun, given), (prompt, "", clipped)]
    weigh_answers(model, tokenizer, SCORES, asked, 1000)
    assert given.probabilities == pytest.approx(plain.probabilities)
    assert clipped.probabilities is None and clipped.unweighed == ""


# ---- an endpoint


def tokens_of(text: str, verdict: str, alternatives: dict[str, float]) -> list[dict]:
    """A reply's tokens, one per character but for the verdict."""
    before, _, after = text.rpartition(verdict)
    alone = [{"token": one, "logprob": 0.0, "top_logprobs": [{"token": one, "logprob": 0.0}]} for one in before]
    top = [{"token": token, "logprob": math.log(share)} for token, share in alternatives.items()]
    end = [{"token": one, "logprob": 0.0, "top_logprobs": []} for one in after]
    return [*alone, {"token": verdict, "logprob": top[0]["logprob"], "top_logprobs": top}, *end]


def reply(text: str, verdict: str, alternatives: dict[str, float] | None) -> dict:
    content = None if alternatives is None else {"content": tokens_of(text, verdict, alternatives)}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": content,
    }
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}


def test_an_endpoints_likeliest_tokens_give_the_same_shares():
    """What is no verdict does not count, a verdict that is not named has none, and only tokens that were asked for."""
    given = pointwise.write(3, "a 3 3")
    shares = {"3": 0.5, "4": 0.25, "2": 0.05, " 3": 0.1, "x": 0.1}
    with serve(lambda *_: (200, reply(given, "3", shares))) as (url, requests):
        ((answer,),) = ask(url, "judge", [[{"role": "user", "content": "Hi"}]], 8, with_tokens=True)
    assert (requests[0]["logprobs"], requests[0]["top_logprobs"]) == (True, 20)
    assert from_tokens(SCORES, answer) == pytest.approx({0: 0, 1: 0, 2: 0.0625, 3: 0.625, 4: 0.3125})


def served(text: str, *tokens: tuple[str, dict[str, float]]) -> Answer:
    """An answer and its last tokens, with the shares of the likeliest ones."""
    answer = Answer(text, False)
    head = text[: text.rindex("".join(token for token, _ in tokens))]
    answer.tokens = [(head, {head: 0.0})]
    answer.tokens += [(token, {other: math.log(share) for other, share in top.items()}) for token, top in tokens]
    return answer


# As Qwen's tokenizer writes them: `>A`, `>B`, and `>` with `tie`
QWEN = {">A": 0.45, ">B": 0.04, ">": 0.51}


@pytest.mark.parametrize(
    "tokens",
    [
        [(">A", QWEN), ("</preference>", {})],
        [(">", QWEN), ("tie", {"tie": 1.0}), ("</preference>", {})],
    ],
    ids=["says A", "says tie"],
)
def test_a_token_that_holds_the_end_of_what_stands_before_is_read_too(tokens):
    """Whatever the judge said, the shares are the same."""
    answer = served(f"<think></think><preference{''.join(token for token, _ in tokens)}", *tokens)
    assert from_tokens(PREFERENCES, answer) == pytest.approx({"A": 0.45, "B": 0.04, "tie": 0.51})


def test_verdicts_of_several_tokens_are_told_apart_where_they_part():
    shares = {"1": 0.5, "7": 0.25, "x": 0.25}
    answer = served(to_ten(10), ("1", shares), ("0", {"0": 0.8, "}": 0.2}), ("}", {}))
    found = from_tokens(TEN, answer)
    assert (found[10], found[1], found[7]) == pytest.approx((0.4 / 0.75, 0.1 / 0.75, 0.25 / 0.75))
    with pytest.raises(CannotWeigh, match="'1' begins the verdicts 1, 10, and an endpoint does not say how it goes on"):
        from_tokens(TEN, served(to_ten(7), ("7", shares), ("}", {})))
    found = from_tokens(TEN, served(to_ten(7), ("7", shares | {"10": 0.25}), ("}", {})))
    assert (found[1], found[7], found[10]) == pytest.approx((0.5, 0.25, 0.25))


def test_what_an_endpoint_cannot_tell_is_said():
    with (
        serve(lambda *_: (200, reply(pointwise.write(3), "3", None))) as (url, _),
        pytest.raises(EndpointError, match="gives no log-probabilities"),
    ):
        ask(url, "judge", [[{"role": "user", "content": "Hi"}]], 8, with_tokens=True)
    of_other_tokens = Answer(to_ten(3), False)
    of_other_tokens.tokens = [("another text", {})]
    with pytest.raises(CannotWeigh, match="do not hold the verdict"):
        from_tokens(TEN, of_other_tokens)
    with pytest.raises(CannotWeigh, match="none of the tokens"):
        from_tokens(SCORES, served(pointwise.write(3), ("3", {"x": 1.0}), ("</score>", {})))


def test_an_empty_answer_of_an_endpoint_has_no_verdict_and_is_no_fault_of_the_endpoint():
    body = reply("", "", None)
    body["choices"][0]["logprobs"] = {"content": []}
    with serve(lambda *_: (200, body)) as (url, _):
        ((answer,),) = ask(url, "judge", [[{"role": "user", "content": "Hi"}]], 8, with_tokens=True)
    weigh_served(SCORES, [answer])
    assert answer == "" and answer.probabilities is None and answer.unweighed == ""


# ---- what is made of them


def test_expected_scores_order_rows_that_verdicts_tie():
    soft = [{0: 0, 1: 0, 2: 1 - up, 3: up, 4: 0} for up in (0.1, 0.2, 0.4)]
    metrics = pointwise_evaluate.soft_metrics([1, 2, 4, 0], [2, 2, 2, None], [*soft, None])
    assert metrics["order_accuracy"] == 0.5 and metrics["soft_order_accuracy"] == 1
    assert metrics["soft_spearman"] == pytest.approx(1)
    assert metrics["soft_mae"] == pytest.approx((1.1 + 0.2 + 1.6) / 3)
    assert pointwise_evaluate.soft_metrics([1], [None], [None]) == {}


def test_order_accuracy_counts_every_two_rows_with_different_labels():
    draw = np.random.default_rng(0)
    labels, scores = draw.integers(0, 5, 60).tolist(), draw.integers(0, 9, 60).tolist()
    pairs = [(a, b) for a in range(60) for b in range(60) if labels[a] > labels[b]]
    expected = sum((scores[a] > scores[b]) + (scores[a] == scores[b]) / 2 for a, b in pairs) / len(pairs)
    assert pointwise_evaluate.order_accuracy(labels, scores) == pytest.approx(expected)


def test_a_verdict_that_cannot_be_weighed_is_an_error_of_the_grader():
    body = reply(pointwise.write(3), "3", None)
    body["choices"][0]["logprobs"] = {"content": [{"token": "another", "logprob": 0.0, "top_logprobs": []}]}
    with serve(lambda *_: (200, body)) as (url, _):
        found = grade(PointwiseGrader("judge", url, soft=True), response="Four.")
    assert type(found) is GraderError
    assert "the verdict 3 cannot be weighed: the tokens that the endpoint reports do not hold" in found.error


def test_the_better_responses_probability_is_the_mean_of_both_orders():
    def shares(a: float, b: float) -> dict:
        return {"A": a, "B": b, "tie": 1 - a - b}

    metrics = pairwise_evaluate.soft_metrics(
        ["A", "B", "tie", "A"],
        ["A", "tie", "A", "A"],
        ["A", "tie", "A", None],
        [shares(0.6, 0.2), shares(0.1, 0.3), shares(1, 0), shares(1, 0)],
        [shares(0.5, 0.4), shares(0.2, 0.2), shares(1, 0), None],
    )
    # first pair: 0.7 and 1 - 0.55 for A; second: 0.6 and 0.5 for B
    assert metrics["order_accuracy"] == pytest.approx((0.5 + 0.5) / 2)
    assert metrics["soft_order_accuracy"] == 1
    assert metrics["soft_log_loss"] == pytest.approx(-(math.log(0.575) + math.log(0.55)) / 2)


def test_several_votes_are_averaged():
    assert mean_of([{1: 0.2, 2: 0.8}, None, {1: 0.4, 2: 0.6}]) == pytest.approx({1: 0.3, 2: 0.7})
    assert mean_of([None]) is None


def grade(grader, **given):
    return asyncio.run(grader.aevaluate(query="How many?", **given))


@pytest.fixture
def says(monkeypatch):
    """Let the local model give these answers, one for each vote."""

    def answers(*texts: str) -> None:
        def answer(model, tokenizer, prompts, *_, votes, **__):
            assert votes == len(texts)
            return [[Answer(text, False) for text in texts] for _ in prompts]

        monkeypatch.setattr("common.judging.grader.answer_prompts", answer)

    return answers


def test_a_soft_score_is_the_mean_over_all_scores(tiny_model, says):
    says(pointwise.write(3))
    found = grade(PointwiseGrader(str(tiny_model), soft=True), response="Four.")
    shares = found.metadata["probabilities"]
    assert found.score == pytest.approx(sum(score * share for score, share in shares.items()))
    assert found.metadata["verdict"] == 3 and found.score != 3 and sum(shares.values()) == pytest.approx(1)


def test_a_soft_preference_is_the_mean_probability_of_both_orders(tiny_model, says):
    says(pairwise.write("A"))
    found = grade(PairwiseGrader(str(tiny_model), soft=True), response_a="Four.", response_b="Five.")
    first, second = map(expected_points, found.metadata["probabilities"])
    assert found.score == pytest.approx((first + 1 - second) / 2)
    assert found.metadata["verdicts"] == ["A", "B"]  # in the words of the order as given


def test_votes_decide_and_votes_that_do_not_are_an_error(tiny_model, says):
    says(pointwise.write(3, "one"), pointwise.write(2, "two"), pointwise.write(3, "three"))
    found = grade(PointwiseGrader(str(tiny_model), votes=3), response="Four.")
    assert (found.score, found.reason, found.metadata["votes"]) == (3, "one", [3, 2, 3])
    says("?", "?", pointwise.write(3))
    found = grade(PointwiseGrader(str(tiny_model), votes=3), response="Four.")
    assert type(found) is GraderError and "the votes decide nothing (" in found.error and found.error.endswith("'?'")
    with pytest.raises(DataError, match="expected at least 1 vote, several not greedy"):
        PointwiseGrader(str(tiny_model), votes=3, temperature=0)


def test_a_served_judge_gives_soft_scores_and_each_vote_its_own_seed():
    given = pointwise.write(3)
    with serve(lambda *_: (200, reply(given, "3", {"3": 0.75, "1": 0.25}))) as (url, requests):
        found = grade(PointwiseGrader("judge", url, soft=True, votes=2), response="Four.")
    assert found.score == pytest.approx(2.5) and sorted(request["seed"] for request in requests) == [0, 1]


def test_evaluate_takes_the_option(monkeypatch, tmp_path, tiny_model):
    def answer(model, tokenizer, prompts, *_, **__):
        return [[Answer(pointwise.write(number % 5), False)] for number in range(len(prompts))]

    data = write_rows(tmp_path / "test.parquet", pointwise_rows("test", 6, seed=0))
    command = ["evaluate.py", "--model", str(tiny_model), "--data", str(data), "--output", str(tmp_path), "--soft"]
    monkeypatch.setattr(asking, "answer_prompts", answer)
    monkeypatch.setattr(sys, "argv", command)
    pointwise_evaluate.main()
    measured = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert {"soft_mae", "order_accuracy", "soft_order_accuracy"} <= measured.keys()
    rows = pq.read_table(tmp_path / "evaluation_test.parquet").to_pylist()
    assert len(rows) == 6
    assert all(list(row["probabilities"]) == ["0", "1", "2", "3", "4"] for row in rows)
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
