"""The trained judge as OpenJudge's grader: `await grader.aevaluate(query=..., response=...)` gives a score of 0 to 4.

    from generative_pointwise.grader import PointwiseGrader
    grader = PointwiseGrader("outputs/checkpoint")                          # in this process
    grader = PointwiseGrader("my-judge", "http://localhost:8000/v1")        # or behind an endpoint

Training, evaluate.py and this grader have one prompt and one parser, those of prompt.py, and so one verdict.
"""

from typing import Any

from common.conversation import Conversation, read_dialogue, read_response
from common.grading.contract import GraderScore
from common.judging.grader import JudgeGrader
from common.judging.soft import Verdicts

from .prompt import (
    FRAME,
    PROMPT,
    RUBRIC,
    SCORES,
    VERDICT_FORM,
    VERDICTS,
    ask,
    decide,
    expected_score,
    parse,
    write,
)


class PointwiseGrader(JudgeGrader):
    """Scores one response; see `JudgeGrader` for its settings."""

    default_rubric = RUBRIC
    frame = FRAME
    verdicts = Verdicts.of(VERDICTS, write, parse)
    decide = decide

    async def grade(self, query: str | Conversation, response: str, **_: Any) -> GraderScore:
        """Score a response to a query.

        Args:
            query: text, or the whole dialogue: messages or JSON text of them.

        Raises:
            BadRow, NoVerdict, EndpointError: which `aevaluate` returns as `GraderError`.
        """
        prompt = ask(read_dialogue(query, "query"), read_response(response), self.rubric)
        judged = await self.judge(prompt)
        score = expected_score(judged.probabilities) if self.soft else judged.verdict
        return GraderScore(name=self.name, score=score, reason=judged.reason, metadata=judged.said())

    @staticmethod
    def get_metadata() -> dict[str, Any]:
        return {
            "score": f"a whole number from {SCORES[0]} to {SCORES[-1]}, more is better; the rubric, which is part of "
            "the prompt, says what each means. With soft=True the mean over the probabilities of all scores",
            "reason": "what the judge wrote before its verdict",
            "error": "no answer, or none with exactly one well-formed verdict; there is no fallback score",
            "aevaluate": PointwiseGrader.grade.__doc__,
            "prompt": PROMPT.replace("{verdict_form}", VERDICT_FORM),
        }
