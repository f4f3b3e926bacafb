"""The trained judge as OpenJudge's grader: `await grader.aevaluate(query=..., response_a=..., response_b=...)`.

    from grader import PairwiseGrader
    grader = PairwiseGrader("outputs/checkpoint")                           # in this process
    grader = PairwiseGrader("my-judge", "http://localhost:8000/v1")         # or behind an endpoint

One prompt and one parser for training, `evaluate.py` and here, so one verdict. Only `common` is imported: this file
works from any folder, beside other methods' graders. Asked in one order alone, a judge may favour a place: both are
asked.
"""

from collections.abc import Iterable
from itertools import permutations
from typing import Any

from common.conversation import Conversation
from common.generation import Answer
from common.grading import (
    GraderMode,
    GraderRank,
    GraderScore,
    all_or_none,
    rank_by,
    read_query,
    read_response,
    read_responses,
)
from common.judge import MORE_HELPFUL, PAIRWISE_PROMPT, SWAPPED, Preference, pairwise_prompt, parse_preference
from common.judge_grader import JudgeGrader, no_verdict, reasoning_of
from common.verdicts import POINTS, win_rates


class PairwiseGrader(JudgeGrader):
    """Compares two responses, or ranks several with `mode=GraderMode.LISTWISE`; see `JudgeGrader` for its settings."""

    default_rubric = MORE_HELPFUL

    def __init__(self, *args: Any, both_orders: bool = True, **settings: Any):
        """`both_orders=False` asks once, at half the cost, and takes the judge's favourite place with the verdict."""
        super().__init__(*args, **settings)
        self.both_orders = both_orders

    async def grade(self, query: str | Conversation, **responses: Any) -> GraderScore | GraderRank:
        """Compare responses to a query.

        Args:
            query: text, or the whole dialogue: messages or JSON text of them.
            response_a, response_b: two texts, for a score; or
            responses: two texts or more, for a rank (`mode=GraderMode.LISTWISE`), always compared in both orders.

        Raises:
            BadRow, NoVerdict, EndpointError: which `aevaluate` returns as `GraderError`.
        """
        if self.mode == GraderMode.LISTWISE:
            return await self._rank(query, **responses)
        return await self._compare(query, **responses)

    async def _compare(self, query: str | Conversation, response_a: str, response_b: str, **_: Any) -> GraderScore:
        dialogue = read_query(query)
        shown = [read_response(response_a, "response_a"), read_response(response_b, "response_b")]
        orders = [shown, shown[::-1]] if self.both_orders else [shown]
        given = await self._ask_all(pairwise_prompt(dialogue, *order, self.rubric) for order in orders)
        verdicts = [self._verdict(text) for text in given]
        turned = [verdicts[0], *map(SWAPPED.get, verdicts[1:])]  # in the words of the order as given
        return GraderScore(
            name=self.name,
            score=sum(POINTS[verdict] for verdict in turned) / len(turned),
            reason=reasoning_of(given[0]),
            metadata={"verdicts": turned, "consistent": len(set(turned)) == 1, "answers": list(map(str, given))},
        )

    async def _rank(self, query: str | Conversation, responses: list[str], **_: Any) -> GraderRank:
        dialogue, responses = read_query(query), read_responses(responses)
        pairs = permutations(responses, 2)
        given = await self._ask_all(pairwise_prompt(dialogue, *pair, self.rubric) for pair in pairs)
        rates = win_rates(len(responses), [self._verdict(text) for text in given])
        rank, reason = rank_by(rates, "win rate")
        return GraderRank(name=self.name, rank=rank, reason=reason, metadata={"win_rates": rates})

    async def _ask_all(self, prompts: Iterable[str]) -> list[Answer]:
        return await all_or_none(map(self.ask, prompts))

    @staticmethod
    def _verdict(given: Answer) -> Preference:
        verdict = parse_preference(given)
        if verdict is None:
            raise no_verdict(given)
        return verdict

    @staticmethod
    def get_metadata() -> dict[str, Any]:
        return {
            "score": "how probably A is better than B: 1 A, 0.5 a tie, 0 B; asked in both orders the mean of the two. "
            "Steps, not a calibrated probability",
            "rank": "1 is the best. By win rate: the share of its comparisons that a response wins, a tie being half a "
            "win; equal rates stand in the given order, and are told by metadata['win_rates']",
            "reason": "what the judge wrote before its verdict, on the order as given",
            "error": "no answer, or none with exactly one well-formed verdict; there is no fallback. Also where a rank "
            "is asked for and no response is better than another",
            "aevaluate": PairwiseGrader.grade.__doc__,
            "prompt": PAIRWISE_PROMPT,
        }
