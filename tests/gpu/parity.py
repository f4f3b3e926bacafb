"""Part of gpu_check.py: our packed engines against transformers, text by text, on the device.

The truth is transformers' model in fp32 with its textbook attention. In fp32 we must be as close to it as rounding lets
us. In bf16, with the flash kernel, we must be about as close as transformers itself is in bf16. Models have random
weights in the shape of their family; what is compared are rewards (Bradley-Terry), losses of tokens (SFT) and
log-probabilities of answers (GRPO), and the gradients of a fixed weighted sum of them.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from shared import DEVICE, JUDGE, ON_GPU, batch_of_answers, join_alone, note, of_answers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from verl.trainer.config import CheckpointConfig
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

import bradley_terry.dataset
import sft.dataset
from bradley_terry.engine import PairEngine
from common.demo.tiny_model import save_tiny_model
from common.grpo.policy import PolicyEngine
from common.training import make_batch
from sft.engine import SFTEngine

SIZE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1024, "pad_token_id": 0}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.06, "max_position_embeddings": 4096}
WINDOW = {"sliding_window": 48}  # tokens; shorter than most texts
FAMILIES = {
    "Qwen 3": Qwen3Config(**SIZE, head_dim=128),
    "Llama": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "Mistral, a window": MistralConfig(**SIZE, **WINDOW),
    "Gemma 3, a window": Gemma3TextConfig(**SIZE, **WINDOW, head_dim=256),
    "Qwen 2": Qwen2Config(**SIZE),
}
ENGINES = {"bradley_terry": PairEngine, "sft": SFTEngine, JUDGE: PolicyEngine}
FP32, FACTOR = 1e-3, 1.5  # bars: the error in fp32; the error in bf16 over that of transformers in bf16
EAGER = {"use_torch_compile": False}
VARIANTS = {
    "card": EAGER,
    "card, compiled": {},
    "host, by FSDP2": EAGER | {"offload_policy": True},
    "host, by verl": EAGER | {"param_offload": True, "optimizer_offload": True},
}
ROWS, LONGEST = (24, 300) if ON_GPU else (4, 80)


def main() -> None:
    join_alone()
    for family, config in list(FAMILIES.items())[: None if ON_GPU else 1]:
        for method in ENGINES if family in list(FAMILIES)[:3:2] else ["bradley_terry"]:
            with tempfile.TemporaryDirectory() as folder:
                compare(family, method, save(config, method, Path(folder)))


def save(config, method: str, folder: Path) -> Path:
    """Write a model of that shape with random weights, and a tokenizer."""
    save_tiny_model(folder, seed=0)
    torch.manual_seed(0)
    config.num_labels = 1
    auto_class(method).from_config(config).save_pretrained(folder)
    return folder


def auto_class(method: str) -> type:
    return AutoModelForSequenceClassification if method == "bradley_terry" else AutoModelForCausalLM


def compare(family: str, method: str, folder: Path) -> None:
    """Write the rows of one family and method, for both precisions."""
    texts = draw_texts(method)
    truth = run_transformers(method, folder, texts, torch.float32, "eager")
    theirs = run_transformers(method, folder, texts, torch.bfloat16, "sdpa")
    for precision, variant in [("fp32", "card"), ("bf16", "card"), *(("bf16", name) for name in others(family))]:
        values, gradient = run_ours(method, folder, texts, precision, VARIANTS[variant])
        found = {"values": error(values, truth[0]), "gradient": error(gradient, truth[1])}
        bars = {"values": FP32, "gradient": FP32}
        row = {"model": family, "method": method, "precision": precision, "weights in": variant}
        row |= {f"{name}, off": value for name, value in found.items()}
        if precision == "bf16":
            bars = {"values": error(theirs[0], truth[0]), "gradient": error(theirs[1], truth[1])}
            row |= {f"{name}, transformers in bf16": bars[name] for name in bars}
            bars = {name: FACTOR * bar for name, bar in bars.items()}
        note(**row, ok=all(found[name] <= bars[name] for name in bars))


def others(family: str) -> list[str]:
    """Return how else a family is tried: compiled, and with the weights elsewhere than on the card."""
    return list(VARIANTS)[1:] if ON_GPU and family == "Qwen 3" else []


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the length of the difference as a share of the truth's, from its mean."""
    return ((found - truth).norm() / (truth - truth.mean()).norm()).item()


def draw_texts(method: str) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Return prompts, each with its one or two answers, as token ids."""
    draw = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return draw.integers(1, SIZE["vocab_size"], draw.integers(2, LONGEST)).astype(np.int32)

    return [(ids(), [ids() for _ in range(1 if method == "sft" else 2)]) for _ in range(ROWS)]


def weights_of_sum(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).to(DEVICE) / count


def run_transformers(method: str, folder: Path, texts: list, dtype: torch.dtype, attention: str) -> tuple:
    """Return the values of all texts, one by one, and the gradient of their weighted sum."""
    model = auto_class(method).from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(DEVICE).eval()
    values = []
    for prompt, answers in texts:
        for answer in answers:
            ids = torch.from_numpy(np.concatenate([prompt, answer])).long().to(DEVICE)
            logits = model(input_ids=ids[None]).logits[0].float()
            if method == "bradley_terry":
                values.append(logits)
                continue
            log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]
            values.append(-log_probs if method == "sft" else log_probs)
    values = torch.cat(values)
    (values * weights_of_sum(len(values))).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return values.detach(), torch.cat([gradients[name].flatten().float() for name in sorted(gradients)])


def run_ours(method: str, folder: Path, texts: list, precision: str, variant: dict) -> tuple:
    """Return the same of our engine, from one packed row."""
    engine = ENGINES[method](
        HFModelConfig(path=str(folder), enable_gradient_checkpointing=False),
        FSDPEngineConfig(strategy="fsdp2", mixed_precision={"param_dtype": precision}, **variant),
        FSDPOptimizerConfig(total_training_steps=10),
        CheckpointConfig(),
    )
    engine.initialize()
    batch, answered = make_our_batch(method, texts)

    def values_of(output: dict) -> torch.Tensor:
        if method == "bradley_terry":
            return output["rewards"].values()
        if method == "sft":
            return output["losses"].values()
        return of_answers(output, answered)

    def weighted_sum(model_output: dict, data, dp_group):
        values = values_of(model_output)
        return (values * weights_of_sum(len(values))).sum(), {}

    with engine.eval_mode():
        values = values_of(engine.infer_batch(batch.clone(), loss_function=None)["model_output"]).detach().to(DEVICE)
    with engine.train_mode():
        engine.forward_backward_batch(batch.clone(), weighted_sum)
        weights = dict(engine.module.named_parameters())
        gradients = {name: weight.grad.to(DEVICE).full_tensor() for name, weight in weights.items()}
    return values, torch.cat([gradients[name].flatten().float() for name in sorted(gradients)])


def make_our_batch(method: str, texts: list) -> tuple:
    """Return a batch that is one micro-batch, and of a judge each prompt with its answer."""
    if method == "bradley_terry":
        rows = [bradley_terry.dataset.Pair(prompt, *answers, 0.0, "") for prompt, answers in texts]
        return make_batch(rows, bradley_terry.dataset.collate, 10**6), []
    if method == "sft":
        rows = []
        for prompt, (answer,) in texts:
            ids = np.concatenate([prompt, answer])
            rows.append(sft.dataset.Example(ids, np.arange(len(ids)) >= len(prompt), ""))
        return make_batch(rows, sft.dataset.collate, 10**6), []
    rows = [(prompt, answer) for prompt, answers in texts for answer in answers]
    return batch_of_answers(rows, len(rows)), rows


if __name__ == "__main__":
    main()
