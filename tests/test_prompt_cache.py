"""Attention to prompts that are kept once is that to copies of them, also after answers have left."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from common.attention import answering_attention
from common.prompt_cache import PromptCache

KV_HEADS, LENGTH, SIZE, VALUE_SIZE = 2, 7, 8, 12
PROMPT_OF = torch.tensor([2, 0, 2, 2, 1, 0])


def read_prompts(count: int, draw: torch.Generator) -> DynamicCache:
    """Return a cache of two layers that has read prompts."""
    cache = DynamicCache()
    for layer in range(2):
        keys, values = (torch.randn(count, KV_HEADS, LENGTH, size, generator=draw) for size in (SIZE, VALUE_SIZE))
        cache.update(keys, values, layer)
    return cache


@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_to_shared_prompts_is_attention_to_copies(shared, padded):
    """In each of two layers, three new tokens, then half of the rows leave, one prompt with them; two tokens more."""
    draw = torch.Generator().manual_seed(0)
    read = read_prompts(3, draw)
    copies = [(layer.keys[PROMPT_OF], layer.values[PROMPT_OF]) for layer in read.layers]
    cache, seen = PromptCache(read, PROMPT_OF), torch.ones(3, LENGTH, dtype=torch.bool)
    if padded:
        seen[0, :2] = seen[2, :5] = False
    seen, left = seen[PROMPT_OF], torch.tensor([0, 2, 5])  # none of them continues prompt 1
    for token in range(5):
        if token == 3:
            cache.batch_select_indices(left)
            copies, seen = [(keys[left], values[left]) for keys, values in copies], seen[left]
            assert [len(layer.prompts.keys) for layer in cache.layers] == [2, 2]
        rows = len(seen)
        seen = F.pad(seen, (0, 1), value=True)
        assert cache.get_mask_sizes(1, 0) == (LENGTH + token + 1, 0)
        for layer in range(2):
            query, key, value = (
                torch.randn(rows, heads, 1, size, generator=draw)
                for heads, size in ((KV_HEADS * shared, SIZE), (KV_HEADS, SIZE), (KV_HEADS, VALUE_SIZE))
            )
            copies[layer] = tuple(torch.cat(parts, dim=2) for parts in zip(copies[layer], (key, value)))
            mask = seen[:, None, None] if padded else None
            expected = F.scaled_dot_product_attention(query, *copies[layer], mask, scale=0.3, enable_gqa=True)
            answered, _ = answering_attention(None, query, *cache.update(key, value, layer), mask, scaling=0.3)
            torch.testing.assert_close(answered, expected.transpose(1, 2), atol=1e-6, rtol=0)
    assert cache.layers[0].keys.shape == (3, KV_HEADS, 5, SIZE)  # a row holds its own tokens alone


def test_the_scale_is_that_of_torch_where_none_is_given():
    draw = torch.Generator().manual_seed(0)
    read = read_prompts(1, draw)
    keys, values, both = read.layers[0].keys, read.layers[0].values, torch.tensor([0, 0])
    query, key, value = (torch.randn(2, KV_HEADS, 1, size, generator=draw) for size in (SIZE, SIZE, VALUE_SIZE))
    answered, _ = answering_attention(None, query, *PromptCache(read, both).update(key, value, 0), None)
    copies = (torch.cat([keys[both], key], dim=2), torch.cat([values[both], value], dim=2))
    expected = F.scaled_dot_product_attention(query, *copies).transpose(1, 2)
    torch.testing.assert_close(answered, expected, atol=1e-6, rtol=0)


def test_a_layer_that_forgets_tokens_shares_no_prompt():
    read = read_prompts(3, torch.Generator().manual_seed(0))
    read.layers[1] = DynamicSlidingWindowLayer(sliding_window=4)
    with pytest.raises(ValueError, match="cannot be shared in a cache of DynamicSlidingWindowLayer"):
        PromptCache(read, PROMPT_OF)
