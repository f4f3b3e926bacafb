"""verl's training workers, started and called from one process: the calls that a method's loop consists of."""

import math
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayTaskError

from common.cluster import ClusterError, Machines, TrainingError, check_platform
from common.conversation import DataError
from common.failures import what_is_gone


def refuse_added(overrides: list[str], file: Path) -> None:
    """Raise `DataError` for settings that no section of the config has: nothing would read them.

    Hydra takes them if a plus stands before them, and says so. A section's own dictionaries, such as
    model.override_config, may get keys.

    Args:
        overrides: what was given behind the script, as Hydra has it.
        file: the method's config.yaml.
    """
    known = OmegaConf.load(file)
    sections = {name: section for name, section in known.items() if isinstance(section, DictConfig)}
    settings = {f"{name}.{key}" for name, section in sections.items() for key in section}
    names = [word.lstrip("+").partition("=")[0] for word in overrides if word.startswith("+")]
    added = [name for name in names if name.count(".") < 2 and name not in settings | known.keys()]
    if added:
        raise DataError(f"{', '.join(added)}: there is no such setting. The folder's config.yaml lists all of them")


def start_workers(model_type: str, engine_module: str, loss_fn, config: DictConfig, machines: Machines):
    """Start one verl `TrainingWorker` per GPU or share of the CPU and build the sharded model on them.

    Args:
        model_type, engine_module: the name under which the method's engine is registered, and the module that does it.
        loss_fn: called by the engine on each micro-batch.
        config: sections `model`, `engine` and `optim`, each naming its verl class, and `trainer.nnodes`.
        machines: of `common.cluster.connect`.

    Returns:
        verl's handle on all workers.

    Raises:
        ClusterError: verl does not run on the device, or the model cannot be built.
    """
    from verl.single_controller.ray import RayClassWithInitArgs
    from verl.workers.config import TrainingWorkerConfig

    from common.fsdp import PackedWorker
    from common.pool import OneNodeEach, WorkerGroup

    check_platform(machines.device)
    worker_config = TrainingWorkerConfig(model_type=model_type, **verl_settings(config))
    nodes = config.trainer.nnodes
    # one worker group per bundle; verl's default reserves ten cores per worker
    pool = OneNodeEach([machines.workers_per_node] * nodes, use_gpu=machines.device != "cpu", max_colocate_count=1)
    workers = RayClassWithInitArgs(ray.remote(PackedWorker), config=worker_config, engine_module=engine_module)
    worker_group = WorkerGroup(pool, workers, device_name=machines.device)
    worker_group.set_loss_fn(loss_fn)
    try:
        worker_group.reset()
    except RayTaskError as error:
        if gone := what_is_gone(error):
            raise ClusterError(gone) from error
        raise ClusterError(f"the model could not be built on the workers: {error.cause}") from error
    return worker_group


def verl_settings(config: DictConfig) -> dict:
    """Return what verl's engine is built of: model, engine, optimizer and checkpoint settings, by their names there."""
    from verl.trainer.config import CheckpointConfig
    from verl.utils.config import omega_conf_to_dataclass

    sections = {"model_config": config.model, "engine_config": config.engine, "optimizer_config": config.optim}
    return {name: omega_conf_to_dataclass(part) for name, part in sections.items()} | {
        "checkpoint_config": CheckpointConfig()
    }


def balance(rows: list, workers: int) -> list:
    """Order a batch so that each worker's equal share of rows has about the same number of `row.tokens`.

    A share's longest rows stand first: where rows are padded, those of similar length are padded together.
    """
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    parts = get_seqlen_balanced_partitions([row.tokens for row in rows], workers, equal_size=True)
    return [rows[index] for part in parts for index in sorted(part, key=lambda index: -rows[index].padded_tokens)]


def make_batch(
    rows: list, collate: Callable[[list], dict], max_tokens: int, workers: int = 1, packed: bool = True, **settings
):
    """Make what verl sends to the workers: the collated rows, and what its engine asks for beside the tensors.

    Args:
        max_tokens: tokens per micro-batch.
        packed: fill micro-batches by their tokens; else each has as many rows as fit, were all as long as the longest.
        settings: verl's switches for this call, `update_lr_scheduler` or `compute_loss`.
    """
    from tensordict.tensorclass import NonTensorData
    from verl.utils import tensordict_utils as tu

    settings |= {
        "use_dynamic_bsz": packed,
        "max_token_len_per_gpu": max_tokens,
        "micro_batch_size_per_gpu": rows_that_fit(rows, max_tokens, workers),
        "global_batch_size": len(rows),
        "global_token_num": NonTensorData([row.tokens for row in rows]),
    }
    return tu.get_tensordict(collate(rows), settings)


def rows_that_fit(rows: list, max_tokens: int, workers: int) -> int:
    """Return how many padded rows make a micro-batch of at most `max_tokens`; it divides each worker's share."""
    return equal_parts(len(rows) // workers, max_tokens // max(row.padded_tokens for row in rows))


def fullest(rows: list, max_tokens: int, packed: bool) -> list:
    """Return of rows, the largest first, those that make one micro-batch as large as it can become."""
    if not packed:
        return rows[: max(1, max_tokens // max(row.padded_tokens for row in rows))]
    chosen, room = [], max_tokens
    for row in rows:
        if row.tokens <= room:
            chosen.append(row)
            room -= row.tokens
    return chosen


def equal_parts(share: int, most: int) -> int:
    """Return the largest size of at most `most`, and at least 1, that divides a share of rows into equal parts."""
    return max(size for size in range(1, share + 1) if share % size == 0 and size <= max(1, most))


def train_batch(worker_group, batch, rows: list, step: int) -> tuple[dict[str, float], dict[str, float], dict]:
    """Make one training step and join the workers' metrics.

    Returns:
        loss, grad_norm, lr and memory_gb; the sums that the loss function reports; and the lists that it reports, in
        which the workers' parts follow each other in no order.

    Raises:
        TrainingError: out of memory; or the loss or the gradient is not finite, which verl would skip and go on.
    """
    from verl.utils import tensordict_utils as tu
    from verl.utils.metric import Metric

    try:
        raw = tu.get(worker_group.train_batch(batch).get(), "metrics")
    except torch.OutOfMemoryError as error:
        remedy = "Lower data.max_tokens_per_gpu, or set model.enable_gradient_checkpointing=True"
        raise TrainingError(f"step {step}: a worker ran out of GPU memory. {remedy}. {error}") from error
    loss, grad_norm = raw["loss"], raw["grad_norm"]
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}. The weights of this step were not kept. Lower "
            "optim.lr, or look at the rows of this batch: " + ", ".join(row.source for row in rows)
        )
    reported = {name: parts for name, parts in raw.items() if isinstance(parts, list)}
    sums = {name: Metric.aggregate_dp(parts) for name, parts in reported.items() if isinstance(parts[0], Metric)}
    lists = {name: [value for part in parts for value in part] for name, parts in reported.items() if name not in sums}
    memory = raw["perf/max_memory_allocated_gb"]
    return {"loss": loss, "grad_norm": grad_norm, "lr": raw["lr"], "memory_gb": memory}, sums, lists
