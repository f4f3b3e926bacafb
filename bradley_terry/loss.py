"""The Bradley-Terry loss, pure: rewards in, numbers out. **Edit it for another loss.**

It differs from the textbook in two options, both off unless asked for: a margin per pair, and a pull of the rewards
towards zero. Everything is computed in fp32 whatever the model computes in: in bf16 the difference of two close
rewards rounds to 0 or to the wrong sign.
"""

import torch
import torch.nn.functional as F


def pair_losses(rewards: torch.Tensor, margin: torch.Tensor | None = None, centering: float = 0.0) -> torch.Tensor:
    """Return the loss of each pair; a batch's loss is their mean.

        loss = -log σ(r_c - r_r - m) + λ (r_c + r_r)²

    The first term is the negative log-likelihood of the preference under P(chosen > rejected) = σ(r_c - r_r)
    (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1), with the margin m of Llama 2 (Touvron et al. 2023, eq. 2).
    The second term (Eisenstein et al. 2023, "Helping or Herding?") fixes what the first leaves free: a constant
    added to all rewards. It pulls the mean reward of a pair to zero and leaves the difference alone.

    Args:
        rewards: (pairs, 2), chosen then rejected, any float type.
        margin: (pairs,), by how much chosen should win, in units of reward; None for 0.
        centering: λ.

    Returns:
        (pairs,) fp32.
    """
    chosen, rejected = rewards.float().unbind(dim=1)
    difference = chosen - rejected if margin is None else chosen - rejected - margin.float()
    return -F.logsigmoid(difference) + centering * (chosen + rejected).square()


def batch_sums(rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return sums over pairs, from which means and spreads follow whatever the cut into micro-batches.

    Args:
        rewards: (pairs, 2), chosen then rejected.

    Returns:
        Scalars: `correct` (chosen strictly above rejected; a tie is not correct), `margin` and `margin_squared`
        (of r_c - r_r), `reward` and `reward_squared` (over both sides).
    """
    rewards = rewards.detach().float()
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "correct": (margin > 0).float().sum(),
        "margin": margin.sum(),
        "margin_squared": margin.square().sum(),
        "reward": rewards.sum(),
        "reward_squared": rewards.square().sum(),
    }


def batch_metrics(sums: dict[str, float], pairs: int) -> dict[str, float]:
    """Turn the sums of `batch_sums` over a whole batch of `pairs` into what is logged."""

    def spread(total: float, total_of_squares: float, count: int) -> float:
        return max(total_of_squares / count - (total / count) ** 2, 0.0) ** 0.5

    return {
        "accuracy": sums["correct"] / pairs,
        "margin_mean": sums["margin"] / pairs,
        "margin_std": spread(sums["margin"], sums["margin_squared"], pairs),
        "reward_mean": sums["reward"] / (2 * pairs),
        "reward_std": spread(sums["reward"], sums["reward_squared"], 2 * pairs),
    }
