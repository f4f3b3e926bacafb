"""The judge as the reward in an RL run: what verl, TRL, OpenRLHF and slime each call.

    verl    reward.custom_reward_function.path=pkg://generative_pointwise.rl_reward
            +reward.custom_reward_function.reward_kwargs.model=outputs/checkpoint reward.num_workers=1
    TRL     GRPOTrainer(reward_funcs=PointwiseReward("outputs/checkpoint"), …)
    others  python -m generative_pointwise.rl_reward --model outputs/checkpoint

(reward.py is another thing: what the judge itself is paid while it is trained.) The reward is `PointwiseGrader`'s
score. Whole scores are coarse: if all answers to a prompt get the same one, GRPO learns nothing from them. `soft=True`
takes the mean over the judge's own probabilities and costs no more answers.
"""

from pathlib import Path
from typing import Any

from common.conversation import Conversation, DataError
from common.grading.rl import Reward, Rewarder, make_parser, remembered, serve
from common.judging.rubric import read_rubric

from .grader import PointwiseGrader
from .prompt import SCORES, ask

NO_VERDICT = float(SCORES[0] - 1)  # a step below the lowest score, so that no policy gains by confusing the judge


class PointwiseReward(Rewarder):
    """Rewards answers by a judge's scores."""

    def __init__(
        self, model: str, endpoint: str | None = None, *, stand_in: float | None = NO_VERDICT, **settings: Any
    ):
        """
        Args:
            model, endpoint, settings: see `PointwiseGrader`.
            stand_in: reward of an answer that cannot be scored, as when the judge gives no verdict; below every
                score. None: the run stops.
        """
        if stand_in is not None and stand_in >= SCORES[0]:
            raise DataError(f"stand_in={stand_in}: expected less than every score, so below {SCORES[0]}")
        self.grader = PointwiseGrader(model, endpoint, **settings)
        super().__init__(stand_in, self.grader.tokenizer and self.grader.tokenizer.eos_token)

    async def score(self, dialogue: Conversation, answer: str, anchor: str | None) -> float:
        """Return the grader's score; errors: see `Rewarder.score`."""
        return (await self.grader.grade(query=dialogue, response=answer)).score

    def check_question(self, dialogue: Conversation, anchor: str | None) -> None:
        """Raise `BadRow` if the judge cannot be asked about any answer to this dialogue."""
        self.grader.check_prompt(ask(dialogue, "-", self.grader.rubric))


_rewarder = remembered(PointwiseReward)


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **settings: Any
) -> Reward:
    """Reward one answer, in the form that verl calls reward functions.

    Args:
        extra_info: the row's; its `prompt` is the dialogue.
        settings: verl's `reward_kwargs`: those of `PointwiseReward`.

    Raises:
        RewardError: see `Rewarder.rewards`.
    """
    return await _rewarder(**settings).for_verl(solution_str, extra_info)


def main() -> None:
    parser = make_parser("Serve the judge's scores to OpenRLHF and slime.", "checkpoint, or the served model's name")
    parser.add_argument("--soft", action="store_true", help="the mean over the judge's probabilities of all scores")
    parser.add_argument("--tokenizer", help="with --endpoint: the checkpoint that is served")
    hidden_reasoning = "the endpoint returns only what follows </think>"
    parser.add_argument("--hidden-reasoning", action="store_true", help=hidden_reasoning)
    parser.add_argument("--rubric", type=Path, help="text file: what to judge by; default: the checkpoint's")
    parser.add_argument("--votes", type=int, help="how often every prompt is judged; default: 1")
    options = parser.parse_args()
    options.rubric = read_rubric(options.rubric)
    serve(PointwiseReward, options)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"rl_reward.py: {error}") from None
