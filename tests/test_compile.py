"""Compiled layers compute what they did, for batches of any size by one compilation, and only what is meant to be."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from conftest import note_gradients
from test_bt_fsdp import loss_function, make_engine, pairs  # noqa: F401  (a fixture)
from test_policy import make_batch
from test_policy import make_engine as make_policy
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from bradley_terry import dataset
from common import cluster, fsdp, training
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


@pytest.fixture
def captured(monkeypatch):
    """As on a GPU, but what is captured is run one operation after the other: to make kernels of it takes minutes."""
    monkeypatch.setattr(fsdp, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def with_layers(model: Path, count: int, folder: Path) -> Path:
    """Write a model of the same shape with so many layers and random weights."""
    shutil.copytree(model, folder)
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers, config.layer_types = count, config.layer_types[:1] * count
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_one_compilation_serves_all_layers_and_batches(process_group, tiny_model, pairs, captured, tmp_path):  # noqa: F811
    settings = {"enable_gradient_checkpointing": True, "lora_rank": 4}
    batches, graphs = [pairs[:6], pairs[6:9], pairs[9:]], []
    expected = make_steps(make_engine(tiny_model, "fp32", **settings), batches)
    for model in (tiny_model, with_layers(tiny_model, 7, tmp_path / "deep")):
        torch._dynamo.reset()
        counters.clear()
        steps = make_steps(make_engine(model, "fp32", compiled=True, **settings), batches)
        graphs += [compiled for *_, compiled in steps]
        assert counters["graph_break"]
        assert all("segment_attention" in reason for reason in counters["graph_break"]), counters["graph_break"]
        if model == tiny_model:
            for found, same in zip(steps, expected, strict=True):
                assert_same(found, same)
    assert graphs[0] > 0 and set(graphs) == set(graphs[:1])


def test_a_policy_answers_without_being_compiled_for_it(process_group, tiny_model, captured):
    built = make_policy(tiny_model, use_torch_compile=True)
    prompts, seeds, options = [[5, 6, 7], [8, 9]], [0, 1], {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    answers = built.generate(prompts, seeds, 6, 1000, **options)
    assert all(tokens for tokens, _ in answers) and not counters["stats"]["unique_graphs"]
    batch = make_batch([(prompt, tokens) for prompt, (tokens, _) in zip(prompts, answers)], 1.0)
    with built.eval_mode():
        output = built.infer_batch(batch, loss_function=None)["model_output"]
    assert counters["stats"]["unique_graphs"]
    for (prompt, row), (_, log_probs) in zip(zip(prompts, output["log_probs"].unbind()), answers):
        assert row[len(prompt) - 1 : -1].tolist() == pytest.approx(log_probs, abs=1e-4)


def test_a_model_whose_rows_are_padded_is_not_compiled(process_group, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(fsdp, "get_device_name", lambda: "cuda")
    built = make_engine(tiny_model, "fp32", compiled=True, override_config={"attn_implementation": "sdpa"})
    assert "layers are not compiled, because its rows are padded" in capsys.readouterr().out
    assert "forward" not in vars(unwrap(built.module).model.layers[0])


@pytest.mark.parametrize(
    ("programs", "compiler", "headers", "can"),
    [
        (("gcc",), None, True, True),
        (("clang",), None, True, True),
        (("gcc",), "/missing/cc", True, False),  # Triton takes CC alone, if it is set
        (("gcc",), None, False, False),
        ((), None, True, False),
    ],
)
def test_what_is_needed_to_compile(programs, compiler, headers, can, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name if name in programs else None)
    monkeypatch.setattr(cluster.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    if headers:
        (tmp_path / "Python.h").touch()
    assert cluster.can_compile() is can
