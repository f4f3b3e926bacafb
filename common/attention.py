"""Attention over packed rows: many sequences behind one another in one row, no padding, no mask matrix.

(And, at the end, attention for answers that grow by one token at a time: `answering_attention`.)

A textbook batch pads every sequence to the longest. Here a row of tokens is cut into *segments*, and each segment's
queries see their own segment causally and, optionally, one earlier stretch of the row in full: the prefix they share
with a sibling. That one idea serves three layouts:

- a preference pair, `prompt + chosen + rejected`: the segment prompt+chosen, then the segment `rejected` with the
  prompt as its prefix. The prompt is computed once for both answers;
- plain packing (SFT): one segment per sequence, no prefix;
- any mix of these in one micro-batch.

On CPU, in fp32, and on GPUs before Ampere, each segment is one call of torch's scaled-dot-product attention, by a
kernel that never holds the scores of all tokens at once. In half precision on newer GPUs all segments go through
torch's own variable-length flash kernel in one call, keys and values gathered so that each segment finds its prefix in
front of itself; no flash-attn build is needed. Use it with `attn_implementation=SEGMENT_ATTENTION`,
`attention_mask=None` and `segments=Segments(...)` in the model's forward: transformers hands keywords to every layer.
"""

from functools import cached_property
from inspect import signature

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.prompt_cache import attend_behind_prompts

SEGMENT_ATTENTION = "segment_attention"
ANSWERING_ATTENTION = "answering_attention"
AMPERE = (8, 0)  # compute capability of the first GPUs with bf16 and with the flash kernel
# How far hidden states may differ, of their spread. A leak between sequences is 0.8 or more in a small copy of a model
# (`common/packing.py`), whose random weights are large. Rounding in fp32 is 1e-5 there. With a trained reward model's
# weights it was 2e-3: a few of its values are large
OF_RANDOM_WEIGHTS, OF_REAL_WEIGHTS = 1e-3, 0.03


class Segments:
    """The cuts of one packed row.

    Not a dataclass: FSDP2 rebuilds every dataclass among a layer's arguments, and the cached cuts would be lost.

    Args:
        spans: one `(start, end, prefix_start, prefix_end)` per segment, in row order. The segments tile the row; a
            segment without a prefix has `prefix_start == prefix_end`.
        device: of the row.
    """

    def __init__(self, spans: list[tuple[int, int, int, int]], device: torch.device):
        self.spans, self.device = spans, device

    @cached_property
    def for_split(self) -> tuple[list[int], list[list[int]]]:
        """The pieces between any two neighbouring cuts: their lengths, and which of them each segment's keys are."""
        cuts = sorted({cut for span in self.spans for cut in span})
        piece = {cut: number for number, cut in enumerate(cuts)}
        lengths = [end - start for start, end in zip(cuts, cuts[1:])]
        keys = [
            [*range(piece[p_start], piece[p_end]), *range(piece[start], piece[end])]
            for start, end, p_start, p_end in self.spans
        ]
        return lengths, keys

    @cached_property
    def for_flash(self) -> dict:
        """The same cuts as the flash kernel wants them: cumulative lengths and the index that gathers the keys."""
        query_lengths = [end - start for start, end, _, _ in self.spans]
        key_lengths = [length + p_end - p_start for length, (_, _, p_start, p_end) in zip(query_lengths, self.spans)]
        gather = [
            torch.arange(a, b) for start, end, p_start, p_end in self.spans for a, b in ((p_start, p_end), (start, end))
        ]
        offsets = [torch.tensor([0] + lengths).cumsum(0) for lengths in (query_lengths, key_lengths)]
        return {
            # without prefixes the keys are in order already
            "gather": torch.cat(gather).to(self.device) if key_lengths != query_lengths else None,
            "cu_seq_q": offsets[0].to(self.device, torch.int32),
            "cu_seq_k": offsets[1].to(self.device, torch.int32),
            "max_q": max(query_lengths),
            "max_k": max(key_lengths),
        }


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    segments: Segments | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers' `AttentionInterface`.

    Args:
        query: (1, heads, total, head_dim); key and value: (1, kv_heads, total, head_dim).
        segments: the cuts of the row. None: an ordinary batch, (rows, heads, length, head_dim), its rows padded on the
            right, where causal attention never looks.
        sliding_window: how many keys back a query sees, itself included. Positions inside `prefix + segment` are
            contiguous, so the distance between query and key is the distance between their indices there.

    Returns:
        (1, total, heads, head_dim) and no attention weights.

    Raises:
        ValueError: for what this function does not compute (dropout, soft-capped scores, attention sinks): a silent
            difference from the model's own attention would train a model that scores otherwise when it is served.
    """
    unsupported = [name for name in ("softcap", "s_aux", "sinks") if kwargs.get(name) is not None]
    if dropout or unsupported:
        named = ", ".join(unsupported + [f"dropout={dropout}"] * bool(dropout))
        raise ValueError(
            f"segment attention does not compute {named}; choose a model whose attention has none of these"
        )
    if segments is None:
        return _attend_per_row(query, key, value, scaling, sliding_window), None
    attend = _attend_with_flash if has_flash(query) else _attend_per_segment
    return attend(query, key, value, segments, scaling, sliding_window), None


def has_flash(query: torch.Tensor) -> bool:
    """Return whether the flash kernel computes attention for queries of this type where they are."""
    half = query.dtype in (torch.bfloat16, torch.float16)  # it takes no fp32
    return query.is_cuda and half and torch.cuda.get_device_capability(query.device) >= AMPERE


def _attend_per_row(query, key, value, scaling, sliding_window):
    length, mask = query.shape[2], None
    if sliding_window is not None and sliding_window < length:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    return _attend(query, key, value, mask, scaling).transpose(1, 2).contiguous()


def _attend_per_segment(query, key, value, segments, scaling, sliding_window):
    # split and cat: with slices and assignment, each segment's backward would write a gradient of the whole row's size
    piece_lengths, pieces_of_keys = segments.for_split
    keys, values = (tensor.split(piece_lengths, dim=2) for tensor in (key, value))
    queries = query.split([end - start for start, end, _, _ in segments.spans], dim=2)
    out = []
    for segment, pieces, (_, _, prefix_start, prefix_end) in zip(queries, pieces_of_keys, segments.spans):
        prefix, length = prefix_end - prefix_start, segment.shape[2]
        seen_keys, seen_values = (_join([parts[piece] for piece in pieces]) for parts in (keys, values))
        windowed = sliding_window is not None and sliding_window < prefix + length
        mask = None
        if prefix or windowed:
            mask = torch.ones(length, prefix + length, dtype=torch.bool, device=query.device).tril(prefix)
            if windowed:
                mask = mask.triu(prefix - sliding_window + 1)
        out.append(_attend(segment, seen_keys, seen_values, mask, scaling))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


def _attend(query, key, value, mask, scaling):
    """Call torch's attention, causal if there is no mask, on (rows, heads, length, head_dim)."""
    # On CUDA only flash attention shares key heads between query heads, and it takes neither fp32 nor a mask. Without
    # this, what is left is the kernel that builds the scores of all heads at once; so they fit torch's
    # memory-efficient kernel (`can_use_mem_efficient_attention` in its sdp_utils.cpp). The CPU's takes all of it
    if query.is_cuda and (query.dtype == torch.float32 or mask is not None):
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def _join(pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]


def _attend_with_flash(query, key, value, segments, scaling, sliding_window):
    from torch.nn.attention.varlen import varlen_attn

    cuts = dict(segments.for_flash)
    gather = cuts.pop("gather")
    queries = query[0].transpose(0, 1)  # (total, heads, head_dim)
    keys, values = (tensor[0].transpose(0, 1) for tensor in (key, value))
    if gather is not None:
        keys, values = (tensor.index_select(0, gather) for tensor in (keys, values))
    left = -1 if sliding_window is None else sliding_window - 1
    # torch 2.11 shares key heads between query heads without being asked and does not know the argument
    grouped = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    # window (left, 0) is causal with the last query on the last key, so a segment sees the whole of its prefix
    out = varlen_attn(queries, keys, values, **cuts, scale=scaling, window_size=(left, 0), **grouped)
    return out[None]


def answering_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", but for one new token in each row the key heads are not copied.

    Where several query heads share a key head, transformers copies all keys and values for each of them, at every new
    token. With one query in a row, the query heads of a group can stand where positions stand, and need no copies.
    Where several rows continue one prompt: `common/prompt_cache.py`.

    Args:
        query: (rows, heads, length, head_dim); key and value: (rows, kv_heads, keys, head_dim).
        attention_mask: (rows, 1, length, keys), or None: every key is seen.

    Returns:
        (rows, length, heads, head_dim) and no attention weights.
    """
    rows, heads, length, size = query.shape
    if hasattr(key, "prompts"):
        return attend_behind_prompts(query, key, value, attention_mask, scaling), None
    shared = heads // key.shape[1]
    if length > 1 or shared == 1 or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.view(rows, key.shape[1], shared, size)
    out = F.scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)
AttentionInterface.register(ANSWERING_ATTENTION, answering_attention)
AttentionMaskInterface.register(ANSWERING_ATTENTION, sdpa_mask)


@torch.no_grad()
def self_test(model: PreTrainedModel, longest: int = 0, tolerance: float = OF_REAL_WEIGHTS) -> None:
    """Compute a few random sequences packed, two of them behind a shared prompt, and one by one; both must agree.

    Layers that do not attend through transformers' attention interface (recurrent or convolutional ones) would let
    packed sequences leak into one another, and nothing would say so. And where rotary angles follow the longest text of
    a batch, a long text changes all others.

    Afterwards the model attends by segments.

    Args:
        longest: tokens of one more sequence, if 3 or more.
        tolerance: of the hidden states' spread.

    Raises:
        ValueError: the hidden states differ, or cannot be computed so at all.
        ArithmeticError: a sequence alone has hidden states that are not finite, so nothing can be compared.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [(6, 4, 3), (5, 2, 5), (1, 3, 2)]  # prompt, and two continuations of it
    lengths += [(longest - 2, 1, 2)] if longest else []
    known = model.config.get_text_config().vocab_size
    trees = [[torch.randint(0, known, (n,), generator=generator) for n in row] for row in lengths]
    was_training = model.training
    model.eval()
    if model.config._attn_implementation == SEGMENT_ATTENTION:
        model.set_attn_implementation("sdpa")

    def hidden(ids: list[torch.Tensor], **kwargs) -> torch.Tensor:
        return model.base_model(input_ids=torch.cat(ids)[None], use_cache=False, **kwargs).last_hidden_state[0].float()

    alone, spans, positions, start = [], [], [], 0
    for (prompt, first, second), (p, a, b) in zip(trees, lengths):
        alone += [hidden([prompt, first]), hidden([prompt, second])[p:]]
        spans += [(start, start + p + a, start, start), (start + p + a, start + p + a + b, start, start + p)]
        positions += [torch.arange(p + a), torch.arange(p, p + b)]
        start += p + a + b
    expected = torch.cat(alone)
    if not expected.isfinite().all():
        raise ArithmeticError(f"{type(model).__name__}: the hidden states of a short text are nan or infinite.")
    row = {"position_ids": torch.cat(positions)[None], "attention_mask": None}
    row["segments"] = Segments(spans, torch.device("cpu"))
    try:
        model.set_attn_implementation(SEGMENT_ATTENTION)
        packed = hidden([part for tree in trees for part in tree], **row)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} takes no attention but its own ({error}).") from error
    finally:
        model.train(was_training)
    worst, spread = (packed - expected).abs().max(), expected.std()
    if not worst <= tolerance * spread:  # written so that values that are no numbers fail too
        raise ValueError(
            f"{type(model).__name__}: hidden states of packed sequences differ by up to {worst:.2g} from those of the "
            f"same sequences alone, whose spread is {spread:.2g}. This architecture does not keep packed sequences "
            "apart."
        )
