"""What makes a folder safe to resume from and to write to."""

import json
import os
from functools import partial

import pytest
from omegaconf import OmegaConf

from common.checkpoint import (
    TRACKER,
    CheckpointError,
    EpochShuffle,
    check_resume,
    claim_folder,
    export_checkpoint,
    how_to_go_on,
    save_checkpoint,
)

RUN = {"model": "a", "workers": 1}


class Handler:
    """Stands in for verl's handler: makes the step's folder and moves the tracker on, or fails half-way."""

    def __init__(self, folder, fail=None):
        self.folder, self.fail = folder, fail

    def save_checkpoint(self, step):
        (self.folder / f"global_step_{step}").mkdir()
        if self.fail:
            raise self.fail
        (self.folder / TRACKER).write_text(str(step))


def save(handler: Handler, step: int, keep: int | None) -> None:
    save_checkpoint(partial(handler.save_checkpoint, step), handler.folder, step, keep)


def saved_steps(folder) -> list[int]:
    return sorted(int(path.name.split("_")[-1]) for path in folder.glob("global_step_*"))


def test_a_stopped_run_is_told_from_where_it_goes_on(tmp_path):
    settings = OmegaConf.create({"output": str(tmp_path), "resume_mode": "auto"})
    assert "no checkpoint was written yet (see trainer.save_freq)" in how_to_go_on(settings)
    save(Handler(tmp_path), 20, keep=1)
    assert how_to_go_on(settings) == "the same command goes on from step 20"
    assert how_to_go_on(OmegaConf.merge(settings, {"resume_mode": "disable"})).startswith(
        "without trainer.resume_mode=disable the same command goes on"
    )


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(Handler(tmp_path), step, keep=2)
    assert saved_steps(tmp_path) == [15, 20]


def test_null_keeps_all(tmp_path):
    for step in (5, 10, 15):
        save(Handler(tmp_path), step, keep=None)
    assert saved_steps(tmp_path) == [5, 10, 15]


def test_a_failed_write_deletes_nothing_and_names_what_is_intact(tmp_path):
    save(Handler(tmp_path), 5, keep=1)
    with pytest.raises(CheckpointError) as caught:
        save(Handler(tmp_path, OSError(28, "No space left on device")), 10, keep=1)
    for part in ("the checkpoint of step 10 could not be written", "No space left", "GiB are free", "step 5 is intact"):
        assert part in str(caught.value)
    assert saved_steps(tmp_path) == [5, 10] and (tmp_path / TRACKER).read_text() == "5"


def test_a_model_that_could_not_be_exported_is_named_with_what_is_intact(tmp_path):
    class Workers:
        def export(self, folder, *arguments):
            assert (folder, arguments) == (str(tmp_path / "checkpoint"), ([7],))
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="the model checkpoint could not be written to .*There is no earlier one"):
        export_checkpoint(Workers(), tmp_path, "checkpoint", [7])
    save(Handler(tmp_path), 5, keep=1)
    with pytest.raises(CheckpointError, match="No space left.*The checkpoint of step 5 is intact"):
        export_checkpoint(Workers(), tmp_path, "checkpoint", [7])


def test_a_folder_has_one_run_at_a_time(tmp_path):
    claim = claim_folder(tmp_path / "outputs")
    with pytest.raises(CheckpointError, match="another run is writing to .*outputs. Wait for it, or choose another"):
        claim_folder(tmp_path / "outputs")
    claim_folder(tmp_path / "others").release()
    claim.release()
    claim_folder(tmp_path / "outputs").release()


def test_a_run_that_ended_in_any_way_no_longer_has_its_folder(tmp_path):
    """The lock is the system's and not the file, which stays."""
    if (child := os.fork()) == 0:
        claim_folder(tmp_path)
        os._exit(9)  # without a release, as if killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / ".claimed").exists()
    claim_folder(tmp_path).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: this folder cannot be made"):
        claim_folder(tmp_path / "file")


def test_the_same_run_may_resume_and_another_may_not(tmp_path):
    check_resume(tmp_path, RUN, "auto")
    check_resume(tmp_path, {"model": "b", "workers": 1}, "auto")  # nothing was saved yet
    save(Handler(tmp_path), 5, keep=1)
    check_resume(tmp_path, {"model": "b", "workers": 1}, "auto")
    with pytest.raises(CheckpointError, match="another run. model: 'b' there, 'a' here; workers: 1 there, 2 here"):
        check_resume(tmp_path, {"model": "a", "workers": 2}, "auto")
    assert json.loads((tmp_path / "run.json").read_text())["model"] == "b"


def test_of_a_group_of_settings_only_what_differs_is_shown(tmp_path):
    optimizer = {"lr": 1e-5, "betas": [0.9, 0.95], "schedule": {"type": "cosine", "end": 9}}
    check_resume(tmp_path, {"optim": optimizer, "loss": {"margin": 0}}, "auto")
    save(Handler(tmp_path), 5, keep=1)
    check_resume(tmp_path, {"optim": optimizer | {"new": None}, "loss": {"margin": 0}}, "auto")
    other = optimizer | {"lr": 2e-5, "schedule": {"type": "cosine", "end": 8}, "clip": 1}
    with pytest.raises(CheckpointError) as caught:
        check_resume(tmp_path, {"optim": other, "loss": {"margin": 0}}, "auto")
    expected = "optim.lr: 1e-05 there, 2e-05 here; optim.schedule.end: 9 there, 8 here; optim.clip: None there, 1 here"
    assert f"another run. {expected}. Choose another OUTPUT" in str(caught.value)


def test_a_checkpoint_that_is_gone_is_not_passed_over(tmp_path):
    (tmp_path / TRACKER).write_text("5")
    with pytest.raises(CheckpointError, match="names a checkpoint that is gone: step 5"):
        check_resume(tmp_path, RUN, "auto")


def test_a_checkpoint_of_unknown_origin_is_not_resumed(tmp_path):
    save(Handler(tmp_path), 5, keep=1)
    with pytest.raises(CheckpointError, match="of unknown origin"):
        check_resume(tmp_path, RUN, "auto")


def test_disable_starts_over_and_leaves_nothing_of_the_old_run(tmp_path):
    save(Handler(tmp_path), 5, keep=1)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "data").mkdir()
    check_resume(tmp_path, RUN, "disable")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run.json"]


def test_the_row_order_is_whole_batches_a_new_permutation_each_epoch_and_a_function_of_the_seed():
    order = list(EpochShuffle(rows=10, batch_size=4, epochs=3, seed=1))
    assert len(order) == 24 == len(EpochShuffle(10, 4, 3, 1))
    epochs = [order[start : start + 8] for start in (0, 8, 16)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == list(EpochShuffle(10, 4, 3, 1)) != list(EpochShuffle(10, 4, 3, 2))


@pytest.mark.parametrize("steps_before", [1, 2, 3, 4, 5])
def test_the_loader_goes_on_at_any_step(steps_before):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader():
        return StatefulDataLoader(list(range(10)), 4, sampler=EpochShuffle(10, 4, 3, 1), collate_fn=list)

    whole, interrupted, resumed = list(loader()), loader(), loader()
    batches = iter(interrupted)
    for _ in range(steps_before):
        next(batches)
    resumed.load_state_dict(interrupted.state_dict())
    assert list(resumed) == whole[steps_before:]
