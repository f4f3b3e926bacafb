"""One worker, or two that die and are started again, with any token budget: the same losses and the same weights."""

from pathlib import Path

import psutil
import pytest
from runs import SFT_SCRIPT, finish, log_of, metrics_of, run, start, wait_for
from safetensors.torch import load_file

pytestmark = pytest.mark.run

STEPS = 24
SETTINGS = (
    "data.train_batch_size=8",
    "trainer.total_epochs=2",  # 12 steps an epoch: step 12 is a checkpoint at an epoch's very end
    "optim.lr=3e-4",
    "trainer.save_freq=4",
    "trainer.max_ckpt_to_keep=1",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_sft_run) -> Path:
    output = tmp_path_factory.mktemp("reference") / "outputs"
    run(output, *SETTINGS, script=SFT_SCRIPT, **small_sft_run)
    return output


def workers_of(process) -> list[psutil.Process]:
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if "PackedWorker" in " ".join(child.cmdline())]


def largest_difference(output: Path, reference: Path) -> float:
    weights, expected = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (output, reference))
    assert weights.keys() == expected.keys()
    return max((weights[name] - expected[name]).abs().max().item() for name in expected)


def test_two_workers_that_died_and_were_resumed_train_like_one(tmp_path, small_sft_run, reference):
    """With small micro-batches. The gradient's norm is compared too, before clipping: Adam forgives a wrong scale."""
    output, settings = tmp_path / "outputs", (*SETTINGS, "data.max_tokens_per_gpu=500", "data.max_length=500")
    on_two = small_sft_run | {"N_GPUS_PER_NODE": "2"}
    process = start(output, *settings, script=SFT_SCRIPT, **on_two)
    wait_for(lambda: max(metrics_of(output, "train/loss"), default=0) >= 13)
    workers = workers_of(process)
    for worker in workers:
        worker.suspend()  # or the second one would notice that the first is gone
    for worker in workers:
        worker.kill()
    assert finish(process) != 0 and "a worker died" in log_of(output)
    saved = int((output / "latest_checkpointed_iteration.txt").read_text())
    assert 12 <= saved < STEPS
    assert f"resuming after step {saved} of {STEPS}" in run(output, *settings, script=SFT_SCRIPT, **on_two)
    for name, tolerance in (("loss", 1e-5), ("token_accuracy", 1e-6), ("trained_tokens", 0), ("grad_norm", 1e-3)):
        values, expected = (metrics_of(folder, f"train/{name}") for folder in (output, reference))
        assert list(values) == list(range(1, STEPS + 1)) and values == pytest.approx(expected, abs=tolerance), name
    for name in ("conversations", "trained_tokens", "loss"):
        values, expected = (metrics_of(folder, f"val/{name}") for folder in (output, reference))
        assert expected and values == pytest.approx(expected, abs=1e-4), name
    assert metrics_of(output, "val/conversations")[STEPS] == 19  # no batch and no pair of workers divides it
    assert largest_difference(output, reference) < 1e-3
