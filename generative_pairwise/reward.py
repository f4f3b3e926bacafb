"""The reward of one answer: whether its verdict is right. Pure, total, always the same keys.

- An answer without a well-formed verdict gets less than any verdict can, whatever the label. In a judge's text a parser
  that guesses finds an A in any garbage, and garbage then is the policy's best answer to rows labelled so.
- Only the outcome is rewarded. The reasoning may say anything, as long as it ends where it should.
- A tie is a verdict like the others, and every pair is judged in both orders: favouring a place never pays in both.
- Training and evaluation call the same parser.
"""

from .prompt import VERDICTS, parse

MALFORMED = -0.5  # below 0, the reward of the wrongest verdict; the distance is how much the form matters


def preference_reward(verdict: str | None, label: str | None, tie_credit: float = 0.0) -> float:
    """Return 1 for the label itself, `tie_credit` if one of the two is a tie, else 0.

    In ratings a draw is half a win (Chatbot Arena, arXiv:2403.04132). As a reward, 0.5 makes "tie" the best answer of a
    judge that is not sure, and it will say so more and more often; so the default is 0. If the label is None (verl may
    pass anything), every verdict gets 0.
    """
    if verdict is None:
        return MALFORMED
    if label is None:
        return 0.0
    if verdict == label:
        return 1.0
    return tie_credit if "tie" in (verdict, label) else 0.0


def weigh(reward: float, strength: float | None) -> float:
    """Scale a verdict's reward by how much better the better response is, as HelpSteer2-Preference's scaled loss does.

    (arXiv:2410.01257.) Ties, and rows without a strength, weigh 1; an answer without a verdict is as bad as ever. GRPO
    divides a group's rewards by their spread, which takes most of the weight out again, so train.py refuses it without
    `algorithm.norm_adv_by_std_in_grpo=False`.
    """
    return reward * strength if strength and reward > 0 else reward


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth,
    extra_info: dict | None = None,
    tie_credit: float = 0.0,
    by_strength: bool = False,
) -> dict[str, float]:
    """Judge one answer, in the form that verl calls reward functions.

    Args:
        solution_str: what the model wrote.
        ground_truth: the label: A, B or tie.
        extra_info: `begun` is what the chat template had already written of the answer, mostly `<think>`; `strength`
            how much better the better response is.
        tie_credit, by_strength: see `preference_reward` and `weigh`.

    Returns:
        score: the reward. acc: 1 if the verdict is right, else 0. first, tie: 1 if it is "A", the response shown first,
        or "tie". parsed: 1 if there is a verdict.

    Raises:
        ValueError: tie_credit is less than 0, or 1 or more; `by_strength` is neither True nor False.
    """
    if not isinstance(tie_credit, int | float) or not 0 <= tie_credit < 1:
        raise ValueError(
            f"tie_credit is {tie_credit!r}; expected at least 0 and less than 1, which is what the label itself gets"
        )
    if not isinstance(by_strength, bool):
        raise ValueError(f"by_strength is {by_strength!r}; expected True or False")
    verdict = parse(((extra_info or {}).get("begun") or "") + solution_str)
    label = str(ground_truth) if str(ground_truth) in VERDICTS else None
    reward = preference_reward(verdict, label, tie_credit)
    strength = None if label == "tie" else (extra_info or {}).get("strength")
    return {
        "score": weigh(reward, strength) if by_strength else reward,
        "acc": float(verdict is not None and verdict == label),
        "first": float(verdict == "A"),
        "tie": float(verdict == "tie"),
        "parsed": float(verdict is not None),
    }
