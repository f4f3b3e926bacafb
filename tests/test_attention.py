"""Packed attention as a GPU computes it, on a CPU: torch's kernels replaced by references of their documented meaning.

The choice between torch's kernels is tried with fake tensors, which have a device, a shape and a size, and no values.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from live_bytes import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import varlen
from transformers.integrations import sdpa_attention

from common.attention import (
    Segments,
    _attend,
    _attend_per_row,
    _attend_per_segment,
    _attend_with_flash,
    answering_attention,
    has_flash,
)

SPANS = [(0, 9, 0, 0), (9, 14, 0, 4), (14, 15, 14, 14), (15, 22, 14, 14), (22, 30, 0, 0), (30, 33, 22, 23)]


def reference_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, **options):
    """(tokens, heads, dim) each; causal windows are aligned to the last query and key, as the kernel documents."""
    assert options.get("enable_gqa", True) and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    out = []
    for (qs, qe), (ks, ke) in zip(zip(cu_seq_q, cu_seq_q[1:]), zip(cu_seq_k, cu_seq_k[1:])):
        q, k, v = (part.transpose(0, 1)[None] for part in (query[qs:qe], key[ks:ke], value[ks:ke]))
        offset = k.shape[2] - q.shape[2]
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(offset + window_size[1])
        if window_size[0] >= 0:
            mask = mask.triu(offset - window_size[0])
        out.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)


def without_gqa_argument(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """The signature of torch 2.11."""
    return reference_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [reference_varlen, without_gqa_argument], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_flash_and_per_segment_agree_in_values_and_gradients(monkeypatch, kernel, window):
    if kernel is reference_varlen:
        kernel.__signature__ = inspect.signature(varlen.varlen_attn)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    generator, results = torch.Generator().manual_seed(0), []
    inputs = [torch.randn(1, heads, 33, 8, generator=generator) for heads in (4, 2, 2)]
    for attend in (_attend_with_flash, _attend_per_segment):
        tensors = [tensor.clone().requires_grad_() for tensor in inputs]
        out = attend(*tensors, Segments(SPANS, torch.device("cpu")), 0.3, window)
        (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
        results.append([out, *(tensor.grad for tensor in tensors)])
    for flash, per_segment in zip(*results):
        torch.testing.assert_close(flash, per_segment, atol=1e-5, rtol=1e-5)


def test_the_kernel_of_this_torch_takes_what_we_pass():
    passed = {"cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size"}
    assert passed <= set(inspect.signature(varlen.varlen_attn).parameters)


def test_gpus_before_ampere_and_fp32_do_without_the_flash_kernel(monkeypatch):
    def takes_flash(dtype: torch.dtype, capability: tuple[int, int], is_cuda: bool = True) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return has_flash(SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device="cuda:0"))

    for dtype in (torch.bfloat16, torch.float16):
        assert takes_flash(dtype, (8, 0)) and takes_flash(dtype, (9, 0))
        assert not takes_flash(dtype, (7, 5)) and not takes_flash(dtype, (8, 0), is_cuda=False)
    assert not takes_flash(torch.float32, (9, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_flash_on_cuda_agrees_with_per_segment():
    inputs = [torch.randn(1, heads, 33, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
    segments = Segments(SPANS, torch.device("cuda"))
    flash, per_segment = (
        attend(*inputs, segments, 0.125, None) for attend in (_attend_with_flash, _attend_per_segment)
    )
    torch.testing.assert_close(flash, per_segment, atol=2e-2, rtol=2e-2)


# ---- fp32, and masks: the memory-efficient kernel

real_attention = F.scaled_dot_product_attention


def cuda_attention(query, key, value, mask=None, is_causal=False, scale=None, enable_gqa=False):
    """torch 2.13 on CUDA, by the rules of sdp_utils.cpp: flash, else the memory-efficient kernel, else plain maths."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    same_heads = query.shape[1] == key.shape[1] == value.shape[1]
    assert query.is_cuda and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    if half and mask is None:
        return torch.empty_like(query)
    if same_heads and query.shape[3] % (8 if half else 4) == 0:
        bias = None
        if mask is not None:  # one matrix for all heads, its rows padded to a multiple of eight
            bias = torch.where(mask, 0.0, torch.tensor(-torch.inf, dtype=query.dtype, device=mask.device))
            bias = F.pad(bias, (0, 8)).narrow(1, 0, mask.shape[1]).expand(*query.shape[:2], *mask.shape)
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, bias, False, 0.0, is_causal, scale=scale)[0]
    return real_attention(query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)


ROWS, LENGTH = 4, 4096
SCORES = 4 * 16 * ROWS * LENGTH**2  # bytes, in fp32


def peak_on_cuda(monkeypatch, attend, masked: bool, dtype: torch.dtype) -> int:
    """Bytes alive at most within attention of 16 query heads and 8 key heads, of width 128."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", cuda_attention)
    with FakeTensorMode(), torch.no_grad():
        on_cuda = {"device": "cuda", "dtype": dtype}
        query, key, value = (torch.empty(ROWS, heads, LENGTH, 128, **on_cuda) for heads in (16, 8, 8))
        mask = torch.empty(LENGTH, LENGTH, device="cuda", dtype=torch.bool) if masked else None
        with LiveBytes() as memory:
            out = attend(query, key, value, mask, 0.3)
    assert out.shape == query.shape and out.dtype == dtype
    return memory.peak


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "with a mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_texts_on_cuda_need_no_matrix_of_scores(monkeypatch, masked, dtype):
    assert peak_on_cuda(monkeypatch, _attend, masked, dtype) < 0.15 * SCORES


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "with a mask"])
def test_the_counter_sees_the_scores_where_heads_are_not_repeated(monkeypatch, masked):
    """A check of the check: torch's own grouped heads, in fp32. In bf16 an H200 has a kernel that takes them."""

    def grouped(query, key, value, mask, scaling):
        options = {"is_causal": mask is None, "scale": scaling, "enable_gqa": True}
        return F.scaled_dot_product_attention(query, key, value, mask, **options)

    assert peak_on_cuda(monkeypatch, grouped, masked, torch.float32) > SCORES


@pytest.mark.parametrize("window", [None, 3])
def test_repeated_heads_give_the_values_and_gradients_of_grouped_ones(monkeypatch, window):
    """On a CPU tensors are never on CUDA, so a tensor that says it is."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    seen, results = [], []

    def attention(query, key, value, *arguments, **options):
        seen.append((query.shape[1], key.shape[1], value.shape[1]))
        return real_attention(query, key, value, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, 33, 8, generator=generator) for heads in (4, 2, 2)]
    for kind in (torch.Tensor, OnCuda):
        tensors = [tensor.clone().requires_grad_() for tensor in inputs]
        row = _attend_per_row(tensors[0].as_subclass(kind), *tensors[1:], 0.3, window)
        segments = Segments(SPANS, torch.device("cpu"))
        packed = _attend_per_segment(tensors[0].as_subclass(kind), *tensors[1:], segments, 0.3, window)
        ((row - packed) * torch.arange(row.numel()).view(row.shape).cos()).sum().backward()
        results.append([part.as_subclass(torch.Tensor) for part in (row, packed, *(tensor.grad for tensor in tensors))])
    calls = 1 + len(SPANS)
    assert seen == [(4, 2, 2)] * calls + [(4, 4, 4)] * calls
    for grouped, repeated in zip(*results):
        torch.testing.assert_close(repeated, grouped, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("window", [None, 3])
def test_fp32_on_cuda_runs_without_the_kernel_that_builds_all_scores(window):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, 33, 64, generator=generator) for heads in (4, 2, 2)]
    expected = _attend_per_segment(*inputs, Segments(SPANS, torch.device("cpu")), 0.125, window)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # torch raises if it cannot be used
        on_cuda = [tensor.cuda() for tensor in inputs]
        found = _attend_per_segment(*on_cuda, Segments(SPANS, torch.device("cuda")), 0.125, window)
        _attend_per_row(*on_cuda, 0.125, window)
    torch.testing.assert_close(found.cpu(), expected, atol=5e-3, rtol=5e-3)  # it may multiply in TF32


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("masked", ["no mask", "padded on the left", "by head"])
def test_answering_attends_as_transformers_does_without_copies_for_one_new_token(shared, length, masked, monkeypatch):
    """Also where values have another size than keys."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, tokens, size, generator=draw)
        for heads, tokens, size in ((4, length, 8), (4 // shared, 7, 8), (4 // shared, 7, 12))
    )
    mask = torch.ones(3, 4 if masked == "by head" else 1, length, 7, dtype=torch.bool)
    mask[1, ..., :4] = mask[2, ..., :1] = False
    mask = None if masked == "no mask" else mask
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = shared, False
    expected, _ = sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    copied, repeat_kv = [], sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *of: copied.append(of) or repeat_kv(*of))
    found, weights = answering_attention(module, query, key, value, mask, scaling=0.3)
    assert weights is None and found.shape == expected.shape == (3, length, 4, 12)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    if masked == "padded on the left" and shared > 1:
        assert bool(copied) == (length > 1)
