"""Checkpoints: what a run resumes from, and what others load.

- verl writes a resumable checkpoint into `global_step_N/` and, once it is complete, its number into a tracker file.
  Only the tracker is believed, so a folder that a crash left half-written is never resumed from.
- Old checkpoints go after the tracker has moved on. (verl's own rotation deletes first, and forgets across restarts.)
- What others load is written beside its place and moved there whole: safetensors, config, tokenizer, chat template.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.failures import what_is_gone
from common.files import write_text

TRACKER = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"
REMEDY = "Choose another OUTPUT, or start over in this one with trainer.resume_mode=disable."


class CheckpointError(RuntimeError):
    """A checkpoint cannot be resumed from or written. Its text is for the user."""


class EpochShuffle(Sampler):
    """The row order of a whole run: a fresh permutation per epoch, cut to whole batches.

    A pure function of (rows, batch size, epochs, seed), and one pass for all epochs, so that StatefulDataLoader can
    resume at any step, the last one of an epoch included.
    """

    def __init__(self, rows: int, batch_size: int, epochs: int, seed: int):
        self.rows, self.kept, self.epochs, self.seed = rows, rows // batch_size * batch_size, epochs, seed

    def __len__(self) -> int:
        return self.kept * self.epochs

    def __iter__(self):
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(self.seed + epoch)
            yield from torch.randperm(self.rows, generator=generator)[: self.kept].tolist()


def claim_folder(folder: Path) -> BaseFileLock:
    """Keep other runs out of a folder until the returned lock is released, or this process ends in any way.

    Raises:
        CheckpointError: another run has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: this folder cannot be made ({error}). Choose another one.") from error
    claim = FileLock(folder / ".claimed")
    try:
        claim.acquire(blocking=False)
    except Timeout:
        raise CheckpointError(f"another run is writing to {folder}. Wait for it, or choose another OUTPUT.") from None
    return claim


def check_resume(folder: Path, run: dict, resume_mode: str) -> None:
    """Refuse to resume a run that is not this one, then note down what this run is.

    Args:
        folder: where checkpoints go.
        run: what must be equal for resuming to mean "continue": model, data, batch size, seed, workers, …
        resume_mode: "auto", or "disable" to remove what an earlier run left to resume from.

    Raises:
        CheckpointError: the folder's checkpoints come from other settings, or the newest is gone.
    """
    if resume_mode not in ("auto", "disable"):
        raise CheckpointError(f"trainer.resume_mode={resume_mode}: expected auto or disable")
    note, tracker = folder / RUN_FILE, folder / TRACKER
    if resume_mode == "auto" and tracker.exists():
        if not (folder / f"global_step_{tracker.read_text()}").is_dir():
            raise CheckpointError(f"{tracker} names a checkpoint that is gone: step {tracker.read_text()}. {REMEDY}")
        if not note.exists():
            raise CheckpointError(f"{folder} holds a checkpoint of unknown origin ({RUN_FILE} is missing). {REMEDY}")
        earlier = json.loads(note.read_text())
        if changed := _differences({name: earlier.get(name) for name in run}, run):
            raise CheckpointError(f"{folder} holds a checkpoint of another run. " + "; ".join(changed) + f". {REMEDY}")
    elif resume_mode == "disable":
        tracker.unlink(missing_ok=True)
        for left in (*folder.glob("global_step_*"), folder / "metrics", folder / "tensorboard"):
            shutil.rmtree(left, ignore_errors=True)
    write_text(note, json.dumps(run, indent=1))


def _differences(there: object, here: object, name: str = "") -> list[str]:
    """Return a line for each value that differs; of two dictionaries only for what differs in them.

    A value that is missing is None: a setting that an earlier version did not have, and that is off, is no difference.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        keys = {**there, **here}
        inside = ((there.get(key), here.get(key), f"{name}.{key}" if name else key) for key in keys)
        return [line for values in inside for line in _differences(*values)]
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]


def how_to_go_on(trainer: DictConfig) -> str:
    """Say from which step a run goes on if it is started again; `trainer` has its `output` and `resume_mode`."""
    tracker = Path(trainer.output) / TRACKER
    if not tracker.is_file():
        return "no checkpoint was written yet (see trainer.save_freq), so the same command starts from step 0"
    condition = "without trainer.resume_mode=disable " if trainer.resume_mode == "disable" else ""
    return f"{condition}the same command goes on from step {int(tracker.read_text())}"


def save_checkpoint(save: Callable[[], None], folder: Path, step: int, keep: int | None) -> None:
    """Save as verl does, then delete all but the newest `keep` checkpoints; None keeps all.

    Raises:
        CheckpointError: a worker or this process could not write, a full disk most often.
    """
    try:
        save()
    except (RayTaskError, OSError, RuntimeError) as error:
        raise CheckpointError(_report_failed_write(f"the checkpoint of step {step}", folder, error)) from error
    newest = int((folder / TRACKER).read_text())
    tqdm.write(f"checkpoint of step {newest} saved")
    steps = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"global_step_(\d+)", path.name))
    }
    complete = sorted(saved for saved in steps if saved <= newest)
    for saved in complete[:-keep] if keep else []:
        shutil.rmtree(steps[saved])


def export_checkpoint(worker_group, folder: Path, name: str, *arguments) -> Path:
    """Have the workers write the model for others to load, as `folder/name`, and return that path.

    Args:
        arguments: what the method's engine needs beside the path.

    Raises:
        CheckpointError: it could not be written; the resumable checkpoint is untouched.
    """
    try:
        worker_group.export(str(folder / name), *arguments)
    except (RayTaskError, OSError) as error:
        raise CheckpointError(_report_failed_write(f"the model {name}", folder, error)) from error
    return folder / name


def _report_failed_write(what: str, folder: Path, error: Exception) -> str:
    if gone := what_is_gone(error):
        return gone
    tracker = folder / TRACKER
    last = f"The checkpoint of step {tracker.read_text()} is intact" if tracker.exists() else "There is no earlier one"
    free = shutil.disk_usage(folder).free / 2**30
    return (
        f"{what} could not be written to {folder}: {getattr(error, 'cause', None) or error}. {free:.1f} GiB are free "
        f"there. {last}. Remove the cause, then give the same command again: it goes on from what is intact."
    )


def export_model(
    module: torch.nn.Module,
    auto_class: type,
    config_changes: dict,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    rank: int,
    generation_config: GenerationConfig | None = None,
) -> None:
    """Gather a sharded model and write it, as fp32 safetensors, from rank 0. Every rank must call this.

    Args:
        module: the trained FSDP2 module, with or without LoRA.
        auto_class: what loads it, AutoModelForSequenceClassification or AutoModelForCausalLM.
        config_changes: what config.json shall say that the base model's does not.
        folder: the checkpoint's folder, replaced whole. With LoRA it holds the merged model, and `<folder>_adapter`
            the adapter, which peft loads on top of the base model.
        generation_config: how the model generates, for models that do.
    """
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank != 0:
        return
    base = unwrap(module)
    config = type(base.config).from_dict(base.config.to_dict())  # without the attention that training used
    for name, value in (config_changes | {"pad_token_id": tokenizer.pad_token_id}).items():
        setattr(config, name, value)
    with torch.device("meta"):  # only the shape; the weights are in `state`
        model = auto_class.from_config(config, dtype=torch.float32)
    target = Path(folder)
    if adapter := getattr(module, "peft_config", {}).get("default"):
        adapter.base_model_name_or_path = base.config.name_or_path
        with_adapter = _load_into_adapter(model, adapter, state)
        _write_folder(target.with_name(f"{target.name}_adapter"), with_adapter, tokenizer)
        model = with_adapter.merge_and_unload()
        state = model.state_dict()
    model.generation_config = generation_config
    # gathered from several workers, a tied weight comes once for each of its names
    state = {name: weight for name, weight in state.items() if name not in model.all_tied_weights_keys}
    _write_folder(target, model, tokenizer, state_dict=state)


def _load_into_adapter(model: PreTrainedModel, adapter, state: dict[str, torch.Tensor]):
    from peft import get_peft_model

    with torch.device("meta"):
        with_adapter = get_peft_model(model, adapter)
    with_adapter.load_state_dict(state, assign=True)
    return with_adapter


def _write_folder(target: Path, model, tokenizer: PreTrainedTokenizerBase, **weights) -> None:
    """Write model and tokenizer beside `target`, then put them in its place."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, **weights)
    tokenizer.save_pretrained(partial)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)  # the old one stays until the new one is there
    os.rename(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def export_language_model(
    module: torch.nn.Module, model_config, folder: str, rank: int, end_of_turn: Iterable[int] = ()
) -> None:
    """Write a checkpoint that generates as its base model does. See `export_model`.

    Args:
        model_config: verl's `HFModelConfig`.
        end_of_turn: tokens at which it stops beside the base model's own.
    """
    tokenizer = model_config.tokenizer
    config = model_config.generation_config or GenerationConfig.from_model_config(unwrap(module).config)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = sorted({*end_of_turn, *ends} - {None})
    config.pad_token_id = tokenizer.pad_token_id
    try:
        config.validate(strict=True)
    except ValueError:  # some base models' own settings contradict each other, and would not be saved
        config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    export_model(module, AutoModelForCausalLM, {}, tokenizer, folder, rank, config)


def unwrap(module: torch.nn.Module) -> PreTrainedModel:
    """Return the transformers model, LoRA or not."""
    return module.get_base_model() if hasattr(module, "peft_config") else module
