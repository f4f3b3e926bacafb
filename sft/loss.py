"""The SFT loss, pure: logits in, numbers out. **Edit it for another loss.**

It differs from the textbook in what it divides by. A mean over each micro-batch, averaged again over micro-batches and
workers, weighs a token more when it lies among fewer others. Here every token of the global batch weighs the same: the
losses are summed, and the sum is divided once by the number of trained tokens in the whole batch. Computed in fp32
whatever the model computes in: over a large vocabulary, bf16 loses the differences that matter.
"""

import torch
import torch.nn.functional as F


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each token; a batch's loss is their sum over the batch's token count.

        loss = -1/N Σ_t log p(x_t | x_<t),    t over all N trained tokens of the global batch

    The engine calls it with some tokens of a batch at a time, and a second time in the backward pass, so that the
    logits of a long batch are never all in memory. So a token's loss may look at its own logits and target alone.

    Args:
        logits: (tokens, vocabulary), any float type, at the position before each target.
        targets: (tokens,) ids.

    Returns:
        (tokens,) fp32, in nats.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def batch_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Turn the sums over a whole batch into what is logged.

    Args:
        sums: `tokens` trained on, and how many of them are `correct`: the most probable one given those before.
    """
    return {"token_accuracy": sums["correct"] / sums["tokens"], "trained_tokens": sums["tokens"]}
