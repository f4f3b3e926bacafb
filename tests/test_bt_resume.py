"""A run that is killed anywhere, or finds the disk full, ends as if nothing had happened once it is started again."""

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import torch
from runs import finish, kill_group, log_of, metrics_of, run, start, wait_for
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.run

SETTINGS = (
    "data.train_batch_size=8",
    "optim.lr=1e-3",
    "trainer.total_epochs=2",  # 12 steps an epoch: step 12 is a checkpoint at an epoch's very end
    "trainer.save_freq=4",
    "trainer.max_ckpt_to_keep=1",
)
LAST_STEP = 24


def tracked_step(output: Path) -> int:
    tracker = output / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


def reached(output: Path, step: int):
    return lambda: max(metrics_of(output, "train/loss"), default=0) >= step


def worker_of(process) -> psutil.Process:
    family = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in family if "PackedWorker" in " ".join(child.cmdline()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_run):
    output = tmp_path_factory.mktemp("uninterrupted") / "outputs"
    run(output, *SETTINGS, **small_run)
    return output


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

    # a worker dies
    process = start(output, *SETTINGS, **small_run)
    wait_for(reached(output, 6))
    worker_of(process).send_signal(signal.SIGKILL)
    assert finish(process) != 0
    assert "a worker died" in log_of(output) and tracked_step(output) >= 4

    # the driver dies, at once and with no chance to clean up
    process = start(output, *SETTINGS, **small_run)
    wait_for(reached(output, tracked_step(output) + 3))
    kill_group(process)
    assert 0 < tracked_step(output) < LAST_STEP

    # all dies in the middle of writing a checkpoint: the optimizer's file is a pipe that nobody reads
    half_written = tracked_step(output) + 4
    pipe = output / f"global_step_{half_written}" / "optim_world_size_1_rank_0.pt"
    pipe.parent.mkdir(exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    process = start(output, *SETTINGS, **small_run)
    wait_for(reached(output, half_written))
    model = pipe.with_name("model_world_size_1_rank_0.pt")
    wait_for(model.exists)
    kill_group(process)
    assert tracked_step(output) == half_written - 4
    pipe.unlink()
    model.write_bytes(model.read_bytes()[:1000])

    # the same command once more
    log = run(output, *SETTINGS, **small_run)
    assert f"Found latest checkpoint: {output}/global_step_{half_written - 4}" in log
    assert tracked_step(output) == LAST_STEP
    assert [path.name for path in output.glob("global_step_*")] == [f"global_step_{LAST_STEP}"]
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (output, uninterrupted))
    assert max((weights[name] - expected[name]).abs().max().item() for name in expected) <= 1e-6
    losses, expected = (metrics_of(folder, "train/loss") for folder in (output, uninterrupted))
    assert list(losses) == list(expected) == list(range(1, LAST_STEP + 1))
    torch.testing.assert_close(list(losses.values()), list(expected.values()), atol=1e-6, rtol=0)


def test_another_run_in_the_output_folder_is_not_resumed(tmp_path, small_run, uninterrupted):
    config = AutoConfig.from_pretrained(small_run["MODEL_PATH"], num_hidden_layers=1, layer_types=["full_attention"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_run["MODEL_PATH"]).save_pretrained(tmp_path)
    process = start(uninterrupted, *SETTINGS, "trainer.seed=5", **small_run | {"MODEL_PATH": str(tmp_path)})
    assert finish(process) != 0
    message = log_of(uninterrupted).splitlines()[-1]
    assert f"{uninterrupted} holds a checkpoint of another run" in message
    assert re.search(r"model: 'Qwen3ForCausalLM, 2 layers x 128, weights \w+' there, '\S+ 1 layers x 128", message)
    assert "trainer.seed: 0 there, 5 here" in message
    assert "Choose another OUTPUT" in message
    assert tracked_step(uninterrupted) == LAST_STEP
