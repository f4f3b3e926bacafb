"""The packed tree against the textbook: same rewards, same gradients as two right-padded sequences per pair."""

from contextlib import nullcontext

import pytest
import torch
from conftest import SMALL
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, MistralConfig, Qwen3Config

from bradley_terry import dataset, engine, loss
from common.attention import SEGMENT_ATTENTION, segment_attention, self_test


def make_model(config=None):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config or Qwen3Config(**SMALL, head_dim=16))


def random_pairs(count: int, seed: int, longest: int = 60) -> list:
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int):
        length = int(torch.randint(low, longest, (1,), generator=generator))
        return torch.randint(1, 512, (length,), generator=generator).int().numpy()

    return [dataset.Pair(tokens(0), tokens(1), tokens(1), 0.0, f"row {n}") for n in range(count)]


def packed_rewards(model, pairs) -> torch.Tensor:
    batch = dataset.collate(pairs)
    segments, ends = engine.cut_pairs(batch["branch_lengths"], torch.device("cpu"))
    model.set_attn_implementation(SEGMENT_ATTENTION)
    ids, positions = (batch[name].values()[None] for name in ("input_ids", "position_ids"))
    return engine.score_pairs(model, ids, (0, ends), position_ids=positions, segments=segments)["rewards"]


def padded_rewards(model, pairs) -> torch.Tensor:
    texts = [
        torch.cat([torch.from_numpy(pair.prompt), torch.from_numpy(side)]).long()
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    model.set_attn_implementation("sdpa")
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.view(-1, 2)


def gradients(model, rewards) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.pair_losses(rewards).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(model, pairs) -> None:
    packed, padded = packed_rewards(model, pairs), padded_rewards(model, pairs)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    ours, reference = gradients(model, packed), gradients(model, padded)
    for name in reference:
        difference = (ours[name] - reference[name]).norm() / reference[name].norm()
        assert difference < 1e-4, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("seed", range(5))
def test_random_lengths_score_and_learn_like_padded(seed):
    assert_same(make_model(), random_pairs(6, seed))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        MistralConfig(**SMALL, sliding_window=16),
        Qwen3Config(**SMALL, head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    ],
    ids=["llama", "mistral, sliding window", "qwen3, full and sliding layers"],
)
def test_other_architectures_score_and_learn_like_padded(config):
    assert_same(make_model(config), random_pairs(6, seed=7))


def test_a_real_batch_scores_and_learns_like_padded(tiny_model, shared_data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows, _ = dataset.load_pairs(shared_data / "bt_train.parquet", on_bad_row="drop")
    pairs, _ = dataset.encode_pairs(rows[:64], tokenizer, 1500, "drop")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    assert_same(model, pairs[:8])


def test_a_pair_scores_the_same_in_every_batch_and_order():
    model, pairs = make_model(), random_pairs(8, seed=3)
    alone = torch.cat([packed_rewards(model, [pair]) for pair in pairs])
    together = packed_rewards(model, pairs)
    reversed_order = packed_rewards(model, pairs[::-1]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(reversed_order, alone, atol=1e-5, rtol=0)


def test_the_rejected_answer_does_not_see_the_chosen_one():
    model, (pair, other) = make_model(), random_pairs(2, seed=4)
    swapped = dataset.Pair(pair.prompt, other.chosen, pair.rejected, 0.0, "")
    ours, theirs = (packed_rewards(model, [each])[0, 1].item() for each in (pair, swapped))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_rewards_are_read_at_the_last_token_of_each_answer():
    pairs = random_pairs(5, seed=5)
    batch = dataset.collate(pairs)
    _, ends = engine.cut_pairs(batch["branch_lengths"], torch.device("cpu"))
    expected = [side[-1] for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert batch["input_ids"].values()[ends].tolist() == expected


def test_gradient_checkpointing_changes_no_gradient():
    pairs, plain, checkpointed = random_pairs(4, seed=6), make_model().train(), make_model().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    reference = gradients(plain, packed_rewards(plain, pairs))
    for name, gradient in gradients(checkpointed, packed_rewards(checkpointed, pairs)).items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-7, rtol=1e-5)


def test_micro_batches_add_up_to_the_global_mean():
    """Two workers with two micro-batches each report what one batch of all pairs has as its mean loss.

    And they report each pair's rewards with its place in the whole batch.
    """
    rewards, margin, place = torch.randn(8, 2), torch.rand(8), torch.randperm(8)
    parts, reported = [], []
    for start in range(0, 8, 2):
        output = {
            "rewards": torch.nested.nested_tensor_from_jagged(
                rewards[start : start + 2].flatten(), torch.arange(0, 5, 2)
            )
        }
        cut = {"margin": margin[start : start + 2], "place": place[start : start + 2]}
        data = {**cut, "global_batch_size": 8, "dp_size": 2}
        part, metrics = engine.pair_loss(output, data, None, margin_scale=0.5, centering=0.01)
        parts.append(part)
        reported += metrics["rewards"]
    over_workers = torch.stack(parts).sum() / 2  # FSDP averages over the two workers
    torch.testing.assert_close(over_workers, loss.pair_losses(rewards, 0.5 * margin, 0.01).mean())
    expected = [[number, *pair] for number, pair in zip(place.tolist(), rewards.tolist())]
    assert reported == [pytest.approx(each) for each in expected]


def test_dropout_and_soft_caps_are_refused_not_ignored():
    query = torch.randn(1, 2, 4, 8)
    segments = engine.Segments([(0, 4, 0, 0)], torch.device("cpu"))
    for name, value in (("dropout", 0.1), ("softcap", 30.0), ("s_aux", torch.ones(2))):
        with pytest.raises(ValueError, match=f"does not compute {name}"):
            segment_attention(None, query, query, query, None, segments=segments, **{name: value})


@pytest.mark.parametrize(("error", "leaks"), [(0.0, False), (2.4e-3, False), (0.3, True)])
def test_the_self_test_allows_the_rounding_of_trained_weights_and_no_leak(error, leaks):
    """2.4e-3 of the spread is what rounding makes of SmolLM2-135M after it was trained as a reward model."""
    model = make_model()
    layer = model.model.layers[-1]
    original, longest_alone = layer.forward, 10  # of self_test's sequences

    def rounding(hidden, *args, **kwargs):
        out = original(hidden, *args, **kwargs)
        return out if out.shape[1] <= longest_alone else out * (1 + error * torch.linspace(-1, 1, out.shape[-1]) / 3)

    layer.forward = rounding
    with pytest.raises(ValueError, match="differ by up to") if leaks else nullcontext():
        self_test(model)


def test_the_self_test_says_that_weights_are_not_numbers_and_speaks_of_no_leak():
    model = make_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ArithmeticError, match="the hidden states of a short text are nan"):
        self_test(model)


@pytest.mark.parametrize(("place", "share"), [(0, 1.0), (-1, 0.1)], ids=["first layer", "a tenth, in the last"])
def test_the_self_test_catches_an_architecture_that_leaks_between_pairs(place, share):
    model = make_model()
    self_test(model)
    layer = model.model.layers[place]
    original = layer.forward

    def leaking(hidden, *args, **kwargs):
        return original(hidden + share * hidden.cumsum(dim=1), *args, **kwargs)

    layer.forward = leaking
    with pytest.raises(ValueError, match="does not keep packed sequences apart"):
        self_test(model)
