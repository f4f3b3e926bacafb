"""A text has the same reward in every batch as alone, and nothing that texts share is computed twice."""

import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig, MistralConfig, Qwen3Config

from bradley_terry import dataset
from bradley_terry.reward_model import batches_of, encode, load_reward_model, score, share_starts

CONFIGS = {
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "llama": LlamaConfig(**SMALL),
    "mistral, sliding window": MistralConfig(**SMALL, sliding_window=16),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model_pair(request, tmp_path_factory, reward_checkpoint):
    """The same weights twice: as `score` wants them, and transformers' own."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(reward_checkpoint, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(CONFIGS[request.param]).save_pretrained(folder)
    packed, _ = load_reward_model(str(folder), packed=True)
    return packed, AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def scored_alone(plain, sequences) -> np.ndarray:
    """What a user of transformers gets, one text at a time."""
    rewards = [plain(input_ids=torch.from_numpy(ids)[None].long().to(plain.device)).logits for ids in sequences]
    return torch.cat(rewards)[:, 0].numpy()


def assert_scored_as_alone(model_pair, sequences, *limits) -> None:
    packed, plain = model_pair
    expected = scored_alone(plain, sequences)
    for max_tokens in limits:
        rewards = score(packed, sequences, max_tokens)
        assert rewards.shape == (len(sequences),) and rewards.dtype == np.float32
        np.testing.assert_allclose(rewards, expected, atol=1e-5, rtol=0, err_msg=f"max_tokens={max_tokens}")


def tokens(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, SMALL["vocab_size"], length, dtype=np.int32)


def start_with(start: np.ndarray, *lengths: int) -> list[np.ndarray]:
    """Texts that go on differently after the same start."""
    return [np.concatenate([start, tokens(100 + number, length)]) for number, length in enumerate(lengths)]


@st.composite
def texts_with_shared_starts(draw) -> list[np.ndarray]:
    """Texts of 1 to 300 tokens: new ones, and ones that take a start of any length over from an earlier one."""
    grown = []
    for _ in range(draw(st.integers(1, 14))):
        earlier = draw(st.sampled_from(grown)) if grown and draw(st.booleans()) else tokens(0, 0)
        start = earlier[: draw(st.integers(0, 300))]
        rest = draw(st.integers(0 if len(start) else 1, 300 - len(start)))
        seed = draw(st.integers(0, 2**32 - 1))
        alphabet = draw(st.sampled_from([2, SMALL["vocab_size"]]))  # of one token alone, more starts are shared
        own = np.random.default_rng(seed).integers(1, alphabet, rest, dtype=np.int32)
        grown.append(np.concatenate([start, own]))
    return draw(st.permutations(grown))


# ---- score


@settings(max_examples=10)
@given(sequences=texts_with_shared_starts(), max_tokens=st.integers(1, 2000) | st.none())
def test_rewards_are_those_of_each_text_alone(model_pair, sequences, max_tokens):
    assert_scored_as_alone(model_pair, sequences, max_tokens)


PROMPT = tokens(1, 200)
SHARED = {
    "identical": [PROMPT] * 5,
    "one token each": [tokens(seed, 1) for seed in range(4)],
    "one is the start of another": [PROMPT, PROMPT[:150], PROMPT[:199], PROMPT[:1]],
    "nested starts": [*start_with(PROMPT, 80, 20), *start_with(PROMPT[:150], 10, 90, 1), *start_with(PROMPT[:40], 9)],
    "several prompts": [text for seed in range(6) for text in start_with(tokens(seed, 90), 20, 50)],
    "a group larger than the batch": start_with(PROMPT, *range(10, 90, 4)),
    "nothing shared": [tokens(seed, 10 * seed + 1) for seed in range(12)],
}


@pytest.mark.parametrize("sequences", SHARED.values(), ids=SHARED)
def test_rewards_of_starts_shared_in_all_ways(model_pair, sequences):
    order = np.random.default_rng(0).permutation(len(sequences))
    assert_scored_as_alone(model_pair, [sequences[index] for index in order], 1, 64, 300, 10**6)


def test_the_rewards_compared_here_differ_by_far_more_than_the_tolerance(model_pair):
    assert scored_alone(model_pair[1], [text for texts in SHARED.values() for text in texts]).std() > 0.02


def test_nothing_to_score_gives_no_rewards(model_pair):
    assert score(model_pair[0], []).shape == (0,)


def computed_tokens(model, sequences, max_tokens) -> list[int]:
    """How many tokens the backbone sees, batch by batch."""
    sizes = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    score(model, sequences, max_tokens)
    hook.remove()
    return sizes


def test_a_shared_prompt_is_computed_once(model_pair):
    assert computed_tokens(model_pair[0], start_with(PROMPT, 10, 20, 30), 1000) == [200 + 10 + 20 + 30]
    # a group may be four batches large: 220 tokens hold two of these texts, the third is alone
    assert computed_tokens(model_pair[0], start_with(PROMPT, 10, 10, 10), 55) == [200 + 10 + 10, 210]


def test_a_text_that_comes_again_is_computed_once(model_pair):
    first, second, third = start_with(PROMPT, 10, 20, 30)  # a ranking of three, cut into pairs
    pairs = [first, second, first, third, second, third]
    assert computed_tokens(model_pair[0], pairs, 1000) == [200 + 10 + 20 + 30]
    assert_scored_as_alone(model_pair, pairs, 1000)
    assert computed_tokens(model_pair[0], [tokens(1, 50), tokens(2, 50)] * 3, 1000) == [100]


def test_texts_that_share_nothing_are_batched_by_length(model_pair):
    lengths = [10, 100, 11, 98]
    assert computed_tokens(model_pair[0], [tokens(n, length) for n, length in enumerate(lengths)], 200) == [200, 22]


@pytest.mark.parametrize("file", ["bt_train.parquet", "bt_val_json.parquet"])
def test_rewards_of_real_pairs(reward_checkpoint, shared_data, file):
    packed, reading = load_reward_model(str(reward_checkpoint), packed=True)
    plain, _ = load_reward_model(str(reward_checkpoint), packed=False)
    rows, _ = dataset.load_pairs(shared_data / file, on_bad_row="drop")
    pairs = [encode(row[side], reading, side) for row in rows[:24] for side in ("chosen", "rejected")]
    expected = scored_alone(plain, pairs)
    assert expected.std() > 0.05
    for max_tokens in (500, None):
        np.testing.assert_allclose(score(packed, pairs, max_tokens), expected, atol=1e-5, rtol=0)


# ---- batches_of


@given(lengths=st.lists(st.integers(1, 50), max_size=20), max_tokens=st.integers(1, 300))
def test_batches_hold_every_text_once_and_pad_to_the_budget_at_most(lengths, max_tokens):
    batches = list(batches_of(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
    longest_first = [lengths[index] for batch in batches for index in batch]
    assert longest_first == sorted(lengths, reverse=True)


# ---- share_starts


@settings(max_examples=300)
@given(sequences=texts_with_shared_starts(), max_tokens=st.integers(1, 2000))
@example(sequences=[PROMPT] * 3, max_tokens=1)
@example(sequences=start_with(PROMPT, 5, 5, 5), max_tokens=210)
def test_groups_hold_every_text_once_and_what_they_share(sequences, max_tokens):
    groups = share_starts(sequences, max_tokens)
    assert sorted(index for group in groups for index in group.members) == list(range(len(sequences)))
    for group in groups:
        first, *others = (sequences[index] for index in group.members)
        assert group.tokens == len(first) + sum(len(ids) - group.shared for ids in others)
        assert group.longest == max(map(len, (first, *others)))
        if not others:
            assert group.shared == len(first)
            continue
        assert group.tokens <= max_tokens and group.shared <= len(first)
        for ids in others:
            assert group.shared < len(ids)
            np.testing.assert_array_equal(ids[: group.shared], first[: group.shared])
        assert all(2 * group.shared >= len(ids) for ids in (first, *others))


@pytest.mark.parametrize(
    ("sequences", "max_tokens", "expected"),
    [
        (start_with(PROMPT, 10, 20, 30), 260, [(200, 3, 260)]),
        (start_with(PROMPT, 10, 20), 229, [(210, 1, 210), (220, 1, 220)]),
        (start_with(PROMPT, 200, 200), 10**6, [(200, 2, 600)]),
        (start_with(PROMPT, 201, 201), 10**6, [(401, 1, 401), (401, 1, 401)]),
        ([PROMPT, PROMPT], 10**6, [(199, 2, 201)]),
        ([PROMPT, PROMPT[:150]], 10**6, [(150, 2, 200)]),
    ],
    ids=["a prompt", "too large", "half is shared", "less than half", "identical", "a text and its start"],
)
def test_what_is_shared_in_groups_counted_by_hand(sequences, max_tokens, expected):
    groups = share_starts(sequences, max_tokens)
    assert sorted((group.shared, len(group.members), group.tokens) for group in groups) == expected
