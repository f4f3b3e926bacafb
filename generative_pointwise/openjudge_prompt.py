"""Prompt and verdict of an OpenJudge grader, in place of those of prompt.py: for a judge that replaces its API model.

In a copy of this folder, prompt.py takes all that differs from here, by one more line at its end:

    cp -r generative_pointwise relevance
    echo 'from .openjudge_prompt import *  # noqa: E402, F403' >> relevance/prompt.py

Data, training, reward, evaluation and grader of the copy then follow. Its trained model, served, answers the
unmodified grader. **Edit `make_grader`, `call` and `SCORES`** for another grader.
"""

from typing import Any

from common.conversation import Conversation, DataError
from common.judging.openjudge_prompts import messages_of, query_of, read_json_verdict, write_json_verdict
from common.judging.quoting import quote

__all__ = ["FRAME", "PROMPT", "RUBRIC", "SCORES", "VERDICTS", "VERDICT_FORM"]
__all__ += ["ask", "parse", "retell", "write"]

SCORES = range(1, 6)  # the grader's scale, and that of your labels
VERDICTS = tuple(SCORES)


def make_grader(model: Any):
    """Return the grader, as your evaluation builds it."""
    from openjudge.graders.common.relevance import RelevanceGrader

    return RelevanceGrader(model=model)


def call(dialogue: Conversation, response: str) -> dict[str, str]:
    """Return what the grader is called with."""
    return {"query": query_of(dialogue), "response": response}


RUBRIC = "the prompt of OpenJudge's grader"  # it has no place for another one
VERDICT_FORM = ""
# only for its tags: no text of the grader's prompt is one of a tokenizer's special tokens
PROMPT = FRAME = "the prompt is that of OpenJudge's grader"


def ask(dialogue: Conversation, response: str, rubric: str = RUBRIC) -> Conversation:
    """Return what the grader sends. It is not quoted: see `openjudge_prompts.py`."""
    if rubric != RUBRIC:
        raise DataError(f"the grader's prompt has its own rubric, and no place for this one: {rubric[:60]!r}")
    return messages_of(make_grader, **call(dialogue, response))


def write(score: int, reasoning: str = "") -> str:
    """Return the answer that `parse` reads as `score`: reason, then score, as the grader asks for them."""
    if score not in SCORES:
        raise ValueError(f"score is {score!r}, expected {SCORES[0]} to {SCORES[-1]}")
    return write_json_verdict(reason=quote(reasoning).strip(), score=score)


def parse(text: str) -> int | None:
    """Read the score from an answer, one JSON object with a whole number of the scale; None for anything else."""
    found = read_json_verdict(text, "score")
    return found[0] if found and type(found[0]) is int and found[0] in SCORES else None


def retell(score: int, answer: str) -> str:
    """Return a teacher's answer, which gives this score, in the form of `write`: what a student should answer."""
    _, reason = read_json_verdict(answer, "score")
    return write(score, reason)
