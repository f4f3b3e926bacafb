"""From a script to running workers: join or start Ray, check that it has what the run needs, start workers, call them.

- `RAY_ADDRESS` set: join that cluster. Unset: start a local one, on loopback, without a dashboard.
- Preflight: Ray waits for ever for a GPU or core that no node has. Here the run stops in seconds and names what is
  missing.
- The device is what the *cluster* has, not what this process sees: a head node often has no GPU of its own.
- The method folder travels to every node by Ray's runtime environment, its Python files only; `common` is installed.
"""

import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# verl warns about every engine that is not installed, transformers that the reward head is new
QUIET = {"PYTHONWARNINGS": "ignore::UserWarning", "VERL_LOGGING_LEVEL": "WARN", "TRANSFORMERS_VERBOSITY": "error"}
QUIET |= {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "WARN", "NCCL_DEBUG": "WARN"}
# as verl sets them where it starts Ray itself: a compile cache that was found corrupt, and adapters that change
SERVERS = {"TQ_NUM_THREADS": str(min(8, os.cpu_count()))}  # verl's queue would start 8, and say so at every call
SERVERS |= {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "TRANSFER_QUEUE_ENABLE": "1"}


class ClusterError(RuntimeError):
    """The cluster cannot run this job. Its text is for the user."""


class TrainingError(RuntimeError):
    """Training went wrong in a way that going on would hide. Its text is for the user."""


def connect(
    method_folder: Path, nodes: int, workers_per_node: int | None, cores_per_worker: int = 1, cores_beside: int = 0
) -> tuple[str, int]:
    """Join or start Ray and return the device ("cuda" or "cpu") and the workers per node.

    Args:
        method_folder: the folder whose Python files the workers import.
        nodes, workers_per_node: what the run asks for, one worker per GPU, or per share of the CPU where there is no
            GPU; None asks for all GPUs of the largest node, or for one worker on CPU.
        cores_per_worker, cores_beside: what Ray must grant to each worker, and in all to processes beside them. On a
            machine of its own the run may have more processes than the machine has cores.

    Raises:
        ClusterError: there is no cluster, or it does not have it.
    """
    address = os.environ.get("RAY_ADDRESS")
    environment = QUIET | SERVERS
    if not address:
        environment |= _worker_environment("cuda" if torch.cuda.is_available() else "cpu", workers_per_node or 1)
    # "local" in so many words: without it Ray would look for a cluster that someone once started on this machine
    local = {} if address else {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if not address and cores_beside:
        workers = min(workers_per_node or max(1, torch.cuda.device_count()), os.cpu_count())
        local["num_cpus"] = max(os.cpu_count(), workers * cores_per_worker + cores_beside)
    with tempfile.TemporaryDirectory() as code:
        for file in method_folder.glob("*.py"):
            shutil.copy(file, code)
        try:
            _check_reachable(address or "")
            ray.init(logging_level="warning", runtime_env={"working_dir": code, "env_vars": environment}, **local)
        except OSError as error:
            what = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray could not be started here"
            raise ClusterError(f"{what}: {error}") from error
    os.environ.update(QUIET | SERVERS)
    warnings.filterwarnings("ignore", category=UserWarning)
    device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    # verl asks its platform for the name of Ray's resource; the driver must answer for the cluster, not for itself
    os.environ["VERL_PLATFORM"] = "nvidia" if device == "cuda" else "cpu"
    if workers_per_node is None:
        workers_per_node = int(max(node["Resources"].get("GPU", 0) for node in ray.nodes())) if device == "cuda" else 1
    needed = {"GPU": workers_per_node} if device == "cuda" else {}
    needed["CPU"] = workers_per_node * cores_per_worker
    free = _free_per_node(needed)
    fitting = [node for node, counts in free.items() if all(counts[name] >= n > 0 for name, n in needed.items())]
    cores, cores_needed = sum(counts["CPU"] for counts in free.values()), nodes * needed["CPU"] + cores_beside
    if len(fitting) < nodes or cores < cores_needed:
        found = "; ".join(f"{node}: " + ", ".join(f"{n} {name}" for name, n in c.items()) for node, c in free.items())
        wanted = " and ".join(f"{n} free {name}" for name, n in needed.items())
        beside = f", and {cores_beside} CPU beside them" if cores_beside else ""
        raise ClusterError(
            f"This run asks for {nodes} node(s) with {wanted} each{beside}; the cluster has free: {found}. Lower "
            "NNODES or N_GPUS_PER_NODE, wait for running jobs, or set RAY_ADDRESS to a larger cluster."
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
    threads = str(max(1, torch.get_num_threads() // workers_per_node))
    # a thread that waits sleeps; spinning, as is usual, it keeps the core from other processes: six times slower
    return {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}


def _free_per_node(resources: Iterable[str]) -> dict[str, dict[str, int]]:
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


def check_platform(device: str) -> None:
    """Make sure that verl runs on the device; it says nothing where a plugin of its fails to load.

    Raises:
        ClusterError: it does not.
    """
    from verl.plugin.platform import get_platform

    if get_platform().device_name != device:
        raise ClusterError(
            f"verl runs on {get_platform().device_name!r} where {device!r} is needed. Is reward-recipes installed in "
            "this environment (`pip install -e .`)? It brings verl's CPU platform as a plugin."
        )
