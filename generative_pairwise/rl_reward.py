"""The judge as the reward in an RL run: what verl, TRL, OpenRLHF and slime each call.

    verl    reward.custom_reward_function.path=pkg://generative_pairwise.rl_reward
            +reward.custom_reward_function.reward_kwargs.model=outputs/checkpoint reward.num_workers=1
    TRL     GRPOTrainer(reward_funcs=PairwiseReward("outputs/checkpoint"), …)
    others  python -m generative_pairwise.rl_reward --model outputs/checkpoint

(reward.py is another thing: what the judge itself is paid while it is trained.) A comparison needs a second answer:

- an `anchor`, a known answer to the same prompt. Two questions an answer, one in each order; the reward is
  `PairwiseGrader`'s score, 1 if the answer wins both. Once all answers beat the anchor there is nothing left to learn.
- the other answers to the prompt. The reward is the win rate, and the n·(n-1) questions of n answers are n-1 for each.
  The mean within a group is one half, so this reward does not rise over a run: measure the policy otherwise. A
  comparison without a verdict is no gain for either answer: if it were left out of the rate, an answer that confuses
  the judge beside strong rivals could be paid for one weak rival alone. The mean is then below one half.

If a row has an anchor it is used, else the group, and then `group` says how many answers to a prompt there are. verl
shows one answer at a time: all wait until their group is complete. TRL shows each of its processes' own answers: a part
of a group is refused.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.conversation import BadRow, Conversation, DataError
from common.grading.contract import NoVerdict, all_or_none
from common.grading.rl import Reward, Rewarder, RewardError, make_parser, remembered, serve
from common.judging.rubric import read_rubric

from .grader import PairwiseGrader
from .prompt import ask
from .win_rates import left_out, win_rates

NO_VERDICT = -0.5  # below 0, the reward of an answer that loses every comparison

NO_GROUP = (
    "an answer without an anchor, and `group` is not set: nothing to compare with. Set `group` to the number of "
    "answers to a prompt, or give an `anchor`, a known answer, with each prompt"
)


@dataclass
class Group:
    """Answers to one prompt that wait for the others."""

    answers: list[str]
    judging: asyncio.Future  # gets the task that rewards all of them once they are complete


class PairwiseReward(Rewarder):
    """Rewards answers by a judge's comparisons, with an anchor or with each other."""

    def __init__(
        self,
        model: str,
        endpoint: str | None = None,
        *,
        group: int | None = None,
        patience: float = 600.0,
        stand_in: float | None = NO_VERDICT,
        **settings: Any,
    ):
        """
        Args:
            model, endpoint, settings: see `PairwiseGrader`.
            group: answers to a prompt, needed without anchors. In verl `rollout.n`, also in validation, with one reward
                worker; in TRL `num_generations`.
            patience: in verl, seconds that an answer waits for the others of its group; judging them does not count.
            stand_in: reward of an answer that cannot be scored; below 0. With an anchor, one order without a verdict
                is enough for that; in a group, all comparisons are without one. None: the run stops.
        """
        if stand_in is not None and stand_in >= 0:
            raise DataError(f"stand_in={stand_in}: expected less than 0, the reward of an answer that always loses")
        if group is not None and group < 2:
            raise DataError(f"group={group}: expected at least 2 answers to a prompt, to compare them")
        self.grader = PairwiseGrader(model, endpoint, **settings)
        self.group, self.patience = group, patience
        self.waiting: dict[str, Group] = {}  # by their prompt
        super().__init__(stand_in, self.grader.tokenizer and self.grader.tokenizer.eos_token)

    async def score(self, dialogue: Conversation, answer: str, anchor: str | None) -> float:
        """Return the grader's score against the anchor; errors: see `Rewarder.score`."""
        return (await self.grader.grade(query=dialogue, response_a=answer, response_b=anchor)).score

    def check_question(self, dialogue: Conversation, anchor: str | None) -> None:
        """Raise `BadRow` if the judge cannot be asked about any answer to this dialogue, with this anchor."""
        self.grader.check_prompt(ask(dialogue, "-", "-" if anchor is None else anchor, self.grader.rubric))

    async def scores(
        self, dialogues: list[Conversation], answers: list[str], anchors: list[str | None]
    ) -> list[Reward | BadRow | NoVerdict]:
        """Return the rewards of many answers: those with an anchor by it, the others within their group."""
        groups: dict[str, list[int]] = {}  # the places of answers without an anchor, by their dialogue
        with_anchor = [place for place, anchor in enumerate(anchors) if anchor is not None]
        for place, anchor in enumerate(anchors):
            if anchor is None:
                groups.setdefault(json.dumps(dialogues[place], sort_keys=True), []).append(place)
        for places in groups.values():
            self._check_group(len(places))
        known = [[values[place] for place in with_anchor] for values in (dialogues, answers, anchors)]
        compared = [
            self._win_rates(dialogues[group[0]], [answers[place] for place in group]) for group in groups.values()
        ]
        results = await all_or_none([super().scores(*known), *compared])
        found = {}
        for places, rewards in zip([with_anchor, *groups.values()], results):
            found |= dict(zip(places, rewards, strict=True))
        return [found[place] for place in range(len(answers))]

    def _check_group(self, size: int) -> None:
        """Raise `RewardError` if answers to one prompt are not a whole group, or several (of equal prompts)."""
        if self.group is None:
            raise RewardError(NO_GROUP)
        if size % self.group:
            raise RewardError(
                f"{size} answers to one prompt, expected {self.group}, the `group`. A trainer with several processes "
                "must give each of them whole groups; in TRL, make per_device_train_batch_size times "
                "steps_per_generation a multiple of num_generations, and num_generations_eval equal to that"
            )

    async def _win_rates(self, dialogue: Conversation, answers: list[str]) -> list[Reward | NoVerdict]:
        verdicts, points = await self.grader.compare_all(dialogue, answers)
        shares = left_out(len(answers), verdicts)
        rates = win_rates(len(answers), verdicts, points, all_count=True)
        return [
            NoVerdict("no comparison had a verdict") if rate is None else {"score": rate, "unscored": share}
            for rate, share in zip(rates, shares)
        ]

    async def for_verl(self, solution_str: str, extra_info: dict | None) -> Reward:
        """Return the reward of one answer; without an anchor, as soon as its group is complete.

        Raises:
            RewardError: see `Rewarder.for_verl`; also if there is neither anchor nor `group`, or the group stays
                incomplete: then every answer of it has the error, and the next one starts a new group.
        """
        known = extra_info or {}
        if known.get("anchor") is not None or known.get("prompt") is None:
            return await super().for_verl(solution_str, extra_info)
        if self.group is None:
            raise RewardError(NO_GROUP)
        key = repr(known["prompt"])
        group = self.waiting.setdefault(key, Group([], asyncio.get_running_loop().create_future()))
        place = len(group.answers)
        group.answers.append(solution_str)
        if len(group.answers) == self.group:
            del self.waiting[key]
            prompt = known["prompt"] if isinstance(known["prompt"], str) else list(known["prompt"])
            group.judging.set_result(asyncio.ensure_future(self.rewards([prompt] * self.group, group.answers)))
        try:
            await asyncio.wait([group.judging], timeout=self.patience)
        finally:
            if not group.judging.done():  # too late, or cancelled: else its answers would join those of a later step
                del self.waiting[key]
                group.judging.set_exception(self._incomplete(len(group.answers)))
        rewards = await asyncio.shield(await group.judging)  # all of the group wait for the same
        return rewards[place]

    def _incomplete(self, size: int) -> RewardError:
        return RewardError(
            f"{size} of {self.group} answers to a prompt came within {self.patience:g} s. Set `group` to rollout.n, "
            "rollout.val_kwargs.n to the same, and reward.num_workers=1"
        )


_rewarder = remembered(PairwiseReward)


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict | None = None, **settings: Any
) -> Reward:
    """Reward one answer, in the form that verl calls reward functions.

    Args:
        extra_info: the row's; its `prompt` is the dialogue, its `anchor` an answer to compare with, if there is one.
        settings: verl's `reward_kwargs`: those of `PairwiseReward`.

    Raises:
        RewardError: see `Rewarder.rewards` and `PairwiseReward.for_verl`.
    """
    return await _rewarder(**settings).for_verl(solution_str, extra_info)


def main() -> None:
    about = "Serve the judge's comparisons to OpenRLHF and slime; each label holds the anchor."
    parser = make_parser(about, "checkpoint, or the served model's name")
    parser.add_argument("--soft", action="store_true", help="the judge's own probability that the answer is better")
    parser.add_argument("--tokenizer", help="with --endpoint: the checkpoint that is served")
    hidden_reasoning = "the endpoint returns only what follows </think>"
    parser.add_argument("--hidden-reasoning", action="store_true", help=hidden_reasoning)
    parser.add_argument("--rubric", type=Path, help="text file: what to judge by; default: the checkpoint's")
    parser.add_argument("--votes", type=int, help="how often every prompt is judged; default: 1")
    options = parser.parse_args()
    options.rubric = read_rubric(options.rubric)
    serve(PairwiseReward, options)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"rl_reward.py: {error}") from None
