"""Rewards that cannot be trained on stop the run and name the row; a queue that is short of an answer does too."""

import math
import types

import pytest
from omegaconf import OmegaConf

from common import rollout
from common.cluster import TrainingError

ROW = {
    "data_source": "demo",
    "reward_model": {"ground_truth": 3},
    "extra_info": {"source": "train.parquet row 7", "begun": "<think>"},
}


def test_a_reward_is_called_as_verl_calls_it():
    seen = {}

    def reward(**arguments) -> dict:
        seen.update(arguments)
        return {"score": 0.5, "acc": 1}

    assert rollout.call_reward(reward, ROW, "an answer") == {"score": 0.5, "acc": 1}
    assert seen == {
        "data_source": "demo",
        "solution_str": "an answer",
        "ground_truth": 3,
        "extra_info": {"source": "train.parquet row 7", "begun": "<think>"},
    }


def test_a_reward_function_that_raises_is_reported_with_its_row():
    def reward(**_) -> dict:
        raise KeyError("criteria")

    with pytest.raises(TrainingError) as caught:
        rollout.call_reward(reward, ROW, "x" * 1000)
    assert isinstance(caught.value.__cause__, KeyError)
    for part in ("the reward of train.parquet row 7", "raised KeyError: 'criteria'", "The label was 3", "'xxx"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "result", [None, 0.5, {}, {"acc": 1.0}, {"score": math.nan}, {"score": math.inf}, {"score": 1.0, "why": "good"}]
)
def test_what_cannot_be_trained_on_is_reported_with_its_row(result):
    with pytest.raises(TrainingError, match="train.parquet row 7: expected a dict of finite numbers with a `score`"):
        rollout.call_reward(lambda **_: result, ROW, "an answer")


class WorkerGroup:
    """Two workers that answer a prompt with its own first token, its seed and the end token."""

    world_size = 2

    def __init__(self):
        self.calls = []

    def generate(self, prompts, seeds, options):
        assert len(prompts) == len(seeds) == len(options) == self.world_size
        self.calls.append((prompts, seeds, options[0]))
        return [
            [([ids[0], seed % 7, 0], [-0.1, -0.2, -0.3]) for ids, seed in zip(*share)] for share in zip(prompts, seeds)
        ]


@pytest.fixture
def batch_rollout(monkeypatch) -> rollout.BatchRollout:
    settings = {"seed": 20261122, "response_length": 5, "max_num_batched_tokens": 100, "n": 2}
    trainer = types.SimpleNamespace(
        config=OmegaConf.create({"actor_rollout_ref": {"rollout": settings}, "reward": {}}),
        actor_rollout_wg=WorkerGroup(),
    )
    return rollout.BatchRollout(trainer)


def test_answers_come_back_in_the_order_of_their_prompts(batch_rollout):
    prompts = [[number, 9] for number in range(5)]
    answers = batch_rollout._generate(prompts, {"temperature": 1.0}, 4, validate=False)
    assert [tokens[0] for tokens, _ in answers] == [0, 1, 2, 3, 4]
    ((shares, seeds, options),) = batch_rollout.trainer.actor_rollout_wg.calls
    assert shares == [[[0, 9], [2, 9], [4, 9]], [[1, 9], [3, 9]]]
    assert options == {"temperature": 1.0, "max_new_tokens": 5, "max_tokens": 100}


def test_no_worker_is_left_without_a_prompt(batch_rollout):
    ((tokens, _),) = batch_rollout._generate([[5, 9]], {}, 1, validate=True)
    assert tokens[0] == 5
    ((shares, _, _),) = batch_rollout.trainer.actor_rollout_wg.calls
    assert shares == [[[5, 9]], [[5, 9]]]


def test_every_answer_of_a_run_has_a_seed_of_its_own(batch_rollout):
    for step in range(1, 4):
        for validate in (False, True):
            batch_rollout._generate([[1]] * 6, {}, step, validate)
    seeds = [
        seed for _, shares, _ in batch_rollout.trainer.actor_rollout_wg.calls for share in shares for seed in share
    ]
    assert len(set(seeds)) == len(seeds) == 36 and max(seeds) < 2**63


def make_queue(monkeypatch, tags: dict) -> rollout.StrictReplayBuffer:
    monkeypatch.setattr(rollout.transfer_queue, "kv_list", lambda *_: {"train": tags})
    return rollout.StrictReplayBuffer("sync", {}, None, "drop", {})


def test_a_failed_prompt_stops_the_run(monkeypatch):
    """verl's own queue would train on the rest of the batch."""
    good = {"is_prompt": True, "status": "finished", "global_steps": 1}
    queue = make_queue(monkeypatch, {"a": good, "b": {**good, "status": "failure"}})
    assert queue.poll_interval < 1
    with pytest.raises(TrainingError, match="1 prompts could not be answered or rewarded"):
        queue.sample(1, "train", 2)
    queue = make_queue(monkeypatch, {"a": good, "b": good})
    queue._sync_metadata_from_transfer_queue()
    assert queue.finished_keys["train"] == {"a", "b"}
