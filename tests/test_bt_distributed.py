"""One worker, two workers, two Ray nodes: the same losses and the same checkpoint."""

from pathlib import Path

import pytest
import torch
from runs import log_of, metrics_of, run
from safetensors.torch import load_file

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
    losses, expected = metrics_of(output, "train/loss"), metrics_of(reference, "train/loss")
    assert len(expected) == STEPS and losses.keys() == expected.keys()
    for step in expected:
        assert losses[step] == pytest.approx(expected[step], abs=1e-4), f"step {step}"
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
        with pytest.raises(AssertionError):
            run(tmp_path / "three", *SETTINGS, **small_run, NNODES="3", RAY_ADDRESS=cluster.address)
        assert "asks for 3 node(s) with 1 free CPU cores" in log_of(tmp_path / "three")
    finally:
        cluster.shutdown()
