"""The Bradley-Terry loss against values worked out by hand, and metrics that no cut into micro-batches changes.

By hand: with d = r_c - r_r - m the loss is log(1 + e^-d) + λ (r_c + r_r)². Needed of it: log(1 + e^-1) = 0.3132617,
log 2 = 0.6931472, log(1 + e) = 1.3132617, log(1 + e^4) = 4.0181499, σ(-1) = 0.2689414. Change these numbers only where
the method itself is meant to change.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bradley_terry import loss

pair_losses, batch_sums, batch_metrics = loss.pair_losses, loss.batch_sums, loss.batch_metrics

REWARDS = [[2.0, 1.0], [0.0, 0.0], [-1.0, 3.0]]  # differences 1, 0, -4; sums 3, 0, 2


def test_golden_losses():
    assert pair_losses(torch.tensor(REWARDS)).tolist() == pytest.approx([0.3132617, 0.6931472, 4.0181499], abs=1e-6)


def test_golden_losses_with_a_margin():
    losses = pair_losses(torch.tensor(REWARDS), margin=torch.tensor([1.0, 1.0, 0.0]))
    assert losses.tolist() == pytest.approx([0.6931472, 1.3132617, 4.0181499], abs=1e-6)


def test_golden_losses_with_centering():
    losses = pair_losses(torch.tensor(REWARDS), centering=0.01)
    assert losses.tolist() == pytest.approx([0.3132617 + 0.09, 0.6931472, 4.0181499 + 0.04], abs=1e-6)


def test_golden_gradient():
    """By hand: dL/dr_c = -σ(-d) + 2 λ (r_c + r_r), dL/dr_r = σ(-d) + 2 λ (r_c + r_r); here d = 2 - 0 - 1 = 1."""
    rewards = torch.tensor([[2.0, 0.0]], requires_grad=True)
    pair_losses(rewards, margin=torch.tensor([1.0]), centering=0.01).sum().backward()
    assert rewards.grad.tolist()[0] == pytest.approx([-0.2689414 + 0.04, 0.2689414 + 0.04], abs=1e-6)


FINITE = st.floats(-30, 30, width=32)


@given(st.lists(st.tuples(FINITE, FINITE, st.floats(0, 5, width=32)), min_size=1, max_size=20))
def test_the_loss_is_minus_log_sigmoid_of_the_difference(rows):
    chosen, rejected, margin = np.array(rows, dtype=np.float64).T
    losses = pair_losses(torch.tensor(rows)[:, :2], margin=torch.tensor(rows)[:, 2])
    expected = [-math.log(1 / (1 + math.exp(-difference))) for difference in chosen - rejected - margin]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_constant_added_to_all_rewards_changes_the_loss_only_through_centering():
    rewards = torch.tensor(REWARDS)
    assert torch.equal(pair_losses(rewards + 4), pair_losses(rewards))
    pull = pair_losses(rewards + 4, centering=0.5) - pair_losses(rewards + 4)
    assert pull.tolist() == pytest.approx([0.5 * 11**2, 0.5 * 8**2, 0.5 * 10**2])


def test_a_difference_of_hundreds_gives_no_infinity_and_a_full_gradient():
    rewards = torch.tensor([[-500.0, 500.0], [500.0, -500.0]], requires_grad=True)
    losses = pair_losses(rewards)
    losses.sum().backward()
    assert losses.tolist() == [1000.0, 0.0]
    assert rewards.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_rewards_are_compared_in_fp32(autocast):
    """Trap 6: bf16 has three digits. By hand: d = 100 - 99.5 - 0.3 = 0.2 and log(1 + e^-0.2) = 0.5981389."""
    rewards = torch.tensor([[100.0, 99.5]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = pair_losses(rewards, margin=torch.tensor([0.3]), centering=1e-4)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(0.5981389 + 1e-4 * 199.5**2, abs=1e-5)


def test_sums_over_many_bf16_rewards_do_not_stall():
    """In bf16, 256 + 1 is 256."""
    sums = batch_sums(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16).expand(1001, 2))
    expected = {"correct": 1001, "margin": 1001, "margin_squared": 1001, "reward": 1001, "reward_squared": 1001}
    assert {name: value.item() for name, value in sums.items()} == expected


def test_golden_metrics():
    """By hand: margins 1, 0, -4 with mean -1 and variance 17/3 - 1; rewards with sum 5 and sum of squares 15."""
    sums = {name: value.item() for name, value in batch_sums(torch.tensor(REWARDS)).items()}
    assert sums == {"correct": 1, "margin": -3, "margin_squared": 17, "reward": 5, "reward_squared": 15}
    assert batch_metrics(sums, 3) == pytest.approx(
        {
            "accuracy": 1 / 3,
            "margin_mean": -1,
            "margin_std": math.sqrt(14 / 3),
            "reward_mean": 5 / 6,
            "reward_std": math.sqrt(15 / 6 - 25 / 36),
        }
    )


def test_a_tie_is_not_correct():
    """Trap 29."""
    assert batch_sums(torch.zeros(4, 2))["correct"] == 0


def test_sums_carry_no_gradient():
    sums = batch_sums(torch.tensor(REWARDS, requires_grad=True))
    assert not any(value.requires_grad for value in sums.values())


@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 10**6))
def test_metrics_are_those_of_the_whole_batch_whatever_the_cut_into_micro_batches(pairs, cuts, seed):
    rewards = np.random.default_rng(seed).normal(0.5, 2.0, (pairs, 2)).astype(np.float32)
    parts = np.split(rewards, sorted(min(cut, pairs) for cut in cuts))
    totals = dict.fromkeys(batch_sums(torch.zeros(1, 2)), 0.0)
    for part in parts:
        for name, value in batch_sums(torch.from_numpy(part)).items():
            totals[name] += value.item()
    margin = rewards[:, 0].astype(np.float64) - rewards[:, 1]
    expected = {
        "accuracy": (margin > 0).mean(),
        "margin_mean": margin.mean(),
        "margin_std": margin.std(),
        "reward_mean": rewards.mean(dtype=np.float64),
        "reward_std": rewards.std(dtype=np.float64),
    }
    # 1e-3, because a spread is the root of a difference of fp32 sums; with one pair it is 0 up to that
    assert batch_metrics(totals, pairs) == pytest.approx(expected, rel=1e-4, abs=2e-3)
