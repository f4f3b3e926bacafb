"""From a script to a cluster: join or start Ray, and check that it has what the run needs.

- `RAY_ADDRESS` set: join that cluster, with this machine's token if it asks for one. Not set: start a local one, on
  loopback, without a dashboard, with a token of its own.
- Ray waits for ever for a GPU or core that no node has. Here the run stops in seconds and says what is missing.
- Ray goes on counting a machine that died, for up to a minute. A run that is started again waits until it does not.
- The device is what the *cluster* has, not what this process sees: a head node often has no GPU. Each node is asked
  whether torch can use the GPUs that Ray counts there; a driver or a torch that does not fit would train on the CPU.
- The method folder travels to every node by Ray's runtime environment, as one package, its code and
  small text files; `common` is installed there.
"""

import os
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import grpc
import psutil
import ray
import torch
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common import failures
from common.attention import AMPERE
from common.network import settings_of_the_run

# for this process and every worker, unless the user has set them
DEFAULTS = {
    # quiet: verl warns about every engine that is not installed, transformers that the reward head is new
    "PYTHONWARNINGS": "ignore::UserWarning",
    "VERL_LOGGING_LEVEL": "WARN",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_LOGS": "-torch.fx",  # it warns that a function of its own will be renamed
    "TOKENIZERS_PARALLELISM": "false",
    "TQ_LOGGING_LEVEL": "WARNING",  # verl's queue says every five minutes how many calls it had
    "VLLM_LOGGING_LEVEL": "WARN",
    "NCCL_DEBUG": "WARN",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # verl's queue waits so in verl's workers
    "VLLM_DISABLE_COMPILE_CACHE": "1",  # as verl sets it when it starts Ray itself: the cache was found corrupt
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # on a CPU: servers and workers take turns on the same cores
    "TQ_NUM_THREADS": str(min(8, os.cpu_count())),  # verl's queue would start 8, and say so at every call
}
# how the notes begin that verl prints for its developers
VERL_NOTES = (
    *("Total steps: ", "Before FSDP, ", "After FSDP, ", "colocated worker base class ", "Checkpoint tracker file "),
    *("Creating file logger at ", "Saving tensorboard log to ", "Using dataset class: ", "dataset len: "),
    *("Initial validation metrics: ", "Final validation metrics: ", "Dumped generations to "),
    *("Warning: Failed to set NUMA affinity: ", "LLMServerManager: ", "[validate_config] All "),
    # what was saved, and where a run resumes, is said in lines of ours
    *("Found checkpoint: ", "Found latest checkpoint: "),
    *("Saving checkpoint to: ", "Saved dataloader state to: ", "Updated checkpoint tracker: "),
)
ENVIRONMENT = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()} | {"TRANSFER_QUEUE_ENABLE": "1"}

# When a large tensor is freed, glibc gives its memory back, and the kernel fills new pages with zeros for the next one.
# These tell glibc to keep it. With 135 M parameters on two cores, steps then take up to a tenth less time
# (tests/benchmarks/share_of_peak.py). Other C libraries do not read them
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # mappings; bytes
# How long a thread of GNU's OpenMP, which torch's wheels for Linux hold, waits for work before it sleeps: 1,000 turns,
# some 10 us by its own estimate. The usual 300,000 keep the core from other processes. On two cores the demo of
# `bradley_terry` took 68 to 73 s, without any wait 82 to 86 s. Two such runs at once took 113 to 115 s each; without
# any wait 105 to 109 s; with 10,000 turns 280 s. PASSIVE: where a process has more threads than cores, none waits
WAIT_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

TRAVELLING = (".py", ".txt", ".md", ".jinja", ".json", ".yaml")  # files of a method folder that workers get
LOOPBACK = "127.0.0.1"
LARGEST_TRAVELLING = 2**20  # bytes
SECONDS_TO_BE_COUNTED_OUT = 120  # of a dead machine, by Ray; its settings make it some 15 to 60
SECONDS_TO_ANSWER = 180  # for a node to start a process that imports torch, from a slow disk too
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # the cheapest question to Ray's head
ALL_WITH_TOKEN = "`export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=…`, in the shell of every `ray start` and of this command"


class ClusterError(RuntimeError):
    """The cluster cannot run this job. Its text is for the user."""


class TrainingError(RuntimeError):
    """Training went wrong, and going on would hide it. Its text is for the user."""


class Machines(NamedTuple):
    """What a run has to compute on."""

    device: str  # cuda or cpu
    workers_per_node: int
    precision: str  # to compute in: bf16, or fp32 where there is no bf16
    card: int | None = None  # bytes of the smallest GPU
    host: int | None = None  # bytes of memory that are free for each GPU, where they are fewest
    compiles: bool = True  # whether torch can compile layers for the GPUs


def connect(
    package: str,
    nodes: int,
    workers_per_node: int | None,
    cores_per_worker: int = 1,
    cores_beside: int = 0,
    servers_on_cpu: bool = False,
) -> Machines:
    """Join or start Ray; return what it has to compute on.

    Waits until Ray has noticed which machines are dead, up to two minutes after one died.

    Args:
        package: the method folder's package, which workers import: `__package__` of the caller.
        nodes, workers_per_node: what the run asks for, one worker per GPU, or per share of the CPU if there is no GPU.
            None asks for all GPUs of the largest node, or for one worker on CPU.
        cores_per_worker, cores_beside: cores that Ray must give to each worker, and in all to processes beside them.
            A local Ray may have more processes than the machine has cores.
        servers_on_cpu: this machine has no GPU, and verl, which counts GPUs, shall start vLLM's servers on it.

    Raises:
        ClusterError: no cluster answers, it has too little, or a machine of it does not answer.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        _check_reachable(address)
        _start_ray(package, {})
        _wait_for_the_dead()
    else:
        _start_ray(
            package,
            _settings_on_cpu(workers_per_node or 1) | {"VLLM_HOST_IP": LOOPBACK},
            **_local_ray(workers_per_node, cores_per_worker, cores_beside, servers_on_cpu),
        )
    os.environ.update(ENVIRONMENT)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", "Warning: Function 'verl", FutureWarning)

    device = "cuda" if ray.cluster_resources().get("GPU", 0) and not servers_on_cpu else "cpu"
    # verl asks its platform for the name of Ray's resource; this process must answer for the cluster, not for itself
    os.environ["VERL_PLATFORM"] = "nvidia" if device == "cuda" else "cpu"
    if workers_per_node is None:
        workers_per_node = max(gpus_of(node) for node in ray.nodes()) if device == "cuda" else 1
    needed = {"GPU": workers_per_node} if device == "cuda" else {}
    _check_room(nodes, needed | {"CPU": workers_per_node * cores_per_worker}, cores_beside)
    if device == "cpu":
        return Machines(device, workers_per_node, "fp32")
    capability, card, host, compiles = _check_gpus(workers_per_node)
    return Machines(device, workers_per_node, _precision(capability), card, host // workers_per_node, compiles)


def mute(*modules: ModuleType) -> None:
    """Keep VERL_NOTES off the console if these modules of verl print them. All else that they print is shown."""

    def show(own: Callable, note: object = "", *rest: object, **settings) -> None:
        if not str(note).startswith(VERL_NOTES):
            own(note, *rest, **settings)

    for module in modules:
        module.print = partial(show, print)
        if hasattr(module, "pprint"):
            module.pprint = partial(show, module.pprint)


def check_counts(nodes: int, workers_per_node: int | None) -> None:
    """Raise `ClusterError` if NNODES or N_GPUS_PER_NODE is no whole number of at least 1. A run begins with this."""
    for name, value in (("NNODES", nodes), ("N_GPUS_PER_NODE", workers_per_node)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ClusterError(f"{name}={value}: expected a whole number of at least 1")


def _precision(capability: tuple[int, int]) -> str:
    """Return what to compute in, given the lowest compute capability of the GPUs."""
    if capability >= AMPERE:
        return "bf16"
    print("GPUs before Ampere have no bf16: computing in fp32, without the flash kernel, which is slower and exact")
    return "fp32"


def _check_reachable(address: str) -> None:
    """Ask a cluster for a sign of life, and take this machine's token if it wants one. Ray would try for minutes."""
    if "://" in address:
        raise ClusterError(f"RAY_ADDRESS={address}: expected the address of the cluster's head, host:6379, or auto")
    if address == "local":
        return
    try:
        found = canonicalize_bootstrap_address(address)  # "auto" too
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
    if _asks_for_token(found):
        _take_token(found)


def _asks_for_token(address: str) -> bool:
    """Return whether the head refuses this process as it is."""
    try:
        create_gcs_channel(address).unary_unary(CLUSTER_ID)(b"", timeout=10)
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


def _take_token(address: str) -> None:
    """Join by the token that Ray finds on this machine. Ray itself does so for RAY_ADDRESS=auto only."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        found = f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} forbids to send one"
    elif not maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
        found = "this machine has none"
    elif _asks_for_token(address):
        places = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        found = f"this machine's, of {(places or ['~/.ray/auth_token'])[0]}, is another one"
    else:
        return
    raise ClusterError(
        f"the Ray cluster at {address} asks for a token, and {found}. `ray get-auth-token` prints it on the machine "
        f"where `ray start --head` ran. Then give {ALL_WITH_TOKEN}. (A token is asked for if the head has one in "
        "~/.ray/auth_token, too. For a cluster without, `export RAY_AUTH_MODE=disabled` in all these shells instead.)"
    )


def _wait_for_the_dead() -> None:
    """Wait until Ray counts only machines that answer: a worker sent to a dead one never starts.

    Raises:
        ClusterError: naming those that Ray still counts after `SECONDS_TO_BE_COUNTED_OUT`.
    """
    end, said = time.monotonic() + SECONDS_TO_BE_COUNTED_OUT, ""
    while dead := _dead_nodes():
        found = "; ".join(f"{name} {why}" for name, why in dead.items())
        if time.monotonic() > end:
            raise ClusterError(
                f"Ray counts machines that seem to be dead: {found}. If one is running, a firewall may block its "
                "ports: all machines of a cluster must reach each other. If not, restart the cluster without it."
            )
        if found != said:
            print(f"Ray counts machines that seem to be dead: {found}. Waiting until it notices", flush=True)
            said = found
        time.sleep(1)


def _dead_nodes() -> dict[str, str]:
    """Return the nodes that Ray takes for alive and that are not, by name, with what shows it."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    places = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in alive]
    with ThreadPoolExecutor(max_workers=64) as pool:
        answering = list(pool.map(failures.answers, alive))
    found = {}
    for node, place, answers in zip(alive, places, answering):
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        if not answers:
            found[name] = "does not answer"
        elif places.count(place) > 1:  # started again on the same port; which of the two is dead is not known
            found[name] = "is counted twice"
    return found


def _local_ray(
    workers_per_node: int | None, cores_per_worker: int, cores_beside: int, servers_on_cpu: bool = False
) -> dict:
    # "local": without this word Ray would look for a cluster that someone once started on this machine
    settings = {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK}
    # no processes ahead of any work: our workers have an environment of their own, and could not run in them
    settings["_system_config"] = {"prestart_worker_first_driver": False}
    if servers_on_cpu:
        settings["num_gpus"] = workers_per_node or 1  # of no hardware: verl asks Ray for one GPU for each worker
    # Without a token Ray writes one to ~/.ray/auth_token, and from then on every `ray start --head` asks for it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if cores_beside:
        workers = min(workers_per_node or max(1, torch.cuda.device_count()), os.cpu_count())
        settings["num_cpus"] = max(os.cpu_count(), workers * cores_per_worker + cores_beside)
    return settings


def _settings_on_cpu(workers: int) -> dict[str, str]:
    """Return environment variables for workers of a machine without GPUs: to keep freed memory, to share the cores.

    They come in groups. If the user has set one of a group, the whole group is left out.
    """
    if torch.cuda.is_available():
        return {}
    threads = max(1, torch.get_num_threads() // workers)  # torch would give every worker all cores
    settings = {}
    for group in (KEEP_MEMORY, WAIT_BRIEFLY, {"OMP_NUM_THREADS": str(threads)}):
        if not group.keys() & os.environ.keys():
            settings |= group
    return settings


def _start_ray(package: str, environment: dict[str, str], **settings) -> None:
    folder = Path(sys.modules[package].__file__).parent
    with tempfile.TemporaryDirectory() as code:
        _copy_small_files(folder, Path(code) / package)
        travels = {"working_dir": code, "env_vars": ENVIRONMENT | environment | settings_of_the_run()}
        try:
            ray.init(logging_level="warning", runtime_env=travels, **settings)
        except OSError as error:
            address = os.environ.get("RAY_ADDRESS")
            what = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray could not be started here"
            raise ClusterError(f"{what}: {error}") from error


def _copy_small_files(folder: Path, copy: Path) -> None:
    """Copy a package without its outputs and data: its Python files, and text files such as a rubric beside them."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir() and (path / "__init__.py").is_file():
            _copy_small_files(path, copy / path.name)
        elif path.is_file() and path.suffix in TRAVELLING and path.stat().st_size <= LARGEST_TRAVELLING:
            shutil.copy(path, copy)


def gpus_of(node: dict) -> int:
    """Return how many GPUs one of `ray.nodes()` has."""
    return int(node["Resources"].get("GPU", 0))


def _check_room(nodes: int, needed: dict[str, int], cores_beside: int) -> None:
    """Raise `ClusterError` if fewer than `nodes` nodes have free what each needs, or too few cores are free in all."""
    free_of = ray._private.state.available_resources_per_node()
    free = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": {
            name: int(free_of.get(node["NodeID"], {}).get(name, 0)) for name in needed
        }
        for node in ray.nodes()
        if node["Alive"]
    }
    fitting = [node for node, counts in free.items() if all(counts[name] >= needed[name] > 0 for name in needed)]
    cores = sum(counts["CPU"] for counts in free.values())
    if len(fitting) >= nodes and cores >= nodes * needed["CPU"] + cores_beside:
        return
    found = "; ".join(f"{node}: " + ", ".join(f"{n} {name}" for name, n in c.items()) for node, c in free.items())
    wanted = " and ".join(f"{count} free {name}" for name, count in needed.items())
    beside = f", and {cores_beside} CPU beside them" if cores_beside else ""
    missing = ""
    if len(free) < nodes and os.environ.get("RAY_ADDRESS"):
        missing = f" If a machine is missing: its `ray start` says why. If that is the token, give {ALL_WITH_TOKEN}."
    raise ClusterError(
        f"This run asks for {nodes} node(s) with {wanted} each{beside}; the cluster has free: {found}. Lower NNODES or "
        f"N_GPUS_PER_NODE, wait for running jobs, or set RAY_ADDRESS to a larger cluster.{missing}"
    )


def pick_nodes(count: int, needed: dict[str, int]) -> list[str]:
    """Return the addresses of `count` nodes with enough free of each resource, the freest first.

    Raises:
        ClusterError: others have taken it since `connect`.
    """
    free_of = ray._private.state.available_resources_per_node()
    room_of = {}
    for node in ray.nodes():
        if free := free_of.get(node["NodeID"]):
            room = min(free.get(name, 0) / share for name, share in needed.items())
            room_of[node["NodeID"]] = (room, node["NodeManagerAddress"])
    fitting = [address for room, address in sorted(room_of.values(), reverse=True) if room >= 1]
    if len(fitting) < count:
        raise ClusterError(
            f"{count} node(s) with {needed} free each are needed, and {len(fitting)} are left. Wait for running jobs."
        )
    return fitting[:count]


def _check_gpus(workers_per_node: int) -> tuple[tuple[int, int], int, int, bool]:
    """Return the lowest compute capability of the nodes' GPUs, the bytes of the smallest, and the least free memory.

    And whether `can_compile` on all nodes.

    Raises:
        ClusterError: torch cannot use the GPUs that Ray counts on a node.
    """
    ask = ray.remote(num_cpus=0, num_gpus=workers_per_node)(_look_around)
    free_of = ray._private.state.available_resources_per_node()
    nodes = [node for node in ray.nodes() if free_of.get(node["NodeID"], {}).get("GPU", 0) >= workers_per_node]
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [ask.options(scheduling_strategy=place).remote() for place in there]
    unusable, cards, free, compiles = [], [], [], True
    for node, answer in zip(nodes, answers):
        try:
            found, said, available, compiler = ray.get(answer, timeout=SECONDS_TO_ANSWER)
        except GetTimeoutError as error:
            raise ClusterError(
                f"{node['NodeManagerAddress']} did not start a process within {SECONDS_TO_ANSWER} s. Look at `ray "
                "status` and at /tmp/ray/session_latest/logs there."
            ) from error
        cards += found
        free.append(available)
        compiles = compiles and compiler
        if len(found) < workers_per_node:
            unusable.append(f"{node['NodeManagerAddress']}: Ray reports {gpus_of(node)} GPU, {said}")
    if unusable:
        raise ClusterError(
            f"torch cannot use a GPU that Ray reports. {'; '.join(unusable)}. Install there a torch that fits the "
            'driver (`pip install -e ".[gpu]"`). Or train on the CPU: `export CUDA_VISIBLE_DEVICES=` before this '
            "command, or before `ray start`."
        )
    capabilities, sizes = zip(*cards)
    return min(capabilities), min(sizes), min(free), compiles


def _look_around() -> tuple[list[tuple[tuple[int, int], int]], str, int, bool]:
    """Return what `_find_by_torch` does, the bytes of this machine's memory that are free, and `can_compile`."""
    return *_find_by_torch(), psutil.virtual_memory().available, can_compile()


def can_compile() -> bool:
    """Return whether this machine has what Triton, by which torch compiles for GPUs, needs to start its kernels.

    This is a C compiler, CC if that is set, and Python's headers (`triton/runtime/build.py`).
    """
    wanted = os.environ.get("CC")
    compiler = shutil.which(wanted) if wanted else shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file()


def _find_by_torch() -> tuple[list[tuple[tuple[int, int], int]], str]:
    """Return the compute capability and the bytes of each GPU that torch can use in this process, and what it says."""
    about = f"torch {torch.__version__}"
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        for index in range(count):
            torch.zeros(1, device=f"cuda:{index}")
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA; a driver too old, a GPU that does not work
        return [], f"{about} says {str(error).splitlines()[0]!r}"
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    return [((card.major, card.minor), card.total_memory) for card in cards], f"{about} finds {count}"


def disconnect() -> None:
    """Leave the cluster, or stop the local one."""
    ray.shutdown()


def check_shared_folder(folder: Path, nodes: int) -> None:
    """Make sure that all nodes see `folder`, where every worker writes its shard of a checkpoint.

    Raises:
        ClusterError: naming the nodes that do not see it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if nodes == 1 and not os.environ.get("RAY_ADDRESS"):
        return
    exists = ray.remote(num_cpus=0)(os.path.exists)
    blind = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-") as marker:
        for node in filter(itemgetter("Alive"), ray.nodes()):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(exists.options(scheduling_strategy=there).remote(marker.name)):
                blind.append(node["NodeManagerAddress"])
    if blind:
        raise ClusterError(
            f"{folder} is not visible on {', '.join(blind)}. Set OUTPUT to a folder that all nodes share."
        )


def check_platform(device: str) -> None:
    """Raise `ClusterError` if verl does not run on the device: it says nothing if one of its plugins fails to load."""
    from verl.plugin.platform import get_platform

    if get_platform().device_name != device:
        raise ClusterError(
            f"verl runs on {get_platform().device_name!r}, but {device!r} is needed. Is reward-recipes installed in "
            "this environment (`pip install -e .`)? It brings verl's CPU platform as a plugin."
        )
