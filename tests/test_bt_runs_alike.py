"""One worker, two Ray nodes, killed in the middle of a checkpoint and resumed: the same losses, the same checkpoint."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from runs import finish, kill_group, log_of, metrics_of, run, start, wait_for
from safetensors.torch import load_file
from test_page import held_by
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from common.parquet import read_rows

pytestmark = pytest.mark.run

STEPS = 24
SETTINGS = (
    "data.train_batch_size=8",
    "optim.lr=1e-3",
    "trainer.total_epochs=2",  # 12 steps an epoch: step 12 is a checkpoint at an epoch's very end
    "trainer.save_freq=4",
    "trainer.max_ckpt_to_keep=1",
    "trainer.measure_train=true",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_run):
    output = tmp_path_factory.mktemp("uninterrupted") / "outputs"
    run(output, *SETTINGS, **small_run)
    return output


def tracked_step(output: Path) -> int:
    tracker = output / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


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
    assert_same_margins(output, reference, 1e-3)
    val, train = held_by(output / "report.html")["sets"]
    assert [right for _, right in val["outcomes"]] == [
        "yes" if row["chosen"] > row["rejected"] else "no" for row in rewards
    ]
    finals = {row["source"]: row["final_margin"] for row in pq.read_table(output / "train_rewards.parquet").to_pylist()}
    assert {row[1][0]: row[1][2] for row in train["rows"]} == pytest.approx(finals)
    names = {path.name for path in (reference / "checkpoint").iterdir()}
    assert {path.name for path in (output / "checkpoint").iterdir()} == names
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (output, reference))
    assert weights.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-3, rtol=0)


def assert_same_margins(output: Path, reference: Path, tolerance: float) -> None:
    """The same pairs were trained on in the same steps, with the same margins; the last rate is 0, so the last step's
    margins are those of the finished model, pair by pair."""
    rows, expected = (pq.read_table(folder / "train_rewards.parquet").to_pylist() for folder in (output, reference))
    assert len(expected) == 96 and {len(row["steps"]) for row in expected} == {2}
    for row, expected_row in zip(rows, expected, strict=True):
        assert {row[name] == expected_row[name] for name in ("source", "digest", "steps")} == {True}
        assert row["margins"] == pytest.approx(expected_row["margins"], abs=tolerance)
        assert row["final_margin"] == pytest.approx(expected_row["final_margin"], abs=tolerance)
    last = [row for row in rows if row["steps"][-1] == STEPS]
    assert len(last) == 8 and all(row["margins"][-1] == pytest.approx(row["final_margin"], abs=1e-5) for row in last)


def test_two_nodes_train_like_one(tmp_path, small_run, uninterrupted):
    """Two Ray nodes with one core each on this machine, joined by RAY_ADDRESS; a run on three is refused."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        run(tmp_path / "outputs", *SETTINGS, **small_run, NNODES="2", RAY_ADDRESS=cluster.address)
        assert_same_run(tmp_path / "outputs", uninterrupted)
        three = start(tmp_path / "three", *SETTINGS, **small_run, NNODES="3", RAY_ADDRESS=cluster.address)
        assert finish(three) != 0
        assert "asks for 3 node(s) with 1 free CPU each" in log_of(tmp_path / "three")
    finally:
        cluster.shutdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU that torch can use")
def test_what_a_node_with_gpus_lacks_is_said_before_training(tmp_path, small_run):
    """Too few cores are named, not waited for; a GPU that torch cannot use is found."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        settings = small_run | {"RAY_ADDRESS": cluster.address}
        for gpus in ("2", "1"):  # one after the other: the second one's look at a GPU takes it for a moment
            assert finish(start(tmp_path / gpus, *SETTINGS, **settings, N_GPUS_PER_NODE=gpus)) != 0
    finally:
        cluster.shutdown()
    message = log_of(tmp_path / "2")
    assert "asks for 1 node(s) with 2 free GPU and 2 free CPU each" in message and "2 GPU, 1 CPU" in message
    message = log_of(tmp_path / "1").rstrip().splitlines()[-1]
    assert message.startswith("train.py: torch cannot use a GPU that Ray reports. ")
    assert f": Ray reports 2 GPU, torch {torch.__version__} says '" in message
    assert "export CUDA_VISIBLE_DEVICES=" in message


def test_lora_on_two_workers_trains_like_on_one_and_both_exports_score_alike(tmp_path, small_run):
    """The two runs at the same time: neither joins the other's Ray. Adapters and head are trained, nothing else."""
    settings = ("data.train_batch_size=8", "optim.lr=1e-2", "trainer.total_training_steps=4", "model.lora_rank=4")
    settings += ("model.enable_gradient_checkpointing=True",)
    runs = [start(tmp_path / workers, *settings, **small_run, N_GPUS_PER_NODE=workers) for workers in ("1", "2")]
    for workers, process in zip(("1", "2"), runs):
        assert finish(process) == 0, log_of(tmp_path / workers)[-4000:]
    losses, expected = (metrics_of(tmp_path / workers, "train/loss") for workers in ("2", "1"))
    assert len(expected) == 4 and losses == pytest.approx(expected, abs=1e-4)

    output = tmp_path / "2"
    before, after = (
        load_file(f"{folder}/model.safetensors") for folder in (small_run["MODEL_PATH"], output / "checkpoint")
    )
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    merged = AutoModelForSequenceClassification.from_pretrained(output / "checkpoint")
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(output / "checkpoint_adapter", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(output / "checkpoint")
    rows, _ = read_rows(small_run["VAL_FILES"], ("chosen", "rejected"))
    rewards, _ = read_rows(output / "val_rewards.parquet", ("chosen", "rejected"))
    for row, reward in zip(rows, rewards):
        batch = tokenizer.apply_chat_template([row["chosen"]], return_dict=True, return_tensors="pt")
        for model in (merged, adapter):
            assert model(**batch).logits.item() == pytest.approx(reward["chosen"], abs=1e-5)


def test_killed_and_resumed_equals_uninterrupted(tmp_path, small_run, uninterrupted):
    output = tmp_path / "outputs"

    # a disk that is full when the optimizer's state of step 4 is written
    shard = output / "global_step_4" / "optim_world_size_1_rank_0.pt"
    shard.parent.mkdir(parents=True)
    shard.symlink_to("/dev/full")
    assert finish(start(output, *SETTINGS, **small_run)) != 0
    assert "the checkpoint of step 4 could not be written" in log_of(output)
    assert "There is no earlier one" in log_of(output) and tracked_step(output) == 0
    shard.unlink()

    # all dies in the middle of writing the checkpoint of step 8: the optimizer's file is a pipe that nobody reads
    pipe = output / "global_step_8" / "optim_world_size_1_rank_0.pt"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    process = start(output, *SETTINGS, **small_run)
    model = pipe.with_name("model_world_size_1_rank_0.pt")
    wait_for(model.exists)
    kill_group(process)
    assert tracked_step(output) == 4
    pipe.unlink()
    model.write_bytes(model.read_bytes()[:1000])

    # the same command once more
    log = run(output, *SETTINGS, **small_run)
    assert f"resuming after step 4 of {STEPS}" in log and "Found latest checkpoint" not in log
    assert tracked_step(output) == STEPS
    assert [path.name for path in output.glob("global_step_*")] == [f"global_step_{STEPS}"]
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (output, uninterrupted))
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) <= 1e-6
    assert_same_margins(output, uninterrupted, 1e-5)
    losses, expected = (metrics_of(folder, "train/loss") for folder in (output, uninterrupted))
    assert list(losses) == list(expected) == list(range(1, STEPS + 1))
    torch.testing.assert_close(list(losses.values()), list(expected.values()), atol=1e-6, rtol=0)
