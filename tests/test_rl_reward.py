"""Rewards for RL: equal to the graders', in each trainer's form, in batches, and never a silent number."""

import asyncio
import importlib
import inspect
import json
import math
import re
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPO
from fastapi.testclient import TestClient
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from test_endpoint import serve
from test_judge_config import VERL_CONFIG
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.import_utils import load_extern_object

from bradley_terry import grader as grader_module
from bradley_terry import rl_reward
from bradley_terry.grader import BradleyTerryGrader
from bradley_terry.reward_model import pessimistic
from bradley_terry.rl_reward import BradleyTerryReward
from common.conversation import DataError
from common.generation import Answer
from common.grading.rl import RewardError, make_app
from common.grpo.rollout import StrictReplayBuffer
from generative_pairwise.prompt import write as preference
from generative_pairwise.rl_reward import PairwiseReward
from generative_pointwise import rl_reward as judge_reward
from generative_pointwise.prompt import write as score
from generative_pointwise.rl_reward import NO_VERDICT, PointwiseReward

QUERY = [{"role": "user", "content": "How many?"}]
ANSWERS = ["Four.", "There are four of them.", "I do not know, sorry.", "4"]


def rewards_of(rewarder, answers: list[str], anchors: list | None = None) -> list[dict]:
    return asyncio.run(rewarder.rewards([QUERY] * len(answers), answers, anchors))


def scores_of(rewarder, answers: list[str], anchors: list | None = None) -> list[float]:
    return [reward["score"] for reward in rewards_of(rewarder, answers, anchors)]


@pytest.fixture(scope="module")
def rewarder(reward_checkpoint):
    return BradleyTerryReward(str(reward_checkpoint))


@pytest.fixture(scope="module")
def patient(reward_checkpoint):
    """With a reward for answers that cannot be scored."""
    return BradleyTerryReward(str(reward_checkpoint), stand_in=-7)


@pytest.fixture(scope="module")
def graded(reward_checkpoint) -> list[float]:
    """The grader's own rewards, one call after the other."""
    grader = BradleyTerryGrader(str(reward_checkpoint))
    return [asyncio.run(grader.aevaluate(query=QUERY, response=answer)).score for answer in ANSWERS]


@pytest.fixture
def scripted(monkeypatch):
    """Let a judge in this process answer each prompt by a function of it; return the sizes of the batches."""

    def answer_by(reply) -> list[int]:
        sizes = []

        def answer(model, tokenizer, prompts, *_, **__):
            sizes.append(len(prompts))
            return [[Answer(reply(prompt), False)] for prompt in prompts]

        monkeypatch.setattr("common.judging.grader.answer_prompts", answer)
        return sizes

    return answer_by


def longer_wins(prompt: str) -> str:
    first, second = (prompt.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0].strip() for name in "ab")
    return preference("A" if len(first) > len(second) else "B" if len(first) < len(second) else "tie")


# ---- the reward is the grader's


def test_the_reward_is_the_graders(rewarder, graded):
    assert scores_of(rewarder, ANSWERS) == pytest.approx(graded, abs=1e-5)
    assert {reward["unscored"] for reward in rewards_of(rewarder, ANSWERS)} == {0.0}


def test_verls_own_reward_loop_gets_the_graders_rewards_and_asks_once_for_all(
    reward_checkpoint, tiny_tokenizer, graded, monkeypatch
):
    """verl's classes, unmodified, as its agent loop calls them; only Ray is left out."""
    batches = []
    whole = grader_module.score
    monkeypatch.setattr(
        grader_module, "score", lambda model, ids, *a: batches.append(len(ids)) or whole(model, ids, *a)
    )
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"model": {"path": str(reward_checkpoint), "tokenizer_path": None}},
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://bradley_terry.rl_reward",
                    "name": "compute_score",
                    "reward_kwargs": {"model": str(reward_checkpoint), "ensemble": []},
                },
                "reward_manager": {"source": "register", "name": "naive"},
                "reward_model": {"enable": False},
            },
        }
    )
    ids = [tiny_tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"] for answer in ANSWERS]
    longest, rows = max(map(len, ids)), len(ids)
    responses = np.full((rows, longest), tiny_tokenizer.pad_token_id)
    mask = np.zeros((rows, longest), dtype=int)
    for row, tokens in enumerate(ids):
        responses[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    data = DataProto(
        batch=TensorDict(
            {"responses": torch.from_numpy(responses), "attention_mask": torch.from_numpy(mask)}, batch_size=rows
        ),
        non_tensor_batch={
            "data_source": np.array(["demo"] * rows, dtype=object),
            "reward_model": np.array([{"ground_truth": ""}] * rows, dtype=object),
            "extra_info": np.array([{"prompt": QUERY} for _ in range(rows)], dtype=object),
        },
    )

    async def as_verl_does() -> list[dict]:
        worker = RewardLoopWorker(config)
        worker.reward_manager.loop = asyncio.get_running_loop()
        return await worker.compute_score_batch(data)

    found = asyncio.run(as_verl_does())
    assert [one["reward_score"] for one in found] == pytest.approx(graded, abs=1e-5)
    assert {tuple(one["reward_extra_info"]) for one in found} == {("score", "unscored")}
    assert sum(batches) == rows and len(batches) < rows


def test_a_model_is_loaded_once_however_often_verl_calls(reward_checkpoint, graded):
    call = {"data_source": "demo", "ground_truth": "", "extra_info": {"prompt": QUERY}, "model": str(reward_checkpoint)}
    first, second = (asyncio.run(rl_reward.compute_score(solution_str=answer, **call)) for answer in ANSWERS[:2])
    assert [first["score"], second["score"]] == pytest.approx(graded[:2], abs=1e-5)
    assert rl_reward._rewarder(model=str(reward_checkpoint)) is rl_reward._rewarder(model=str(reward_checkpoint))


def test_trl_gets_a_number_for_each_completion_of_either_form(rewarder, graded):
    logged = {}
    chats = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    rows = {"prompts": [QUERY] * 4, "completion_ids": [[1]] * 4, "log_metric": logged.__setitem__}
    assert asyncio.run(rewarder(completions=chats, **rows)) == pytest.approx(graded, abs=1e-5)
    assert asyncio.run(rewarder(completions=ANSWERS, **rows)) == pytest.approx(graded, abs=1e-5)
    turns = [{"role": "assistant", "content": "Of what?"}, {"role": "user", "content": "Legs."}]
    (longer,) = asyncio.run(rewarder([QUERY], [[*turns, chats[0][0]]]))
    assert [longer] == [one["score"] for one in asyncio.run(rewarder.rewards([[*QUERY, *turns]], ANSWERS[:1]))]
    assert rewarder.__name__ == "BradleyTerryReward" and logged == {"unscored": 0.0}


@pytest.mark.parametrize("method", ["bradley_terry", "generative_pointwise", "generative_pairwise"])
def test_the_readmes_command_is_one_that_verl_knows(method):
    """verl's own settings, its own loading of the function and of the queue."""
    command = (REPO / method / "README.md").read_text().split("python -m verl.trainer.main_ppo")[1].split("```")[0]
    with initialize_config_dir(VERL_CONFIG, version_base=None):
        config = compose("ppo_trainer", re.findall(r"\+?[\w.]+=[^\s\\]+", command))
    function = get_custom_reward_fn(config)
    assert inspect.iscoroutinefunction(function)
    assert function.args[0] is importlib.import_module(f"{method}.rl_reward").compute_score
    assert list(function.args[1]) == ["model"] and config.reward.num_workers == 1
    sampler = config.trainer.v1.sampler.custom_sampler
    assert load_extern_object(sampler.path, sampler.name) is StrictReplayBuffer


# ---- several models


def test_the_pessimistic_reward_is_the_mean_less_so_many_standard_deviations():
    rewards = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]], dtype=np.float32)
    assert pessimistic(rewards, 0.0).tolist() == [3.0, 2.0]
    assert pessimistic(rewards, 1.5).tolist() == pytest.approx([3 - 1.5 * math.sqrt(8 / 3), 2.0])
    assert pessimistic(rewards[:1], 9.0) is not None and pessimistic(rewards[:1], 9.0).tolist() == [1.0, 2.0]


def test_models_that_disagree_give_their_mean_less_what_they_disagree_by(reward_checkpoint, graded, tmp_path):
    """The other model's head has the opposite sign, so the mean of the two is 0 and they differ by twice the reward."""
    shutil.copytree(reward_checkpoint, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    rewarder = BradleyTerryReward(str(reward_checkpoint), ensemble=[str(tmp_path / "other")], pessimism=3.0)
    assert scores_of(rewarder, ANSWERS) == pytest.approx([-3 * abs(one) for one in graded], abs=1e-5)
    assert max(map(abs, graded)) > 1e-3


def test_settings_of_an_ensemble_that_mean_nothing_are_refused():
    with pytest.raises(DataError, match="leave endpoint out"):
        BradleyTerryReward("model", "http://localhost:1", ensemble=["other"])
    with pytest.raises(DataError, match="about several models"):
        BradleyTerryReward("model", pessimism=2.0)
    with pytest.raises(DataError, match="a number of at least 0"):
        BradleyTerryReward("model", ensemble=["other"], pessimism=-1.0)


# ---- judges


def test_a_score_is_the_reward_and_no_verdict_is_below_all_and_counted(tiny_model, scripted):
    sizes = scripted(lambda prompt: "I will not say." if "sorry" in prompt else score(3))
    found = rewards_of(PointwiseReward(str(tiny_model)), ANSWERS)
    assert [one["score"] for one in found] == [3.0, 3.0, NO_VERDICT, 3.0] and NO_VERDICT < 0
    assert [one["unscored"] for one in found] == [0.0, 0.0, 1.0, 0.0]
    assert sizes == [4]
    with pytest.raises(RewardError, match="no well-formed verdict .* set `stand_in`"):
        rewards_of(PointwiseReward(str(tiny_model), stand_in=None), ANSWERS)
    with pytest.raises(DataError, match="below 0"):
        PointwiseReward(str(tiny_model), stand_in=0.0)


def test_an_anchor_is_compared_in_both_orders(tiny_model, scripted):
    sizes = scripted(longer_wins)
    rewarder = PairwiseReward(str(tiny_model))
    assert scores_of(rewarder, ANSWERS, ["Five."] * 4) == [0.5, 1.0, 1.0, 0.0] and sizes == [8]
    scripted(lambda _: preference("A"))
    assert scores_of(rewarder, ANSWERS[:1], ["Five."]) == [0.5]


def test_without_an_anchor_the_reward_is_the_win_rate_in_the_group(tiny_model, scripted):
    sizes = scripted(longer_wins)
    rates = scores_of(PairwiseReward(str(tiny_model), group=4), ANSWERS)
    assert rates == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0]) and sizes == [12]
    other = [{"role": "user", "content": "Who?"}]
    rewarder = PairwiseReward(str(tiny_model), group=2)
    mixed = asyncio.run(
        rewarder.rewards([QUERY, other, QUERY, other, QUERY], ["aaa", "b", "a", "bb", "aa"], [None] * 4 + ["a"])
    )
    assert [one["score"] for one in mixed] == [1.0, 0.0, 0.0, 1.0, 1.0]


def test_a_part_of_a_group_is_refused(tiny_model, scripted):
    """As a process of TRL's holds it, if a group is spread over two."""
    scripted(longer_wins)
    with pytest.raises(RewardError, match="3 answers to one prompt, expected 4, .*whole groups"):
        rewards_of(PairwiseReward(str(tiny_model), group=4), ANSWERS[:3])
    with pytest.raises(RewardError, match="without an anchor, and `group` is not set"):
        rewards_of(PairwiseReward(str(tiny_model)), ANSWERS)


def test_a_comparison_without_a_verdict_is_no_gain_for_either_answer(tiny_model, scripted):
    """The answer on which the judge never decides gets the stand-in."""
    scripted(lambda prompt: "Hm." if "sorry" in prompt else longer_wins(prompt))
    found = rewards_of(PairwiseReward(str(tiny_model), group=4), ANSWERS)
    assert [one["score"] for one in found] == pytest.approx([1 / 3, 2 / 3, -0.5, 0.0])
    assert [one["unscored"] for one in found] == pytest.approx([1 / 3, 1 / 3, 1.0, 1 / 3])


def test_an_answer_that_confuses_the_judge_beside_strong_rivals_is_not_paid_for_a_weak_one(tiny_model, scripted):
    scripted(lambda prompt: "Hm." if "sorry" in prompt and "Four." not in prompt else longer_wins(prompt))
    found = rewards_of(PairwiseReward(str(tiny_model), group=4), ANSWERS)
    assert found[2] == pytest.approx({"score": 1 / 3, "unscored": 2 / 3})


def test_verls_single_calls_wait_for_their_group(tiny_model, scripted):
    scripted(longer_wins)
    rewarder = PairwiseReward(str(tiny_model), group=4, patience=0.2)

    async def ask(answers: list[str]) -> list:
        calls = [rewarder.for_verl(answer, {"prompt": QUERY}) for answer in answers]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask(ANSWERS))
    assert [one["score"] for one in found] == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0])
    late = asyncio.run(ask(ANSWERS[:3]))
    assert {type(one) for one in late} == {RewardError} and "3 of 4 answers to a prompt came within 0.2 s" in str(late)
    again = asyncio.run(ask(ANSWERS))  # none of those that came too late is among them
    assert [one["score"] for one in again] == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0])
    with pytest.raises(RewardError, match="`group` is not set"):
        asyncio.run(PairwiseReward(str(tiny_model)).for_verl("a", {"prompt": QUERY}))


def test_a_slow_judge_is_waited_for_once_the_group_is_complete(tiny_model, scripted):
    scripted(lambda prompt: time.sleep(0.1) or longer_wins(prompt))
    rewarder = PairwiseReward(str(tiny_model), group=2, patience=0.05)

    async def ask() -> list:
        return await asyncio.gather(*(rewarder.for_verl(answer, {"prompt": QUERY}) for answer in ("bb", "a")))

    assert [one["score"] for one in asyncio.run(ask())] == [1.0, 0.0]


def test_a_cancelled_answer_ends_its_group(tiny_model, scripted):
    scripted(longer_wins)
    rewarder = PairwiseReward(str(tiny_model), group=2)

    async def ask() -> list:
        first = asyncio.ensure_future(rewarder.for_verl("stale", {"prompt": QUERY}))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        return await asyncio.gather(*(rewarder.for_verl(answer, {"prompt": QUERY}) for answer in ("bb", "a")))

    assert [one["score"] for one in asyncio.run(ask())] == [1.0, 0.0] and not rewarder.waiting


# ---- faults


@pytest.mark.parametrize(
    "answer, why", [("", "empty response"), ("a<|im_start|>b", "special token"), ("word " * 5000, "longer than 4096")]
)
def test_what_cannot_be_scored_stops_the_run_or_gets_the_stand_in(rewarder, patient, answer, why):
    with pytest.raises(RewardError, match=f"an answer cannot be scored: .*{why}.* set `stand_in`"):
        rewards_of(rewarder, ["Four.", answer])
    assert rewards_of(patient, ["Four.", answer])[1] == {"score": -7.0, "unscored": 1.0}


def test_a_reward_that_is_not_finite_stops_the_run_also_with_a_stand_in(patient, monkeypatch):
    monkeypatch.setattr(grader_module, "score", lambda model, ids, *_: np.full(len(ids), np.nan, dtype=np.float32))
    with pytest.raises(RewardError, match="nan, not a finite number"):
        rewards_of(patient, ["Four."])


def test_a_stand_in_that_is_not_a_number_is_refused(tiny_model):
    with pytest.raises(DataError, match="finite"):
        PointwiseReward(str(tiny_model), stand_in=-math.inf)


def test_a_dead_server_stops_the_run_also_with_a_stand_in(reward_checkpoint):
    with serve(lambda *_: (500, {"error": "out of memory"})) as (url, requests):
        rewarder = BradleyTerryReward(str(reward_checkpoint), url, retries=1, stand_in=-7)
        with pytest.raises(RewardError, match="out of memory.* raise `retries`"):
            rewards_of(rewarder, ["Four."])
    assert len(requests) == 2


def test_the_first_call_that_gives_up_on_the_server_cancels_the_others(reward_checkpoint):
    def refuse_the_first(_, number):
        return (401, {"error": "no key"}) if number == 1 else time.sleep(0.3) or (500, {"error": "busy"})

    with serve(refuse_the_first) as (url, requests):
        rewarder = BradleyTerryReward(str(reward_checkpoint), url, concurrency=2, stand_in=-7)
        with pytest.raises(RewardError, match="no key"):
            rewards_of(rewarder, ANSWERS * 5)
    assert len(requests) <= 4


@pytest.mark.parametrize(
    "anchor, why", [(math.nan, "expected text"), (QUERY, "expected text"), ("word " * 5000, "longer than")]
)
def test_a_fault_of_the_anchor_stops_the_run_also_with_a_stand_in(tiny_model, scripted, anchor, why):
    scripted(longer_wins)
    with pytest.raises(RewardError, match=why):
        rewards_of(PairwiseReward(str(tiny_model)), ["Four."], [anchor])


@pytest.mark.parametrize("kind", [BradleyTerryReward, PointwiseReward])
def test_a_prompt_that_no_answer_can_be_scored_for_stops_the_run_also_with_a_stand_in(
    kind, reward_checkpoint, tiny_model, scripted
):
    scripted(lambda _: score(3))
    rewarder = kind(str(reward_checkpoint if kind is BradleyTerryReward else tiny_model), stand_in=-7)
    too_long = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(RewardError, match="no answer to this prompt can be scored: .*longer than"):
        asyncio.run(rewarder.rewards([too_long], ["Four."]))


@pytest.mark.parametrize(
    "completion", [[{"role": "tool", "content": "4"}], [{"role": "assistant", "tool_calls": ["count()"]}], []]
)
def test_a_completion_of_trl_that_does_not_end_with_text_of_the_assistant_is_an_error(rewarder, completion):
    with pytest.raises(RewardError, match="must end with text of the assistant"):
        asyncio.run(rewarder([QUERY], [completion]))


def test_a_row_without_its_question_is_an_error_that_says_what_to_write(rewarder):
    with pytest.raises(RewardError, match=r"no 'prompt'.*found \['index'\]"):
        asyncio.run(rewarder.for_verl("Four.", {"index": 3}))
    with pytest.raises(RewardError, match="prompt: "):
        asyncio.run(rewarder.rewards([[{"role": "user"}]], ["Four."]))


# ---- the server


@pytest.fixture(scope="module")
def client(rewarder):
    return TestClient(make_app(rewarder))


def rendered(tokenizer) -> str:
    return tokenizer.apply_chat_template(QUERY, tokenize=False, add_generation_prompt=True)


def test_openrlhf_gets_rewards_in_its_form(client, graded, tiny_tokenizer):
    prompt = rendered(tiny_tokenizer)
    label = json.dumps({"prompt": QUERY})
    request = {
        "query": [f"{prompt}{answer}<|im_end|>" for answer in ANSWERS],
        "prompts": [prompt] * 4,
        "labels": [label] * 4,
    }
    reply = client.post("/openrlhf", json=request)
    assert reply.status_code == 200 and set(reply.json()) == {"rewards", "scores", "extra_logs"}
    assert reply.json()["rewards"] == reply.json()["scores"] == pytest.approx(graded, abs=1e-5)
    assert reply.json()["extra_logs"] == {"unscored": [0.0] * 4}


def test_a_prompt_of_text_alone_needs_the_word_that_no_template_was_applied(client, rewarder, graded):
    """Also one without the grader's own tokens: it may be the text of another model's template."""
    plain = {"query": [f"How many?{answer}" for answer in ANSWERS], "prompts": ["How many?"] * 4}
    reply = client.post("/openrlhf", json=plain)
    assert reply.status_code == 422 and "may be that of a chat template" in reply.text
    told = TestClient(make_app(rewarder, plain_text=True))
    assert told.post("/openrlhf", json=plain).json()["rewards"] == pytest.approx(graded, abs=1e-5)


def test_slime_gets_a_bare_number(client, graded):
    request = {"prompt": QUERY, "response": f"{ANSWERS[0]}<|im_end|>", "label": None}
    assert client.post("/slime", json=request).json() == pytest.approx(graded[0], abs=1e-5)


@pytest.mark.parametrize(
    "path, request_, why",
    [
        ("openrlhf", {"query": ["Hi there"], "prompts": ["Ho"]}, "does not start with its prompt"),
        ("openrlhf", {"query": ["a", "b"], "prompts": ["a"]}, "lists of one length"),
        ("openrlhf", {"queries": []}, "Field required"),
        ("slime", {"prompt": "<|start|>user\nHi<|end|>", "response": "a"}, "may be that of a chat template"),
        ("slime", {"prompt": QUERY, "response": ""}, "empty response"),
        ("slime", {"prompt": QUERY, "response": "word " * 5000}, "longer than 4096 tokens"),
    ],
)
def test_a_request_that_cannot_be_rewarded_is_422_and_says_why(client, path, request_, why):
    reply = client.post(f"/{path}", json=request_)
    assert reply.status_code == 422 and why in reply.text


def test_a_dead_server_behind_the_server_is_503(reward_checkpoint):
    with serve(lambda *_: (500, {"error": "out of memory"})) as (url, _):
        client = TestClient(make_app(BradleyTerryReward(str(reward_checkpoint), url, retries=0)))
        reply = client.post("/slime", json={"prompt": QUERY, "response": "a"})
    assert reply.status_code == 503 and "out of memory" in reply.json()["detail"]


def test_an_anchor_comes_in_the_label(tiny_model, scripted):
    scripted(longer_wins)
    client = TestClient(make_app(PairwiseReward(str(tiny_model))))
    request = {"prompt": QUERY, "response": "Four.", "label": json.dumps({"anchor": "4"})}
    assert client.post("/slime", json=request).json() == 1.0
    assert client.post("/slime", json=request | {"label": "4"}).status_code == 422


def test_the_commands_options_are_settings_and_an_open_address_is_said(tiny_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "rubric.txt").write_text("Shorter is better.")
    made, apps = [], []
    monkeypatch.setattr("common.grading.rl.uvicorn.run", lambda app, **_: apps.append(app))
    monkeypatch.setattr(
        judge_reward, "PointwiseReward", lambda **settings: made.append(PointwiseReward(**settings)) or made[0]
    )
    given = {"--model": "judge", "--endpoint": "http://localhost:1/v1", "--tokenizer": tiny_model, "--retries": 9}
    given |= {"--rubric": tmp_path / "rubric.txt", "--votes": 3, "--host": "0.0.0.0"}
    arguments = ["rl_reward.py", *(str(part) for pair in given.items() for part in pair), "--hidden-reasoning"]
    monkeypatch.setattr(sys, "argv", arguments)
    judge_reward.main()
    grader = made[0].grader
    assert (grader.rubric, grader.votes, grader.hidden_reasoning) == ("Shorter is better.", 3, True)
    assert grader.endpoint.connection["retries"] == 9 and len(apps) == 1
    assert "there is no key" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rl_reward.py", "--model", str(tiny_model), "--retries", "9"])
    with pytest.raises(DataError, match="give --endpoint"):
        judge_reward.main()
