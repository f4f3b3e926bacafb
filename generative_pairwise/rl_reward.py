"""The judge as the reward in an RL run: what verl, TRL, OpenRLHF and slime each call.

    verl    reward.custom_reward_function.path=pkg://generative_pairwise.rl_reward
            +reward.custom_reward_function.reward_kwargs.model=outputs/checkpoint reward.num_workers=1
    TRL     GRPOTrainer(reward_funcs=PairwiseReward("outputs/checkpoint"), …)
    others  python -m generative_pairwise.rl_reward --model outputs/checkpoint

(reward.py is another thing: what the judge itself is paid while it is trained.) A comparison needs a second answer:

- an `anchor`, a known answer to the same prompt. Two questions an answer, one in each order; the reward is
  `PairwiseGrader`'s score, 1 if the answer wins both. Once all answers beat the anchor there is nothing left to learn.
- the other answers to the prompt. The reward is the win rate, and the n·(n-1) questions of n answers are n-1 for each.
  The mean within a group is always one half, so this reward does not rise over a run: measure the policy otherwise.

If a row has an anchor it is used, else the group. TRL shows a reward function whole groups. verl shows one answer at a
time, so `group` says for how many answers to one prompt it waits.
"""

import asyncio
import json
from typing import Any

from common.conversation import Conversation, DataError
from common.grading.contract import NoVerdict, all_or_none
from common.grading.endpoint import EndpointError
from common.grading.rl import Reward, Rewarder, RewardError, make_parser, remembered, serve

from .grader import PairwiseGrader

NO_VERDICT = -0.5  # below 0, the reward of an answer that loses every comparison


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
            group: answers to a prompt, for verl without anchors: its `rollout.n`, also in validation, with one reward
                worker.
            patience: seconds to wait for a group's next answer.
            stand_in: reward of an answer that cannot be scored, as when the judge gives no verdict on it in any
                comparison; below 0. None: the run stops.
        """
        if stand_in is not None and stand_in >= 0:
            raise DataError(f"stand_in={stand_in}: expected less than 0, the reward of an answer that always loses")
        if group is not None and group < 2:
            raise DataError(f"group={group}: expected at least 2 answers to a prompt, to compare them")
        self.grader = PairwiseGrader(model, endpoint, **settings)
        self.group, self.patience = group, patience
        self.waiting: dict[str, list[tuple[str, asyncio.Future]]] = {}
        super().__init__(stand_in, self.grader.tokenizer and self.grader.tokenizer.eos_token)

    async def score(self, dialogue: Conversation, answer: str, anchor: str | None) -> float:
        """Return the grader's score against the anchor; errors: see `Rewarder.score`."""
        return (await self.grader.grade(query=dialogue, response_a=answer, response_b=anchor)).score

    async def scores(self, dialogues: list[Conversation], answers: list[str], anchors: list) -> list[float | Exception]:
        """Return the rewards of many answers: those with an anchor by it, the others within their group."""
        groups: dict[str, list[int]] = {}  # the places of answers without an anchor, by their dialogue
        with_anchor = [place for place, anchor in enumerate(anchors) if anchor is not None]
        for place, anchor in enumerate(anchors):
            if anchor is None:
                groups.setdefault(json.dumps(dialogues[place], sort_keys=True), []).append(place)
        known = [[values[place] for place in with_anchor] for values in (dialogues, answers, anchors)]
        compared = [
            self._win_rates(dialogues[group[0]], [answers[place] for place in group]) for group in groups.values()
        ]
        results = await all_or_none([super().scores(*known), *compared])
        found = {}
        for places, rewards in zip([with_anchor, *groups.values()], results):
            found |= dict(zip(places, rewards, strict=True))
        return [found[place] for place in range(len(answers))]

    async def _win_rates(self, dialogue: Conversation, answers: list[str]) -> list[float | Exception]:
        if len(answers) < 2:
            raise RewardError(
                "one answer to a prompt and no anchor: nothing to compare it with. Give several answers to each "
                "prompt, or a column `anchor` with a known answer"
            )
        try:
            rates = await self.grader.rates(dialogue, answers)
        except EndpointError as fault:
            return [fault] * len(answers)
        return [NoVerdict("no comparison had a verdict") if rate is None else rate for rate in rates]

    async def for_verl(self, solution_str: str, extra_info: dict | None) -> Reward:
        """Return the reward of one answer; without an anchor, as soon as its group is complete.

        Raises:
            RewardError: see `Rewarder.for_verl`; also if there is neither anchor nor `group`, or the group stays
                incomplete.
        """
        known = extra_info or {}
        if known.get("anchor") is not None or known.get("prompt") is None:
            return await super().for_verl(solution_str, extra_info)
        if self.group is None:
            raise RewardError("the row has no extra_info 'anchor', and `group` is not set: nothing to compare with")
        key = repr(known["prompt"])
        waiting = self.waiting.setdefault(key, [])
        future = asyncio.get_running_loop().create_future()
        waiting.append((solution_str, future))
        if len(waiting) == self.group:
            del self.waiting[key]
            await self._reward_group(known["prompt"], waiting)
        try:
            return await asyncio.wait_for(future, self.patience)
        except asyncio.TimeoutError:
            raise RewardError(
                f"{len(waiting)} of {self.group} answers to a prompt came within {self.patience:g} s. Set `group` to "
                "rollout.n, rollout.val_kwargs.n to the same, and reward.num_workers=1"
            ) from None

    async def _reward_group(self, prompt: Any, waiting: list[tuple[str, asyncio.Future]]) -> None:
        """Give each answer of a complete group its reward, or all the same error."""
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        try:
            rewards = await self.rewards([prompt] * len(waiting), [answer for answer, _ in waiting])
        except Exception as error:  # each of them waits, and gets it
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), reward in zip(waiting, rewards, strict=True):
            if not future.done():
                future.set_result(reward)


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
    serve(PairwiseReward, parser.parse_args())


if __name__ == "__main__":
    main()
