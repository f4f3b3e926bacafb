"""Rewards that cannot be trained on stop the run and name the row; a queue that is short of an answer does too."""

import functools
import math
import types

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu

from common.cluster import TrainingError
from common.grpo import rollout

NOTES = {"source": "train.parquet row 7", "begun": "<think>"}


def reward_of(function, text: str = "an answer") -> dict:
    return rollout.check_reward(function, data_source="demo", solution_str=text, ground_truth=3, extra_info=NOTES)


# ---- one reward


def test_a_reward_is_called_as_verl_calls_it():
    seen = {}

    def reward(**arguments) -> dict:
        seen.update(arguments)
        return {"score": 0.5, "acc": 1}

    assert reward_of(reward) == {"score": 0.5, "acc": 1}
    assert seen == {"data_source": "demo", "solution_str": "an answer", "ground_truth": 3, "extra_info": NOTES}


def test_a_reward_function_that_raises_is_reported_with_its_row():
    def reward(**_) -> dict:
        raise KeyError("criteria")

    with pytest.raises(TrainingError) as caught:
        reward_of(reward, "x" * 1000)
    assert isinstance(caught.value.__cause__, KeyError)
    for part in ("the reward of train.parquet row 7", "raised KeyError: 'criteria'", "The label was 3", "'xxx"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "result", [None, 0.5, {}, {"acc": 1.0}, {"score": math.nan}, {"score": math.inf}, {"score": 1.0, "why": "good"}]
)
def test_what_cannot_be_trained_on_is_reported_with_its_row(result):
    with pytest.raises(TrainingError, match="train.parquet row 7: expected a dict of finite numbers with a `score`"):
        reward_of(lambda **_: result)


def test_the_settings_name_a_module_and_its_options():
    answer = "</think><preference>tie</preference>"
    call = functools.partial(rollout.checked_reward, "judge", answer, "A", NOTES)
    module = "generative_pairwise.reward"
    assert call(module=module, tie_credit=0.25)["score"] == 0.25
    with pytest.raises(TrainingError, match="row 7: the reward function raised TypeError: .* 'credit'"):
        call(module=module, credit=1)


# ---- a step's answers


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


def make_rollout(tokenizer=None, **reward: str) -> rollout.BatchRollout:
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "n": 2}
    settings = {"seed": 20261122, "response_length": 5, "max_num_batched_tokens": 100, **sampling}
    settings["val_kwargs"] = sampling | {"temperature": 0.0, "n": 1}
    function = {"path": "pkg://common.grpo.rollout", "name": "checked_reward", "reward_kwargs": {}} | reward
    config = {"actor_rollout_ref": {"rollout": settings}, "reward": {"custom_reward_function": function}}
    trainer = types.SimpleNamespace(
        config=OmegaConf.create(config), actor_rollout_wg=WorkerGroup(), tokenizer=tokenizer, end_tokens=[0]
    )
    return rollout.BatchRollout(trainer)


@pytest.fixture
def batch_rollout() -> rollout.BatchRollout:
    return make_rollout()


def test_answers_come_back_in_the_order_of_their_prompts(batch_rollout):
    prompts = [[number, 9] for number in range(5)]
    answers = batch_rollout._generate(prompts, {"temperature": 1.0}, 4, validate=False)
    assert [tokens[0] for tokens, _ in answers] == [0, 1, 2, 3, 4]
    ((shares, seeds, options),) = batch_rollout.trainer.actor_rollout_wg.calls
    assert shares == [[[0, 9], [1, 9]], [[2, 9], [3, 9], [4, 9]]]  # equal ones, as they follow one another, together
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


# ---- answers and rewards, as they go into verl's queue


@pytest.fixture
def put(monkeypatch) -> list[dict]:
    """What was put into verl's queue."""
    calls = []
    monkeypatch.setattr(rollout.transfer_queue, "kv_batch_put", lambda **call: calls.append(call))
    return calls


def write_reward(folder, body: str, head: str = "def"):
    """A user's reward function in a file of its own."""
    signature = "compute_score(data_source, solution_str, ground_truth, extra_info)"
    (folder / "my_reward.py").write_text(f"{head} {signature}:\n    {body}\n")
    return {"path": str(folder / "my_reward.py"), "name": "compute_score"}


def step_of(rows: int, **more) -> object:
    prompts = [[{"role": "user", "content": f"{number}?"}] for number in range(rows)]
    cells = {
        "uid": [f"u{number}" for number in range(rows)],
        "raw_prompt": prompts,
        "data_source": ["demo"] * rows,
        "reward_model": [{"style": "rule", "ground_truth": number} for number in range(rows)],
        "extra_info": [{"source": f"train.parquet row {number}", "begun": ""} for number in range(rows)],
    }
    return tu.get_tensordict(cells, {"global_steps": 4, **more})


def test_every_answer_goes_into_the_queue_with_its_reward_at_its_last_token(tmp_path, tiny_tokenizer, put):
    reward = write_reward(tmp_path, 'return {"score": ground_truth + 0.5, "acc": 1.0}')
    made = make_rollout(tiny_tokenizer, **reward)
    made.generate_sequences(step_of(3))
    answers, groups = put
    assert answers["partition_id"] == groups["partition_id"] == "train"
    assert answers["keys"] == [f"u{row}_{number}_0" for row in range(3) for number in range(2)]
    assert groups["keys"] == ["u0", "u1", "u2"] and groups["tags"] == [{"status": "finished"}] * 3
    prompts = [
        tiny_tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{row}?"}], add_generation_prompt=True, return_dict=False
        )
        for row in range(3)
    ]
    fields = answers["fields"]
    for index, (tokens, scores, log_probs) in enumerate(
        zip(fields["responses"].unbind(), fields["rm_scores"].unbind(), fields["rollout_log_probs"].unbind())
    ):
        row = index // 2
        assert tokens[0] == prompts[row][0] and scores.tolist() == [0, 0, row + 0.5]
        torch.testing.assert_close(log_probs, torch.tensor([-0.1, -0.2, -0.3]))
        assert fields["input_ids"].unbind()[index].tolist() == prompts[row] + tokens.tolist()
        assert fields["prompts"].unbind()[index].tolist() == prompts[row]
        tag = answers["tags"][index]
        assert (tag["prompt_len"], tag["response_len"]) == (len(prompts[row]), 3)
        assert (tag["status"], tag["global_steps"], tag["max_global_steps"]) == ("success", 4, 3)
    put.clear()
    made.generate_sequences(step_of(3, validate=True))
    answers, groups = put
    assert answers["partition_id"] == "val" and answers["keys"] == ["u0_0_0", "u1_0_0", "u2_0_0"]
    assert made.trainer.actor_rollout_wg.calls[-1][2]["temperature"] == 0.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", "train.parquet row 0: the reward function raised ValueError: no. The label was 0"),
        ("return {'score': 1 / ground_truth}", "train.parquet row 0: the reward function raised ZeroDivisionError"),
        ("return 1.0", "train.parquet row 0: expected a dict of finite numbers with a `score`, found 1.0"),
        (
            "return {'score': 1.0, f'at_{ground_truth}': 1.0}",
            r"train.parquet row 1: columns \['score', 'at_1'\], others have \['score', 'at_0'\]",
        ),
    ],
)
def test_a_users_own_function_that_fails_stops_the_step_and_names_the_row(tmp_path, tiny_tokenizer, put, body, message):
    """Trap 22."""
    made = make_rollout(tiny_tokenizer, **write_reward(tmp_path, body))
    with pytest.raises(TrainingError, match=f"the reward of {message}"):
        made.generate_sequences(step_of(2))
    assert put == []


def test_an_async_reward_function_is_asked_for_all_answers_of_a_step_at_once(tmp_path, tiny_tokenizer, put):
    """The first call returns only after the last one has begun."""
    body = """global begun
    begun += 1
    while begun < 6:
        await asyncio.sleep(0)
    return {"score": ground_truth + 0.5}"""
    reward = write_reward(tmp_path, body, head="import asyncio\nbegun = 0\nasync def")
    make_rollout(tiny_tokenizer, **reward).generate_sequences(step_of(3))
    scores = [rewards[-1].item() for rewards in put[0]["fields"]["rm_scores"].unbind()]
    assert scores == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]


def test_an_async_reward_function_that_fails_stops_the_step_and_names_the_row(tmp_path, tiny_tokenizer, put):
    reward = write_reward(tmp_path, "return {'score': 1 / (1 - ground_truth)}", head="async def")
    made = make_rollout(tiny_tokenizer, **reward)
    with pytest.raises(TrainingError, match="the reward of train.parquet row 1: .* ZeroDivisionError"):
        made.generate_sequences(step_of(2))
    assert put == []


# ---- a queue that is never short


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
