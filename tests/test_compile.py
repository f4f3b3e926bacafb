"""Compiled layers compute what they did, for batches of any size by one compilation, and only what is meant to be."""

import functools

import pytest
import torch
from conftest import note_gradients
from test_bt_fsdp import loss_function, make_engine, pairs  # noqa: F401  (a fixture)
from torch._dynamo.utils import counters

from bradley_terry import dataset
from common import fsdp, training
from common.checkpoint import unwrap


def make_steps(built, batches: list[list]) -> list[tuple[float, dict[str, torch.Tensor], int]]:
    """Return each training step's loss and gradients, and how many graphs have been compiled by then."""
    gradients, found = {}, []
    note_gradients(built, gradients)
    for rows in batches:
        with built.train_mode():
            output = built.train_batch(training.make_batch(rows, dataset.collate, 4096), loss_function)
        found.append((sum(output["loss"]), dict(gradients), counters["stats"]["unique_graphs"]))
    return found


def assert_same(found: tuple, expected: tuple) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_one_compilation_serves_all_layers_and_batches(process_group, tiny_model, pairs, monkeypatch):  # noqa: F811
    # what is captured is run one operation after the other: to make kernels of it takes a compiler, and minutes
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(fsdp, "get_device_name", lambda: "cuda")
    model = {"enable_gradient_checkpointing": True, "lora_rank": 4}
    batches = [pairs[:6], pairs[6:9], pairs[9:]]
    expected = make_steps(make_engine(tiny_model, "fp32", **model), batches)
    torch._dynamo.reset()
    counters.clear()
    steps = make_steps(make_engine(tiny_model, "fp32", compiled=True, **model), batches)
    for found, same in zip(steps, expected, strict=True):
        assert_same(found, same)
    compiled = [graphs for *_, graphs in steps]
    assert 0 < compiled[0] == compiled[-1]
    assert all("segment_attention" in reason for reason in counters["graph_break"]), counters["graph_break"]


def test_without_a_compiler_layers_stay_as_they_are(process_group, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(fsdp, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(fsdp.shutil, "which", lambda name: None)
    built = make_engine(tiny_model, "fp32", compiled=True)
    assert "There is no C compiler" in capsys.readouterr().out
    assert "forward" not in vars(unwrap(built.module).model.layers[0])
