"""The trained judge as OpenJudge's grader: `await grader.aevaluate(query=..., response_a=..., response_b=...)`.

    from generative_pairwise.grader import PairwiseGrader
    grader = PairwiseGrader("outputs/checkpoint")                           # in this process
    grader = PairwiseGrader("my-judge", "http://localhost:8000/v1")         # or behind an endpoint

Training, evaluate.py and this grader have one prompt and one parser, those of prompt.py, and so one verdict. A judge
that is asked in one order alone may favour a place: both are asked.
"""

from collections.abc import Iterable
from itertools import permutations
from typing import Any

from common.conversation import BadRow, Conversation, read_dialogue, read_response
from common.grading.contract import GraderMode, GraderRank, GraderScore, NoVerdict, all_or_none, rank_by, read_several
from common.judging.grader import JudgeGrader, Judgement
from common.judging.soft import Verdicts

from .prompt import FRAME, PROMPT, RUBRIC, SWAPPED, VERDICT_FORM, VERDICTS, Preference, ask, decide, parse, write
from .win_rates import POINTS, expected_points, win_rates


class PairwiseGrader(JudgeGrader):
    """Compares two responses, or ranks several with `mode=GraderMode.LISTWISE`; see `JudgeGrader` for its settings."""

    default_rubric = RUBRIC
    frame = FRAME
    verdicts = Verdicts.of(VERDICTS, write, parse)
    decide = decide

    def __init__(self, *args: Any, both_orders: bool = True, **settings: Any):
        """`both_orders=False` asks once, at half the cost; if the judge favours a place, the score then does too."""
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
        dialogue = read_dialogue(query, "query")
        shown = [read_response(response_a, "response_a"), read_response(response_b, "response_b")]
        orders = [shown, shown[::-1]] if self.both_orders else [shown]
        judged = await self._judge_all(ask(dialogue, *order, self.rubric) for order in orders)
        verdicts = [one.verdict for one in judged]
        turned = [verdicts[0], *map(SWAPPED.get, verdicts[1:])]  # in the words of the order as given
        points = [self._points(one) for one in judged]  # for the response shown first
        points[1:] = [1 - found for found in points[1:]]
        said = {"verdicts": turned, "consistent": len(set(turned)) == 1}
        said["answers"] = [str(answer) for one in judged for answer in one.answers]
        if self.votes > 1:
            said["votes"] = [one.votes for one in judged]  # of each order, in its own words
        if self.soft:
            said["probabilities"] = [one.probabilities for one in judged]
        return GraderScore(name=self.name, score=sum(points) / len(points), reason=judged[0].reason, metadata=said)

    async def _rank(self, query: str | Conversation, responses: list[str], **_: Any) -> GraderRank:
        dialogue, responses = read_dialogue(query, "query"), read_several(responses)
        pairs = permutations(responses, 2)
        judged = await self._judge_all(ask(dialogue, *pair, self.rubric) for pair in pairs)
        rates = win_rates(len(responses), [one.verdict for one in judged], [self._points(one) for one in judged])
        rank, reason = rank_by(rates, "win rate")
        return GraderRank(name=self.name, rank=rank, reason=reason, metadata={"win_rates": rates})

    async def compare_all(
        self, dialogue: Conversation, responses: list[str]
    ) -> tuple[list[Preference | None], list[float | None]]:
        """Return the verdicts on every two of several responses and the points of these, as `win_rates` takes them.

        None: a comparison without a verdict, or one that is too long to be asked for.

        Raises:
            EndpointError: no answer came.
        """
        prompts = [ask(dialogue, *pair, self.rubric) for pair in permutations(responses, 2)]
        judged = await all_or_none(map(self._judge_or_none, prompts))
        points = [None if one is None else self._points(one) for one in judged]
        return [one and one.verdict for one in judged], points

    async def _judge_or_none(self, prompt: Conversation) -> Judgement | None:
        try:
            return await self.judge(prompt)
        except (NoVerdict, BadRow):
            return None

    async def _judge_all(self, prompts: Iterable[Conversation]) -> list[Judgement]:
        return await all_or_none(map(self.judge, prompts))

    def _points(self, judged: Judgement) -> float:
        return expected_points(judged.probabilities) if self.soft else POINTS[judged.verdict]

    @staticmethod
    def get_metadata() -> dict[str, Any]:
        return {
            "score": "how probably A is better than B: 1 A, 0.5 a tie, 0 B; asked in both orders the mean of the two. "
            "Steps, not a calibrated probability; with soft=True the judge's own probability of its verdicts",
            "rank": "1 is the best. By win rate: the share of its comparisons that a response wins, a tie being half a "
            "win; equal rates stand in the given order, and metadata['win_rates'] shows them",
            "reason": "what the judge wrote before its verdict, on the order as given",
            "error": "no answer, or none with exactly one well-formed verdict; there is no fallback. Also if a rank is "
            "asked for and no response is better than another",
            "aevaluate": PairwiseGrader.grade.__doc__,
            "prompt": PROMPT.replace("{verdict_form}", VERDICT_FORM),
        }
