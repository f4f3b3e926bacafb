"""A grader as a scorer of inspect_ai: `Task(dataset, scorer=graded_by(PointwiseGrader("outputs/checkpoint")))`.

What cannot be graded is unscored, with the reason in the log. inspect_ai leaves it out of the mean; it is never a 0.
"""

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from common.grading.contract import Grader, GraderError


@scorer(metrics=[mean(), stderr()])
def graded_by(grader: Grader, against_target: bool = False) -> Scorer:
    """Score the last answer of each sample, given the dialogue before it.

    Args:
        against_target: the grader compares the answer with the sample's target: 1 better, 0.5 a tie, 0 worse.
    """

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        before = state.messages[:-1] if state.messages[-1].role == "assistant" else state.messages
        asked = {"response_a": answer, "response_b": target.text} if against_target else {"response": answer}
        query = [{"role": message.role, "content": message.text} for message in before]
        found = await grader.aevaluate(query=query, **asked)
        if isinstance(found, GraderError):
            return Score.unscored(answer=answer, reason="grader_failed", explanation=found.error)
        return Score(value=found.score, answer=answer, explanation=found.reason, metadata=found.metadata)

    return score
