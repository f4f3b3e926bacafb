"""The flash path of packed attention on a CPU, torch's kernel replaced by a reference of its documented meaning."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import varlen

from common.attention import Segments, _attend_per_segment, _attend_with_flash, has_flash

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
