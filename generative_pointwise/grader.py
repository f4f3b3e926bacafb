"""The trained judge as OpenJudge's grader: `await grader.aevaluate(query=..., response=...)` gives a score of 0 to 4.

    from grader import PointwiseGrader
    grader = PointwiseGrader("outputs/checkpoint")                          # in this process
    grader = PointwiseGrader("my-judge", "http://localhost:8000/v1")        # or behind an endpoint

One prompt and one parser for training, `evaluate.py` and here, so one verdict. Only `common` is imported: this file
works from any folder, beside other methods' graders.
"""

from typing import Any

from common.conversation import Conversation
from common.grading import GraderScore, read_query, read_response
from common.judge import HELPFULNESS, POINTWISE_PROMPT, parse_score, pointwise_prompt
from common.judge_grader import JudgeGrader, no_verdict, reasoning_of


class PointwiseGrader(JudgeGrader):
    """Scores one response; see `JudgeGrader` for its settings."""

    default_rubric = HELPFULNESS

    async def grade(self, query: str | Conversation, response: str, **_: Any) -> GraderScore:
        """Score a response to a query.

        Args:
            query: text, or the whole dialogue: messages or JSON text of them.

        Raises:
            BadRow, NoVerdict, EndpointError: which `aevaluate` returns as `GraderError`.
        """
        given = await self.ask(pointwise_prompt(read_query(query), read_response(response), self.rubric))
        score = parse_score(given)
        if score is None:
            raise no_verdict(given)
        return GraderScore(name=self.name, score=score, reason=reasoning_of(given), metadata={"answer": str(given)})

    @staticmethod
    def get_metadata() -> dict[str, Any]:
        return {
            "score": "0, 1, 2, 3 or 4, more is better; the rubric, which is part of the prompt, says what each means",
            "reason": "what the judge wrote before its verdict",
            "error": "no answer, or none with exactly one well-formed verdict; there is no fallback score",
            "aevaluate": PointwiseGrader.grade.__doc__,
            "prompt": POINTWISE_PROMPT,
        }
