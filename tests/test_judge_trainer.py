"""What the trainer of judges says of a step."""

from types import SimpleNamespace

import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from common.grpo.trainer import NOTHING_LEARNT, JudgeTrainer


@pytest.fixture
def step_of(monkeypatch):
    """Return a function that has one trainer count the steps of two prompts, two answers each, given their rewards."""
    trainer = JudgeTrainer.__new__(JudgeTrainer)
    trainer.config, trainer.total_training_steps = OmegaConf.create({"data": {"max_response_length": 9}}), 3
    trainer.has_warned = False
    monkeypatch.setattr(PPOTrainerSync, "_compute_metrics", lambda *arguments: None)
    keys = ["one_0_0", "one_1_0", "two_0_0", "two_1_0"]
    batch = SimpleNamespace(keys=keys, tags=[{"response_len": 2}] * 4, partition_id="train")
    names = ("critic/score/mean", "response_length/mean", "actor/grad_norm", "actor/lr")

    def count(step: int, rewards: list[float]) -> dict:
        per_token = torch.nested.as_nested_tensor([torch.tensor([0.0, one]) for one in rewards], layout=torch.jagged)
        found = {"rm_scores": per_token, "extra_fields": [{"reward_extra_info": {"score": one}} for one in rewards]}
        found["old_log_probs"] = per_token - 2
        monkeypatch.setattr(transfer_queue, "kv_batch_get", lambda **_: found)
        metrics = dict.fromkeys(names, 0.0)
        trainer._compute_metrics(batch, metrics, {"step": 1.0}, step, 0)
        return metrics

    return count


def test_a_step_that_has_taught_nothing_is_told_once(step_of, capsys):
    """Paid alike is what counts: the answers to one prompt may be paid otherwise than those to another."""
    assert step_of(1, [0.0, 1.0, 0.5, 0.5])["train/no_signal"] == 0.5
    assert NOTHING_LEARNT not in capsys.readouterr().out
    assert step_of(2, [1.0, 1.0, 0.5, 0.5])["train/no_signal"] == 1
    assert f"step 2: {NOTHING_LEARNT}\n" in capsys.readouterr().out
    step_of(3, [1.0, 1.0, 0.5, 0.5])
    assert NOTHING_LEARNT not in capsys.readouterr().out


def test_an_update_gets_what_it_reads_and_whole_groups(monkeypatch):
    """verl forgets what a batch was told when it gets a column, and would send prompts as text, labels and so on."""
    trainer, given = JudgeTrainer.__new__(JudgeTrainer), []
    trainer.config, trainer.keep_groups = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 4}}}), True

    def update(self, batch, metrics: dict):
        given.append((batch.fields, batch.extra_info))
        metrics |= {"actor/pg_loss": 0.0, "actor/grad_norm": 1.0}
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_update_actor", update)
    fields = ["advantages", "extra_info", "input_ids", "old_log_probs", "raw_prompt", "uid"]
    batch = SimpleNamespace(fields=fields, extra_info={})
    assert trainer._update_actor(batch, {}).fields == fields
    assert given == [(["advantages", "input_ids", "old_log_probs"], {"force_group_size": 4})]


def test_the_entropy_is_estimated_from_the_sampled_tokens_if_verl_has_computed_none(step_of):
    """In the stand-in for verl's queue an answer has two tokens, of log-probabilities -2 and its reward minus 2."""
    assert step_of(1, [0.0, 1.0, 0.5, 0.5])["train/entropy"] == pytest.approx(1.75)
