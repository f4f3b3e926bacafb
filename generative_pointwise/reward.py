"""The reward of one answer: how close its score is to the label. Pure, total, always the same keys.

- An answer without a well-formed verdict gets less than any verdict can, whatever the label. In a judge's text a parser
  that guesses finds a number in any garbage, and garbage then is the policy's best answer to rows labelled so.
- Only the outcome is rewarded. The reasoning may say anything, as long as it ends where it should.
- Training and evaluation call the same parser.
"""

from .prompt import VERDICTS, parse

LABELS = {str(form): verdict for verdict in VERDICTS for form in (verdict, float(verdict))}
MALFORMED = -0.5  # below 0, the reward of the wrongest verdict; the distance is how much the form matters


def score_reward(score: int | None, label: int | None) -> float:
    """Return 1 for the label itself, less in proportion to the distance from it, 0 at the far end of the scale.

    Symmetric: a judge should be as wrong upwards as downwards. If the label is None (verl may pass anything), every
    verdict gets 0.
    """
    if score is None:
        return MALFORMED
    if label is None:
        return 0.0
    return 1 - abs(score - label) / (max(VERDICTS) - min(VERDICTS))


def compute_score(
    data_source: str, solution_str: str, ground_truth, extra_info: dict | None = None
) -> dict[str, float]:
    """Judge one answer, in the form that verl calls reward functions.

    Args:
        solution_str: what the model wrote.
        ground_truth: the label, a score of the scale.
        extra_info: `begun` is what the chat template had already written of the answer, mostly `<think>`.

    Returns:
        score: the reward. acc, within_one: 1 if the verdict is right, or off by one at most, else 0. parsed: 1 if
        there is a verdict.
    """
    verdict = parse(((extra_info or {}).get("begun") or "") + solution_str)
    label = LABELS.get(str(ground_truth))
    known = verdict is not None and label is not None
    return {
        "score": score_reward(verdict, label),
        "acc": float(known and verdict == label),
        "within_one": float(known and abs(verdict - label) <= 1),
        "parsed": float(verdict is not None),
    }
