"""What GRPO adds to a plan (`common/plan.py`): answers are made on the same GPUs.

If vLLM answers, it takes a share of the card, and the trainer waits: what of it stays there is what `param_offload` and
`optimizer_offload` do not move to host memory. While the trainer works, vLLM sleeps; its CUDA graphs and context stay.
In between the weights go over in buckets. If the policy itself answers, all its weights are gathered at once.
"""

from collections.abc import Callable

from omegaconf import DictConfig
from transformers import PreTrainedConfig

from common.grpo.answering import IN_PROCESS
from common.grpo.preflight import FP32
from common.plan import GIB, OUTSIDE, UNUSABLE, Keys, Method, Phase, training_phases

ENGINE = "common.grpo.policy"
MODEL = "actor_rollout_ref.model"
KEYS = Keys(
    checkpointing=f"{MODEL}.enable_gradient_checkpointing",
    compiled="actor_rollout_ref.actor.fsdp_config.use_torch_compile",
    offload="actor_rollout_ref.actor.fsdp_config.offload_policy",
    tokens="actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    lora=f"{MODEL}.lora_rank",
    batched="actor_rollout_ref.rollout.max_num_batched_tokens",
    share="actor_rollout_ref.rollout.gpu_memory_utilization",
    split="actor_rollout_ref.rollout.tensor_model_parallel_size",
)
SERVER = int(2.0 * GIB)  # assumed: vLLM's CUDA graphs and context, beside its share and while it sleeps
HALF, FULL = 2, 4  # bytes of a number in bf16 and fp32


def of_policy(config: DictConfig, model: PreTrainedConfig, prompts: list[int], packed: bool) -> Method:
    """Return what a plan needs to know of a judge's run.

    Args:
        model: the model's config.
        prompts: tokens of each training prompt.
        packed: whether sequences are packed into rows.
    """
    least = config.data.max_prompt_length + config.data.max_response_length
    phases = _phases_with(model.get_text_config())
    return Method(ENGINE, (min(prompts), max(prompts), packed), phases, KEYS, least, packed)


def _phases_with(model: PreTrainedConfig) -> Callable:
    def phases(counted, config: DictConfig, workers: int, card: int) -> list[Phase]:
        policy = config.actor_rollout_ref
        by_server = policy.rollout.name != IN_PROCESS
        offload = policy.actor.fsdp_config.offload_policy is True
        training = training_phases(counted, offload, {"vLLM, asleep": SERVER} if by_server else None)
        if not by_server:
            return [*training, _answering_itself(counted, config, model)]
        return [*training, _handing_over(counted, policy), _answering_by_server(counted, config, model, card)]

    return phases


def _bytes_of_number(policy: DictConfig) -> int:
    """Return the bytes of a weight while answers are made."""
    served = policy.rollout.dtype if policy.rollout.name != IN_PROCESS else None
    return FULL if (served or policy.actor.fsdp_config.mixed_precision.param_dtype) in FP32 else HALF


def _waiting(counted, policy: DictConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Return the parts of the trainer that stay on the card while it does not train, and those in host memory."""
    settings = policy.actor.fsdp_config
    weights, averages = {"weights, fp32": counted.weights}, {"Adam's two averages, fp32": 2 * counted.trained}
    if settings.offload_policy is True:
        return {}, weights | averages
    moved = (weights if settings.param_offload else {}) | (averages if settings.optimizer_offload else {})
    return {name: size for name, size in (weights | averages).items() if name not in moved}, moved


def _answering_itself(counted, config: DictConfig, model: PreTrainedConfig) -> Phase:
    policy, data = config.actor_rollout_ref, config.data
    tokens, size = policy.rollout.max_num_batched_tokens, _bytes_of_number(policy)
    rows = max(1, tokens // data.max_response_length)  # the most: their prompts are kept once, and may be short
    kept, _ = _waiting(counted, policy)
    parts = kept | {
        "all weights, gathered": size * counted.parameters,
        "keys and values": tokens * _keys_and_values(model, size),
        # of each row the logits, their log-probabilities and their exponentials in fp32, and the sums in fp64
        "activations, logits": _activations(model, tokens, size) + 5 * FULL * rows * model.vocab_size,
    }
    return Phase("answering by the policy", parts, ("offload", "batched", "gpus"))


def _handing_over(counted, policy: DictConfig) -> Phase:
    """The adapter is gathered from the whole model on the card; without one, each weight by itself."""
    parts, _ = _waiting(counted, policy)
    if policy.model.lora_rank and policy.actor.fsdp_config.offload_policy is not True:
        parts = {"weights, fp32": counted.weights} | parts
    parts["vLLM's weights"] = _bytes_of_number(policy) * counted.parameters / policy.rollout.tensor_model_parallel_size
    parts["the largest weight, whole"] = counted.largest
    parts["bucket"] = policy.rollout.checkpoint_engine.update_weights_bucket_megabytes * 2**20
    parts["vLLM, beside its share"] = SERVER
    return Phase("handing weights to vLLM", parts, ("split", "offload", "gpus"))


def _answering_by_server(counted, config: DictConfig, model: PreTrainedConfig, card: int) -> Phase:
    rollout, data = config.actor_rollout_ref.rollout, config.data
    parts, moved = _waiting(counted, config.actor_rollout_ref)
    split, size = rollout.tensor_model_parallel_size, _bytes_of_number(config.actor_rollout_ref)
    weights = size * counted.parameters / split
    working = (
        _activations(model, rollout.max_num_batched_tokens, size) + 3 * FULL * rollout.max_num_seqs * model.vocab_size
    )
    of_answer = _keys_and_values(model, size) * (data.max_prompt_length + data.max_response_length) / split
    share = rollout.gpu_memory_utilization * card
    room = share - weights - working / split
    fault = ""
    if room < of_answer:
        fault = (
            f"{KEYS.share}={rollout.gpu_memory_utilization}: vLLM's share is {share / GIB:.1f} GiB. Its weights take "
            f"{weights / GIB:.1f}, its work {working / split / GIB:.1f}, and one answer of the greatest length "
            f"{of_answer / GIB:.2f}."
        )
    free = 1 - UNUSABLE - (sum(parts.values()) + SERVER + OUTSIDE) / card
    least = (weights + working / split + of_answer) / card
    room = max(0, room)
    parts |= {"vLLM's weights and work": share - room, "vLLM's keys and values": room, "vLLM, beside its share": SERVER}
    fitting = int(100 * min(free, 0.9)) / 100
    return Phase(
        "answering by vLLM",
        parts,
        ("share", "split", "offload", "gpus"),
        host=sum(moved.values()),
        fault=fault,
        note=f"vLLM holds {room / of_answer:.0f} answers of the greatest length at a time",
        share=fitting if fitting >= least else 0,
    )


def _keys_and_values(model: PreTrainedConfig, size: int) -> int:
    """Return the bytes of a token's keys and values in all layers, `size` for each number."""
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    return 2 * size * model.num_hidden_layers * heads * width


def _activations(model: PreTrainedConfig, tokens: int, size: int) -> int:
    """Return about how many bytes one layer's forward takes: its widest moment is the MLP."""
    wide = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    return size * tokens * (3 * wide + 4 * model.hidden_size)
