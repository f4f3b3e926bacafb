"""What the parts of gpu_check.py share: how rows are noted, the methods' steps, random weights."""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
VERL = importlib.util.find_spec("verl").submodule_search_locations[0]
os.environ["VERL_CONFIG"] = f"{VERL}/trainer/config"  # as the methods' config.yaml find verl's own
JUDGE = "generative_pointwise"
TINY = "tiny"  # the shape for a machine without a GPU


def note(**row) -> None:
    """Write one row of this part's table, and print it."""
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def join_alone() -> None:
    """Start a group of one process, as each of verl's workers joins one."""
    backend = "cpu:gloo,cuda:nccl" if ON_GPU else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def shape(model: str) -> Path:
    """Return a folder with a model's config and the demo's tokenizer."""
    import memory_table

    return memory_table.save_shape(model)


def step_of(method: str, model: str, tokens: int, lora: int = 0, checkpointing: bool = True):
    """Return the step of a method with its run script's settings, on rows of so many tokens; and its settings.

    Args:
        tokens: of a prompt with its answer.
        checkpointing: which the script leaves open.
    """
    import numpy as np
    from memory_table import settings

    from common.attention import SEGMENT_ATTENTION
    from common.grpo.preflight import set_precision

    judge = method.startswith("generative")
    own = [f"actor_rollout_ref.model.lora_rank={lora}" if judge else f"model.lora_rank={lora}"]
    own += [f"{'actor_rollout_ref.model' if judge else 'model'}.enable_gradient_checkpointing={checkpointing}"]
    engine = "actor_rollout_ref.actor.fsdp_config" if judge else "engine"
    own += [f"{engine}.offload_policy=False", f"{engine}.use_torch_compile={ON_GPU}"]
    if not ON_GPU:
        limit = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu" if judge else "data.max_tokens_per_gpu"
        own += [f"{limit}={4 * tokens}"]
    if judge:
        own += [f"data.max_prompt_length={tokens // 2}", f"data.max_response_length={tokens // 2}"]
        config = settings(method, shape(model), "hf", 1, own)
        config.actor_rollout_ref.model.override_config.attn_implementation = SEGMENT_ATTENTION
        set_precision(config, "bf16")
        policy = importlib.import_module("common.grpo.policy")
        return policy.step_to_count(config, 1, tokens // 2, tokens // 2, True), config
    config = settings(method, shape(model), "hf", 1, own)
    config.model.override_config = {"attn_implementation": SEGMENT_ATTENTION}
    config.engine.mixed_precision = {"param_dtype": "bf16"}
    ids = np.ones(tokens, dtype=np.int32)
    if method == "sft":
        from sft.dataset import Example

        rows = [Example(ids, np.arange(tokens) >= tokens // 2, "")] * 64
    else:
        from bradley_terry.dataset import Pair

        half = ids[: tokens // 2]
        rows = [Pair(half, half, half, 0.0, "")] * 64
    return importlib.import_module(f"{method}.engine").step_to_count(config, 1, rows, True), config


def batch_of_answers(rows: list[tuple], rows_per_micro_batch: int):
    """Return prompts with their answers, pairs of token ids, as verl hands them to the policy."""
    import numpy as np
    from verl.utils import tensordict_utils as tu

    columns = {
        "input_ids": [np.concatenate(row) for row in rows],
        "position_ids": [np.arange(len(prompt) + len(answer)) for prompt, answer in rows],
        "prompts": [prompt for prompt, _ in rows],
        "responses": [answer for _, answer in rows],
        "response_mask": [np.ones(len(answer)) for _, answer in rows],
        "loss_mask": [np.ones(len(answer)) for _, answer in rows],
    }
    tensors = {
        name: torch.nested.as_nested_tensor([torch.as_tensor(row).long() for row in values], layout=torch.jagged)
        for name, values in columns.items()
    }
    settings = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": rows_per_micro_batch}
    settings |= {"global_batch_size": len(rows), "temperature": 1.0, "calculate_entropy": False}
    return tu.get_tensordict(tensors, settings)


def of_answers(output: dict, rows: list[tuple]) -> torch.Tensor:
    """Return the log-probabilities of the answers' tokens, (tokens,), from what the policy puts out."""
    found = zip(output["log_probs"].unbind(), rows)
    return torch.cat([log_probs[len(prompt) - 1 : -1] for log_probs, (prompt, _) in found])


def with_random_weights(engine_class: type) -> type:
    """Return the method's engine with weights made on the device, so that 8B need neither disk nor download."""

    class WithRandomWeights(engine_class):
        def _load_weights(self, config, options: dict):
            with torch.device(DEVICE):
                return self.auto_class.from_config(config, **options)

        def _spread_weights(self, *arguments) -> None:
            """They are there."""

    return WithRandomWeights


def cases() -> list[tuple[str, str, int, bool, tuple[int, ...]]]:
    """Return what to measure: method, model, rank of the adapters, checkpointing, and tokens of a text.

    A rank of 0: all weights are trained. Checkpointing is as a plan chose it for a card of 80 GB.
    """
    lengths = (512, 1024, 4096)
    if not ON_GPU:
        return [(method, TINY, lora, True, (64,)) for method, lora in (("bradley_terry", 0), ("sft", 8), (JUDGE, 0))]
    of_method = {"bradley_terry": lengths, "sft": lengths, JUDGE: (1024,)}
    of_large, of_small = (
        [(method, model, 0, False, lengths) for method, lengths in of_method.items()] for model in ("1.7B", "0.6B")
    )
    by_adapters = [(method, "8B", 16, True, (1024,)) for method in ("bradley_terry", "sft")]
    return of_large + by_adapters + of_small


def name_of(method: str, model: str, lora: int, checkpointing: bool, tokens: int) -> str:
    words = [f"{method} {model}", *[f"LoRA {lora}"] * bool(lora), *["checkpointing"] * checkpointing]
    return ", ".join([*words, f"{tokens} tokens"])
