"""One worker, two workers, two Ray nodes: the same losses and the same checkpoint."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from runs import finish, log_of, metrics_of, run, start
from safetensors.torch import load_file

pytestmark = pytest.mark.run

STEPS = 20
SETTINGS = (
    "data.train_batch_size=8",
    "trainer.total_epochs=2",
    f"trainer.total_training_steps={STEPS}",
    "optim.lr=1e-3",
)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory, small_run):
    output = tmp_path_factory.mktemp("one") / "outputs"
    run(output, *SETTINGS, **small_run)
    return output


def assert_same_run(output: Path, reference: Path) -> None:
    """Adam forgives a wrong gradient scale, so the gradient's norm is compared too, before clipping."""
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-2), ("accuracy", 1e-6), ("margin_mean", 1e-3)):
        values, expected = metrics_of(output, f"train/{name}"), metrics_of(reference, f"train/{name}")
        assert len(expected) == STEPS and values.keys() == expected.keys()
        for step in expected:
            assert values[step] == pytest.approx(expected[step], abs=tolerance), f"{name} at step {step}"
    rewards, expected = (pq.read_table(folder / "val_rewards.parquet").to_pylist() for folder in (output, reference))
    assert len(expected) == 19  # an odd number: no batch and no pair of workers divides it
    for row, expected_row in zip(rewards, expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-3)
    names = {path.name for path in (reference / "checkpoint").iterdir()}
    assert {path.name for path in (output / "checkpoint").iterdir()} == names
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (output, reference))
    assert weights.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-3, rtol=0)


def test_two_workers_train_like_one(tmp_path, small_run, one_worker):
    run(tmp_path / "outputs", *SETTINGS, **small_run, N_GPUS_PER_NODE="2")
    assert_same_run(tmp_path / "outputs", one_worker)


def test_two_nodes_train_like_one(tmp_path, small_run, one_worker):
    """Two Ray nodes with one core each on this machine, joined by RAY_ADDRESS; a run on three is refused."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        run(tmp_path / "outputs", *SETTINGS, **small_run, NNODES="2", RAY_ADDRESS=cluster.address)
        assert_same_run(tmp_path / "outputs", one_worker)
        three = start(tmp_path / "three", *SETTINGS, **small_run, NNODES="3", RAY_ADDRESS=cluster.address)
        assert finish(three) != 0
        assert "asks for 3 node(s) with 1 free CPU each" in log_of(tmp_path / "three")
    finally:
        cluster.shutdown()


def test_a_node_with_gpus_but_too_few_cores_is_named_not_waited_for(tmp_path, small_run):
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        assert finish(start(tmp_path / "outputs", *SETTINGS, **small_run, RAY_ADDRESS=cluster.address), 120) != 0
    finally:
        cluster.shutdown()
    message = log_of(tmp_path / "outputs")
    assert "asks for 1 node(s) with 2 free GPU and 2 free CPU each" in message and "2 GPU, 1 CPU" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU that torch can use")
def test_a_gpu_that_torch_cannot_use_is_found_before_training(tmp_path, small_run):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        assert finish(start(tmp_path / "outputs", *SETTINGS, **small_run, RAY_ADDRESS=cluster.address), 120) != 0
    finally:
        cluster.shutdown()
    message = log_of(tmp_path / "outputs").rstrip().splitlines()[-1]
    assert message.startswith("train.py: torch cannot use a GPU that Ray reports. ")
    assert f": Ray reports 1 GPU, torch {torch.__version__} says '" in message
    assert "export CUDA_VISIBLE_DEVICES=" in message


def test_lora_on_two_workers_trains_like_on_one(tmp_path, small_run):
    """The two runs at the same time: neither joins the other's Ray."""
    settings = (*SETTINGS[:2], "trainer.total_training_steps=4", "model.lora_rank=4")
    runs = [start(tmp_path / workers, *settings, **small_run, N_GPUS_PER_NODE=workers) for workers in ("1", "2")]
    for workers, process in zip(("1", "2"), runs):
        assert finish(process) == 0, log_of(tmp_path / workers)[-4000:]
    losses, expected = (metrics_of(tmp_path / workers, "train/loss") for workers in ("2", "1"))
    assert len(expected) == 4 and losses == pytest.approx(expected, abs=1e-4)
