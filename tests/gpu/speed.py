"""Part of gpu_check.py: seconds of a training step, tokens per second, MFU and the most memory.

A step is as many full micro-batches as the run script's batch makes of such rows, but no more than six, and the
optimizer's update. MFU counts what a step must compute: 6 operations for each weight and token (4 for a frozen one),
and attention's products over what each token sees; what checkpointing computes again is not counted.
"""

import gc
import time

import torch
from shared import DEVICE, ON_GPU, cases, join_alone, name_of, note, step_of, with_random_weights

from common.checkpoint import unwrap

# dense bf16 operations a second, by the makers' data sheets
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12}
PEAKS |= {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100 80GB PCIe": 312e12}
STEPS, MOST, GIB, MFU = 2, 6, 2**30, 0.4


def main() -> None:
    join_alone()
    named = torch.cuda.get_device_name() if ON_GPU else ""
    matmul = speed_of_matmul()
    peak = PEAKS.get(named, matmul)
    note(**{"case": f"matrix product, bf16; MFU is of {peak / 1e12:.0f} TFLOP/s", "TFLOP/s": matmul / 1e12})
    for method, model, lora, checkpointing, lengths in cases():
        engine = None
        for tokens in lengths:
            step, config = step_of(method, model, tokens, lora, checkpointing)
            if engine is None:
                engine = with_random_weights(step.engine_class)(**step.settings)
                engine.initialize()
            try:
                found = measure(engine, step, method, count_micro_batches(method, config, step), peak)
            except torch.OutOfMemoryError as error:
                found = {"peak GiB": None, "ok": False, "error": str(error)[:80]}
            if found.get("MFU", 1) < MFU and model != "0.6B" and ON_GPU:
                found["ok"] = False
            note(case=name_of(method, model, lora, checkpointing, tokens), **found)
        del engine
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()


def count_micro_batches(method: str, config, step) -> int:
    """Return how many micro-batches make a step."""
    if not ON_GPU:
        return 2
    if method.startswith("generative"):
        rows = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    else:
        rows = config.data.train_batch_size
    return min(MOST, -(-rows // step.batch.batch_size[0]))


def measure(engine, step, method: str, count: int, peak: float) -> dict:
    """Return the figures of a step of `count` micro-batches, after two that are not timed."""
    batch, spans = step.batch, spans_of(engine, step)
    computed, read = sum(end - start for start, end, *_ in spans), count_read(step, method)

    def make_step() -> None:
        engine.optimizer_zero_grad()
        for _ in range(count):
            engine.forward_backward_batch(batch.clone(), step.loss)
        engine.optimizer_step()

    with engine.train_mode():
        for _ in range(2):  # in the first, layers are compiled
            make_step()
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(STEPS):
            make_step()
        if ON_GPU:
            torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / STEPS
    memory = {}
    if ON_GPU:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        memory = {"peak GiB": allocated / GIB, "reserved GiB": reserved / GIB}
    operations = count * operations_of(engine, spans, read)
    speed = {"micro-batches": count, "step s": seconds, "tokens/s": count * computed / seconds}
    speed |= {"MFU": operations / seconds / peak}
    return speed | memory


def spans_of(engine, step) -> list[tuple[int, int, int, int]]:
    """Return the segments of the micro-batch's row: what is computed, and what each part of it sees."""
    inputs, _ = engine.prepare_model_inputs(step.batch.to(DEVICE))
    return inputs["segments"].spans


def count_read(step, method: str) -> int:
    """Return for how many tokens the logits are computed."""
    if method == "bradley_terry":
        return 0
    return int(step.batch["loss_mask"].values().sum())


def operations_of(engine, spans: list[tuple[int, int, int, int]], read: int) -> float:
    """Return the operations of forward and backward over one row."""
    model = unwrap(engine.module)
    config, embeddings = model.config, model.get_input_embeddings().weight
    inside = [weight for weight in model.base_model.parameters() if weight is not embeddings and weight.dim() == 2]
    per_token = sum((6 if weight.requires_grad else 4) * weight.numel() for weight in inside)
    head = (6 if embeddings.requires_grad else 4) * config.vocab_size * config.hidden_size
    seen = sum((end - start) * (p_end - p_start + (end - start + 1) / 2) for start, end, p_start, p_end in spans)
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen
    return per_token * sum(end - start for start, end, *_ in spans) + head * read + attention


def speed_of_matmul() -> float:
    """Return the operations a second of a large product of random matrices."""
    size, repeats = (8192, 10) if ON_GPU else (256, 2)
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for number in range(3 + repeats):
        if number == 3:
            if ON_GPU:
                torch.cuda.synchronize()
            started = time.perf_counter()
        left @ right
    if ON_GPU:
        torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
