"""What compiled layers keep for the backward pass, as a share of what they keep as they are: `common.memory.COMPILED`.

    python tests/benchmarks/compiled_memory.py                       # bf16; minutes on one core
    python tests/benchmarks/compiled_memory.py --precision fp32

For a small model of each family the bytes are summed that autograd saves in one forward pass, weights left out. Layers
are compiled up to the point at which torch decides what to keep and what to compute again; no kernels are made. The
sizes are small, and the share depends on their proportions, so these are like those of real models.
"""

import argparse

import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from common.attention import SEGMENT_ATTENTION, Segments, segment_attention

TOKENS = 480  # no size of a weight
SIZE = {"hidden_size": 512, "num_hidden_layers": 2, "vocab_size": 256, "num_attention_heads": 8}
SIZE |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "Qwen 3, as 1.7B": Qwen3Config(**SIZE | HEADS, head_dim=128, intermediate_size=1536),
    "Qwen 3, as 0.6B": Qwen3Config(**SIZE | {"num_key_value_heads": 4}, head_dim=128, intermediate_size=1536),
    "Llama": LlamaConfig(**SIZE, intermediate_size=1792),
    "Mistral": MistralConfig(**SIZE, intermediate_size=1792),
    "Qwen 2": Qwen2Config(**SIZE, intermediate_size=3072),
    "Gemma 3": Gemma3TextConfig(**SIZE | HEADS, head_dim=256, intermediate_size=2048),
    "OLMo 2": Olmo2Config(**SIZE | ENDS, intermediate_size=1792),
    "GPT-NeoX": GPTNeoXConfig(**SIZE | ENDS, intermediate_size=2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the computation")
    options = parser.parse_args()
    AttentionInterface.register(SEGMENT_ATTENTION, torch.compiler.disable(segment_attention))
    print("| family | bytes per token, layer and width | compiled | share |\n|---|---|---|---|")
    for name, config in FAMILIES.items():
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.set_attn_implementation(SEGMENT_ATTENTION)
        eager = kept_bytes(model, options.precision)
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = torch.compile(layer.forward, dynamic=True, backend="aot_eager_decomp_partition")
        compiled = kept_bytes(model, options.precision)
        per = TOKENS * config.num_hidden_layers * config.hidden_size
        print(f"| {name} | {eager / per:.1f} | {compiled / per:.1f} | {compiled / eager:.2f} |", flush=True)


def kept_bytes(model: PreTrainedModel, precision: str) -> int:
    """Return the bytes of all storages that autograd saves in a forward pass over two packed texts."""
    half, device = TOKENS // 2, torch.device("cpu")
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no other takes its address
        return tensor

    # under autocast each weight is also saved in bf16; FSDP2 frees those that it has gathered
    shapes = {weight.shape for weight in model.parameters()} | {weight.t().shape for weight in model.parameters()}
    row = {
        "input_ids": torch.arange(TOKENS)[None] % model.config.vocab_size,
        "position_ids": torch.arange(half).repeat(2)[None],
        "segments": Segments([(0, half, 0, 0), (half, TOKENS, half, half)], device),
        "attention_mask": None,
        "use_cache": False,
    }
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.base_model(**row)
    return sum(size for size, _ in saved.values())


if __name__ == "__main__":
    main()
