"""From a script to running workers: join or start Ray, check that it has what the run needs, start workers, call them.

- `RAY_ADDRESS` set: join that cluster. Unset: start a local one, on loopback, without a dashboard.
- Preflight: Ray waits for ever for a GPU or core that no node has. Here the run stops in seconds and names what is
  missing.
- The device is what the *cluster* has, not what this process sees: a head node often has no GPU of its own.
- The method folder travels to every node by Ray's runtime environment, its Python files only; `common` is installed.
"""

import math
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# verl warns about every engine that is not installed, transformers that the reward head is new
QUIET = {"PYTHONWARNINGS": "ignore::UserWarning", "VERL_LOGGING_LEVEL": "WARN", "TRANSFORMERS_VERBOSITY": "error"}
QUIET |= {"TOKENIZERS_PARALLELISM": "false"}


class ClusterError(RuntimeError):
    """The cluster cannot run this job. Its text is for the user."""


class TrainingError(RuntimeError):
    """Training went wrong in a way that going on would hide. Its text is for the user."""


def connect(method_folder: Path, nodes: int, workers_per_node: int | None) -> tuple[str, int]:
    """Join or start Ray and return the device ("cuda" or "cpu") and the workers per node.

    Args:
        method_folder: the folder whose Python files the workers import.
        nodes, workers_per_node: what the run asks for, one worker per GPU, or per share of the CPU where there is no
            GPU; None asks for all GPUs of the largest node, or for one worker on CPU.

    Raises:
        ClusterError: there is no cluster, or it does not have it.
    """
    address = os.environ.get("RAY_ADDRESS")
    environment = dict(QUIET)
    if not address:
        environment |= _worker_environment("cuda" if torch.cuda.is_available() else "cpu", workers_per_node or 1)
    # "local" in so many words: without it Ray would look for a cluster that someone once started on this machine
    local = {} if address else {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with tempfile.TemporaryDirectory() as code:
        for file in method_folder.glob("*.py"):
            shutil.copy(file, code)
        try:
            _check_reachable(address or "")
            ray.init(logging_level="warning", runtime_env={"working_dir": code, "env_vars": environment}, **local)
        except OSError as error:
            what = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray could not be started here"
            raise ClusterError(f"{what}: {error}") from error
    os.environ.update(QUIET)
    warnings.filterwarnings("ignore", category=UserWarning)
    device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    # verl asks its platform for the name of Ray's resource; the driver must answer for the cluster, not for itself
    os.environ["VERL_PLATFORM"] = "nvidia" if device == "cuda" else "cpu"
    if workers_per_node is None:
        workers_per_node = int(max(node["Resources"].get("GPU", 0) for node in ray.nodes())) if device == "cuda" else 1
    needed = ("GPU", "CPU") if device == "cuda" else ("CPU",)  # a worker takes one of each
    free = _free_per_node(needed)
    fitting = [node for node, counts in free.items() if min(counts.values()) >= workers_per_node > 0]
    if len(fitting) < nodes:
        found = "; ".join(f"{node}: " + ", ".join(f"{n} {name}" for name, n in c.items()) for node, c in free.items())
        raise ClusterError(
            f"This run asks for {nodes} node(s) with {workers_per_node} free {' and '.join(needed)} each; the cluster "
            f"has free: {found}. Lower NNODES or N_GPUS_PER_NODE, wait for running jobs, or set RAY_ADDRESS to a "
            "larger cluster."
        )
    return device, workers_per_node


def _check_reachable(address: str) -> None:
    """Knock at a `host:port` address; Ray itself would knock for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def disconnect() -> None:
    """Leave the cluster, or stop the local one."""
    ray.shutdown()


def _worker_environment(device: str, workers_per_node: int) -> dict[str, str]:
    """On CPU, share the cores out between the workers; torch would give each of them all cores."""
    if device == "cuda" or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers_per_node))}


def _free_per_node(resources: tuple[str, ...]) -> dict[str, dict[str, int]]:
    free = ray._private.state.available_resources_per_node()
    return {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": {
            name: int(free.get(node["NodeID"], {}).get(name, 0)) for name in resources
        }
        for node in ray.nodes()
        if node["Alive"]
    }


def check_shared_folder(folder: Path, nodes: int) -> None:
    """Make sure that all nodes see `folder`, where every worker writes its shard of a checkpoint.

    Raises:
        ClusterError: naming the nodes that do not see it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if nodes == 1 and not os.environ.get("RAY_ADDRESS"):
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-") as marker:
        sees = ray.remote(num_cpus=0)(os.path.exists)
        blind = [
            node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"]
            and not ray.get(
                sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    marker.name
                )
            )
        ]
    if blind:
        raise ClusterError(
            f"{folder} is not visible on {', '.join(blind)}. Set OUTPUT to a folder that all nodes share."
        )


def start_workers(worker_class: type, model_type: str, loss_fn, config: DictConfig, device: str, workers_per_node: int):
    """Start one verl `TrainingWorker` per GPU or share of the CPU and build the sharded model on them.

    Args:
        worker_class: `TrainingWorker` or a subclass of it.
        model_type: the name under which the method's engine is registered.
        config: sections `model`, `engine` and `optim`, each naming its verl class, and `trainer.nnodes`.

    Returns:
        verl's handle on all workers.

    Raises:
        ClusterError: verl does not run on the device, or the model cannot be built.
    """
    from verl.plugin.platform import get_platform
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.trainer.config import CheckpointConfig
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig

    if get_platform().device_name != device:
        raise ClusterError(
            f"verl runs on {get_platform().device_name!r} where {device!r} is needed. Is reward-recipes installed in "
            "this environment (`pip install -e .`)? It brings verl's CPU platform as a plugin."
        )
    worker_config = TrainingWorkerConfig(
        model_type=model_type,
        model_config=omega_conf_to_dataclass(config.model),
        engine_config=omega_conf_to_dataclass(config.engine),
        optimizer_config=omega_conf_to_dataclass(config.optim),
        checkpoint_config=CheckpointConfig(),
    )
    nodes = config.trainer.nnodes
    # one worker group per bundle; verl's default reserves ten cores per worker
    pool = RayResourcePool([workers_per_node] * nodes, use_gpu=device != "cpu", max_colocate_count=1)
    rendezvous = {}
    if nodes == 1 and not os.environ.get("RAY_ADDRESS"):  # known here, so no process need be started to find it out
        rendezvous = {"master_addr": "127.0.0.1", "master_port": str(_free_port())}
    workers = RayClassWithInitArgs(ray.remote(worker_class), config=worker_config)
    worker_group = RayWorkerGroup(pool, workers, device_name=device, **rendezvous)
    worker_group.set_loss_fn(loss_fn)
    try:
        worker_group.reset()
    except RayTaskError as error:
        raise ClusterError(f"the model could not be built on the workers: {error.cause}") from error
    return worker_group


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def balance(rows: list, workers: int) -> list:
    """Order a batch so that its equal cut over the workers gives each about the same number of `row.tokens`."""
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    parts = get_seqlen_balanced_partitions([row.tokens for row in rows], workers, equal_size=True)
    return [rows[index] for part in parts for index in part]


def make_batch(rows: list, collate: Callable[[list], dict], max_tokens: int, **settings):
    """Make what verl sends to the workers: the collated rows, and what its engine asks for beside the tensors.

    Args:
        max_tokens: tokens per micro-batch.
        settings: verl's switches for this call, `update_lr_scheduler` or `compute_loss`.
    """
    from tensordict.tensorclass import NonTensorData
    from verl.utils import tensordict_utils as tu

    settings |= {
        "use_dynamic_bsz": True,
        "max_token_len_per_gpu": max_tokens,
        "global_batch_size": len(rows),
        "global_token_num": NonTensorData([row.tokens for row in rows]),
    }
    return tu.get_tensordict(collate(rows), settings)


def train_batch(worker_group, batch, rows: list, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """Make one training step and join the workers' metrics of it.

    Returns:
        loss, grad_norm, lr and memory_gb; and the sums that the loss function reports.

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
    sums = {name: Metric.aggregate_dp(value) for name, value in raw.items() if isinstance(value, list)}
    memory = raw["perf/max_memory_allocated_gb"]
    return {"loss": loss, "grad_norm": grad_norm, "lr": raw["lr"], "memory_gb": memory}, sums
