"""Part of gpu_check.py: what the policy itself generates, as in `ROLLOUT=hf`, and how probable training finds it.

GRPO divides the probability that training computes by the one that the answer was sampled with. The two come from
different kernels: generation with a cache of keys and values, training over packed rows.
"""

import time

import torch
from shared import JUDGE, ON_GPU, TINY, batch_of_answers, join_alone, note, of_answers, step_of, with_random_weights

PROMPTS, PROMPT, ANSWER = (64, 500, 256) if ON_GPU else (4, 20, 12)
BAR = {"fp32": 1e-3, "bf16": 0.05}  # nats, on average


def main() -> None:
    join_alone()
    model = "0.6B" if ON_GPU else TINY
    for precision in ("bf16", "fp32"):
        step, _ = step_of(JUDGE, model, 64)
        step.settings["engine_config"].mixed_precision["param_dtype"] = precision
        engine = with_random_weights(step.engine_class)(**step.settings)
        engine.initialize()
        draw = torch.Generator().manual_seed(0)
        known = engine.module.config.vocab_size
        prompts = torch.randint(5, known, (PROMPTS, PROMPT), generator=draw).tolist()
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        engine.generate(prompts[:2], [0, 1], 4, 10**6, **options)
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        answers = engine.generate(prompts, list(range(PROMPTS)), ANSWER, 65536, **options)
        seconds = time.perf_counter() - started
        sampled = torch.cat([torch.tensor(log_probs) for _, log_probs in answers])
        off = (log_probs_in_training(engine, prompts, answers) - sampled).abs()
        row = {"model": model, "precision": precision, "answers": PROMPTS, "tokens": len(sampled), "seconds": seconds}
        row |= {"tokens/s": len(sampled) / seconds, "log-probability off, mean": off.mean().item()}
        row |= {"worst": off.max().item()}
        row |= {"peak GiB": torch.cuda.max_memory_allocated() / 2**30} if ON_GPU else {}
        note(**row, ok=off.mean().item() <= BAR[precision])
        del engine


def log_probs_in_training(engine, prompts: list, answers: list) -> torch.Tensor:
    """Return the log-probabilities of all answers' tokens as training computes them."""
    rows = [(prompt, answer) for prompt, (answer, _) in zip(prompts, answers)]
    batch = batch_of_answers(rows, 16 if ON_GPU else 2)
    with engine.eval_mode():
        output = engine.infer_batch(batch, loss_function=None)["model_output"]
    return of_answers(output, rows).float().cpu()


if __name__ == "__main__":
    main()
