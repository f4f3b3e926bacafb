"""The SFT loss against values worked out by hand, and a batch's mean that no cut into micro-batches changes.

By hand: over the logits (log 1, log 2, log 5) the probabilities are 1/8, 2/8 and 5/8, and -log of them 2.0794415,
1.3862944 and 0.4700036. Change these numbers only where the method itself is meant to change.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft import loss

token_losses, batch_metrics = loss.token_losses, loss.batch_metrics

LOGITS = [[math.log(1), math.log(2), math.log(5)]] * 3


def test_golden_losses():
    losses = token_losses(torch.tensor(LOGITS), torch.tensor([0, 1, 2]))
    assert losses.tolist() == pytest.approx([2.0794415, 1.3862944, 0.4700036], abs=1e-6)


def test_golden_gradient():
    """By hand: dL/dlogit is the probability, less 1 at the target."""
    logits = torch.tensor(LOGITS[:1], requires_grad=True)
    token_losses(logits, torch.tensor([1])).sum().backward()
    assert logits.grad.tolist()[0] == pytest.approx([0.125, 0.25 - 1, 0.625], abs=1e-6)


@given(st.integers(1, 12), st.integers(2, 50), st.floats(0.1, 30), st.integers(0, 10**6))
def test_the_loss_is_minus_log_softmax_at_the_target(tokens, vocabulary, spread, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (tokens, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, tokens)
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[range(tokens), targets]
    losses = token_losses(torch.from_numpy(logits), torch.from_numpy(targets))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_constant_added_to_all_logits_of_a_token_changes_nothing():
    logits, targets = torch.tensor(LOGITS), torch.tensor([0, 1, 2])
    shifted = token_losses(logits + torch.tensor([[100.0], [-100.0], [0.0]]), targets)
    assert shifted.tolist() == pytest.approx(token_losses(logits, targets).tolist(), abs=2e-5)


def test_logits_of_thousands_give_no_infinity_and_a_full_gradient():
    logits = torch.tensor([[2000.0, 0.0], [2000.0, 0.0]], requires_grad=True)
    losses = token_losses(logits, torch.tensor([1, 0]))
    losses.sum().backward()
    assert losses.tolist() == [2000.0, 0.0]
    assert logits.grad.tolist() == [[1.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    """By hand: 32,768 equal logits, each probability 2^-15: 15 log 2 = 10.3972077, which bf16 rounds to 10.375."""
    logits = torch.zeros(1, 2**15, dtype=dtype, requires_grad=True)
    losses = token_losses(logits, torch.tensor([7]))
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(10.3972077, abs=1e-5)
    losses.sum().backward()
    assert logits.grad.dtype == dtype and logits.grad[0, 7].item() == pytest.approx(-1, abs=1e-2)


def test_the_sum_over_micro_batches_by_the_global_count_is_the_batchs_mean_where_the_mean_of_means_is_not():
    """By hand: (3 x 2.0794415 + 0.4700036) / 4 = 1.6770820; the means 2.0794415 and 0.4700036 average 1.2747226."""
    logits, targets = torch.tensor(LOGITS[:1] * 4), torch.tensor([0, 0, 0, 2])
    cuts = [slice(0, 3), slice(3, 4)]
    parts = [token_losses(logits[cut], targets[cut]) for cut in cuts]
    whole = token_losses(logits, targets).mean().item()
    assert sum(part.sum() for part in parts).item() / 4 == pytest.approx(whole) == pytest.approx(1.6770820, abs=1e-6)
    assert sum(part.mean() for part in parts).item() / 2 == pytest.approx(1.2747226, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 40), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 10**6))
def test_no_cut_into_micro_batches_changes_the_losses(tokens, cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, targets = torch.randn(tokens, 9, generator=generator), torch.randint(9, (tokens,), generator=generator)
    edges = [0, *sorted(min(cut, tokens) for cut in cuts), tokens]
    parts = [token_losses(logits[start:end], targets[start:end]) for start, end in zip(edges, edges[1:])]
    assert torch.equal(torch.cat(parts), token_losses(logits, targets))


def test_golden_metrics():
    assert batch_metrics({"tokens": 8.0, "correct": 6.0}) == {"token_accuracy": 0.75, "trained_tokens": 8.0}
