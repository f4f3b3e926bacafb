"""The reward model as the reward in an RL run: what verl, TRL, OpenRLHF and slime each call.

    verl    reward.custom_reward_function.path=pkg://bradley_terry.rl_reward
            +reward.custom_reward_function.reward_kwargs.model=outputs/checkpoint reward.num_workers=1
    TRL     GRPOTrainer(reward_funcs=BradleyTerryReward("outputs/checkpoint"), …)
    others  python -m bradley_terry.rl_reward --model outputs/checkpoint

verl's own path for reward models starts servers beside the trainer's. Here the model is loaded in the process that
asks, or any server is asked that holds it. All answers that are asked for at once are one batch. The reward is
`BradleyTerryGrader`'s. TRL can also load the checkpoint by its path; the rewards are the same, but a text longer than
the model reads is then scored all the same.

Policies find answers that one reward model likes by mistake. Several models, trained with different seeds, make
different mistakes: `ensemble` takes more checkpoints, and `pessimism` is what their disagreement costs.
"""

from typing import Any

import numpy as np

from common.conversation import Conversation, DataError
from common.grading.contract import NoVerdict, all_or_none
from common.grading.rl import Reward, Rewarder, RewardError, make_parser, remembered, serve

from .grader import BradleyTerryGrader
from .reward_model import check_pessimism, pessimistic


class BradleyTerryReward(Rewarder):
    """Rewards answers by one reward model, or by several."""

    def __init__(
        self,
        model: str,
        endpoint: str | None = None,
        *,
        ensemble: list[str] | tuple[str, ...] = (),
        pessimism: float | None = None,
        stand_in: float | None = None,
        **settings: Any,
    ):
        """
        Args:
            model, endpoint, settings: see `BradleyTerryGrader`.
            ensemble: more reward models, loaded in this process.
            pessimism: with an ensemble, standard deviations of the models' rewards that are taken off their mean; see
                `pessimistic`. By default 1.
            stand_in: reward of an answer that cannot be scored, such as an empty one. Rewards have no lowest value, so
                there is none by default, and the run stops.
        """
        if ensemble and endpoint:
            raise DataError("ensemble: the models are loaded in this process, so leave endpoint out")
        self.pessimism = check_pessimism(pessimism, ensemble)
        first = BradleyTerryGrader(model, endpoint, **settings)
        super().__init__(stand_in, first.reading.end)
        self.graders = [first, *(BradleyTerryGrader(path, **settings) for path in ensemble)]

    async def score(self, dialogue: Conversation, answer: str, anchor: str | None) -> float:
        """Return the grader's reward; errors: see `Rewarder.score`."""
        try:
            graded = await all_or_none(grader.grade(query=dialogue, response=answer) for grader in self.graders)
        except NoVerdict as error:  # not finite: the model is broken, so no answer is to blame
            raise RewardError(f"{error}. The answer: {answer[:200]!r}") from error
        return float(pessimistic(np.array([[one.score] for one in graded]), self.pessimism)[0])

    def check_question(self, dialogue: Conversation, anchor: str | None) -> None:
        """Raise `BadRow` if no answer to this dialogue has a reward."""
        for grader in self.graders:
            grader.check_dialogue(dialogue)


_rewarder = remembered(BradleyTerryReward)


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **settings: Any
) -> Reward:
    """Reward one answer, in the form that verl calls reward functions.

    Args:
        extra_info: the row's; its `prompt` is the dialogue.
        settings: verl's `reward_kwargs`: those of `BradleyTerryReward`.

    Raises:
        RewardError: see `Rewarder.rewards`.
    """
    return await _rewarder(**settings).for_verl(solution_str, extra_info)


def main() -> None:
    parser = make_parser("Serve the reward model's rewards to OpenRLHF and slime.", "checkpoint folder or hub id")
    parser.add_argument("--served-name", help="with --endpoint: what the server calls the model, if not --model")
    parser.add_argument("--ensemble", nargs="+", help="more reward models: the mean of all, less what they disagree by")
    parser.add_argument(
        "--pessimism", type=float, help="with --ensemble: standard deviations taken off the mean; default: 1"
    )
    serve(BradleyTerryReward, parser.parse_args())


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"rl_reward.py: {error}") from None
