"""A grader as a scorer of inspect_ai: `Task(dataset, scorer=graded_by(PointwiseGrader("outputs/checkpoint")))`.

What cannot be graded is unscored, with the reason in the log. inspect_ai leaves it out of the mean; it is never a 0.
"""

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from common.grading.contract import Grader, GraderError

TEXTS = {"text", "reasoning"}  # kinds of content that are shown to a grader, the second without its reasoning


@scorer(metrics=[mean(), stderr()])
def graded_by(grader: Grader, against_target: bool = False) -> Scorer:
    """Score the last answer of each sample, given the dialogue before it.

    Args:
        against_target: the grader compares the answer with the sample's one target: 1 better, 0.5 a tie, 0 worse.
    """

    async def score(state: TaskState, target: Target) -> Score:
        *before, last = state.messages
        answer, targets = state.output.completion, [text for text in target.target if text.strip()]
        if last.role != "assistant" or last.text != answer:
            return unscored(answer, "the dialogue does not end with the answer")
        if not all(is_plain(message) for message in before):
            return unscored(answer, "the dialogue has messages that are not text alone: images, tools, …")
        if against_target and len(targets) != 1:
            return unscored(answer, f"an answer is compared with one target, and this sample has {len(targets)}")
        asked = {"response_a": answer, "response_b": targets[0]} if against_target else {"response": answer}
        query = [{"role": message.role, "content": message.text} for message in before]
        found = await grader.aevaluate(query=query, **asked)
        if isinstance(found, GraderError):
            return unscored(answer, found.error)
        return Score(value=found.score, answer=answer, explanation=found.reason, metadata=found.metadata)

    return score


def is_plain(message) -> bool:
    kinds = set() if isinstance(message.content, str) else {part.type for part in message.content}
    return kinds <= TEXTS and message.role != "tool" and not getattr(message, "tool_calls", None)


def unscored(answer: str, reason: str) -> Score:
    return Score.unscored(answer=answer, reason="grader_failed", explanation=reason)
