"""Keys and values while several answers to one prompt are written: the prompt's are kept once, and read once a token.

transformers' cache has a row for each answer, the prompt's part in each. At every new token all of it is copied, to be
one token longer, and read row by row. Here a row holds the answer's tokens alone. The queries of all answers to a
prompt meet its keys in one product, and one softmax goes over both parts, so the result is the same up to rounding.

With SmolLM2-135M, 8 answers of 46 tokens to each of 16 prompts of 245 to 416 tokens took 45 s on two CPU cores. With a
copy of its prompt in each row they took 93 s (one run of each, by `generate_batch`).
"""

from typing import NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Rows:
    """Which prompt each row continues.

    Args:
        prompt_of: (rows,) numbers of prompts.
    """

    def __init__(self, prompt_of: torch.Tensor):
        self.prompt_of, counts = prompt_of, prompt_of.bincount()
        order = prompt_of.argsort(stable=True)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(order), device=order.device) - first[prompt_of[order]]
        self.place = torch.empty_like(order).index_put_((order,), place)  # among the rows of the same prompt
        self.shape = len(counts), int(counts.max())

    def times(self, rows: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Multiply each row with the matrices of its prompt.

        It takes the work of prompts x (rows of the fullest prompt).

        Args:
            rows: (rows, kv_heads, queries, n).
            prompts: (prompts, kv_heads, n, m).

        Returns:
            (rows, kv_heads, queries, m).
        """
        queries, most = rows.shape[2], self.shape[1]
        beside = rows.new_zeros(*self.shape, *rows.shape[1:]).index_put_((self.prompt_of, self.place), rows)
        product = beside.transpose(1, 2).flatten(2, 3) @ prompts
        return product.unflatten(2, (most, queries)).transpose(1, 2)[self.prompt_of, self.place]


class Prompts(NamedTuple):
    """A layer's keys and values of the prompts, each (prompts, kv_heads, length, head_dim), padded on the left."""

    keys: torch.Tensor
    values: torch.Tensor
    rows: Rows

    def keep(self, prompts: torch.Tensor, rows: Rows) -> "Prompts":
        """Return some of the prompts, for the rows that are left."""
        if len(prompts) == len(self.keys):
            return self._replace(rows=rows)
        return Prompts(self.keys[prompts], self.values[prompts], rows)


class PromptLayer(DynamicLayer):
    """A layer's keys and values of new tokens, (rows, kv_heads, tokens, head_dim), behind those of the prompts.

    The attention function gets the new ones, and finds the others in the keys' attribute `prompts`.
    """

    def __init__(self, prompts: Prompts):
        super().__init__()
        self.prompts = prompts
        self.lazy_initialization(prompts.keys, prompts.values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys.prompts = self.prompts
        return keys, values

    def get_seq_length(self) -> int:
        return self.prompts.keys.shape[2] + super().get_seq_length()


class PromptCache(DynamicCache):
    """The cache of rows that continue prompts, of which several may continue the same one.

    Args:
        read: the cache of the distinct prompts, without their last token.
        prompt_of: (rows,) which of them each row continues.

    Raises:
        ValueError: a layer keeps something else than keys and values of all tokens.
    """

    def __init__(self, read: DynamicCache, prompt_of: torch.Tensor):
        super().__init__()
        if other := {type(layer).__name__ for layer in read.layers} - {DynamicLayer.__name__}:
            raise ValueError(f"prompts cannot be shared in a cache of {', '.join(sorted(other))}")
        self.rows = Rows(prompt_of)
        self.layers = [PromptLayer(Prompts(layer.keys, layer.values, self.rows)) for layer in read.layers]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone, and the prompts that they continue."""
        prompts, prompt_of = self.rows.prompt_of[indices].unique(return_inverse=True)
        self.rows = Rows(prompt_of)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[indices], layer.values[indices]
            layer.prompts = layer.prompts.keep(prompts, self.rows)


def attend_behind_prompts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attend to the prompts and to the new tokens, with one query in each row.

    Args:
        query: (rows, heads, 1, head_dim).
        key, value: (rows, kv_heads, tokens, head_dim), as `PromptLayer` gives them.
        mask: (rows, 1, 1, keys) bool, keys of both parts; None: every key is seen.
        scaling: None: 1 / sqrt(head_dim).

    Returns:
        (rows, 1, heads, size of a value).
    """
    count, heads, _, size = query.shape
    prompts: Prompts = key.prompts
    scaled = query * (size**-0.5 if scaling is None else scaling)  # first, so that no product overflows in fp16
    grouped = scaled.view(count, key.shape[1], heads // key.shape[1], size)
    parts = prompts.rows.times(grouped, prompts.keys.transpose(2, 3)), grouped @ key.transpose(2, 3)
    scores = torch.cat(parts, dim=3).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=3).to(value.dtype).split([part.shape[3] for part in parts], dim=3)
    out = prompts.rows.times(weights[0], prompts.values) + weights[1] @ value
    return out.reshape(count, 1, heads, -1)
