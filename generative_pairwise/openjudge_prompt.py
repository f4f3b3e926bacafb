"""Prompt and verdict of an OpenJudge grader, in place of those of prompt.py: for a judge that replaces its API model.

In a copy of this folder, prompt.py takes all that differs from here, by one more line at its end:

    cp -r generative_pairwise ranker
    echo 'from .openjudge_prompt import *  # noqa: E402, F403' >> ranker/prompt.py

Data, training, reward, evaluation and grader of the copy then follow. Its trained model, served, answers the
unmodified grader. **Edit `make_grader` and `call`** for another grader, and `REASON_FIRST`. A grader in listwise mode
gives each response its rank, and knows no tie: leave tied rows out, with `--on-bad-row drop`.
"""

from typing import Any

from common.conversation import Conversation, DataError
from common.judging.openjudge_prompts import messages_of, query_of, read_json_verdict, write_json_verdict
from common.judging.quoting import quote

__all__ = ["FRAME", "PREFERENCES", "PROMPT", "RUBRIC", "SWAPPED", "VERDICTS", "VERDICT_FORM"]
__all__ += ["ask", "parse", "retell", "write"]

PREFERENCES = VERDICTS = ("A", "B")
SWAPPED = {"A": "B", "B": "A"}
RANKS = {"A": [1, 2], "B": [2, 1]}  # of the two responses, 1 the better
# Whether the judge writes its reason before the ranks, and so can use it. The grader asks for the ranks first, and
# OpenJudge reads both. But a server that forces answers into the schema that OpenJudge sends forces the ranks first.
REASON_FIRST = False


def make_grader(model: Any):
    """Return the grader, as your evaluation builds it: here with the prompt of OpenJudge's generators."""
    from openjudge.generator.iterative_rubric.query_rubric_generator import LISTWISE_EVALUATION_TEMPLATE
    from openjudge.graders.llm_grader import GraderMode, LLMGrader

    return LLMGrader(
        model=model,
        name="ranker",
        mode=GraderMode.LISTWISE,
        language="en",
        template=LISTWISE_EVALUATION_TEMPLATE,
        rubrics="Does the response do what the query asks for?",
        task_description_section="",
    )


def call(dialogue: Conversation, response_a: str, response_b: str) -> dict[str, Any]:
    """Return what the grader is called with."""
    shown = f"Response 1:\n{response_a}\n\nResponse 2:\n{response_b}"
    return {"query": query_of(dialogue), "responses": shown, "num_responses": 2}


RUBRIC = "the prompt of OpenJudge's grader"  # it has no place for another one
VERDICT_FORM = ""
# only for its tags: no text of the grader's prompt is one of a tokenizer's special tokens
PROMPT = FRAME = "the prompt is that of OpenJudge's grader"


def ask(dialogue: Conversation, response_a: str, response_b: str, rubric: str = RUBRIC) -> Conversation:
    """Return what the grader sends. It is not quoted: see `openjudge_prompts.py`."""
    if rubric != RUBRIC:
        raise DataError(f"the grader's prompt has its own rubric, and no place for this one: {rubric[:60]!r}")
    return messages_of(make_grader, **call(dialogue, response_a, response_b))


def write(preference: str, reasoning: str = "") -> str:
    """Return the answer that `parse` reads as `preference`: ranks and reason, in the order that is wanted."""
    if preference not in PREFERENCES:
        raise ValueError(f"preference is {preference!r}, expected one of {', '.join(PREFERENCES)}")
    ranks, reason = {"rank": RANKS[preference]}, {"reason": quote(reasoning).strip()}
    return write_json_verdict(**(reason | ranks if REASON_FIRST else ranks | reason))


def parse(text: str) -> str | None:
    """Read the preference from an answer, one JSON object with the ranks of two responses; None for anything else."""
    found = read_json_verdict(text, "rank")
    ranks = found[0] if found else None
    if not isinstance(ranks, list) or any(type(rank) is not int for rank in ranks):
        return None
    return next((preference for preference in PREFERENCES if RANKS[preference] == ranks), None)


def retell(preference: str, answer: str) -> str:
    """Return a teacher's answer, which gives this preference, in the form of `write`: what a student should answer."""
    _, reason = read_json_verdict(answer, "rank")
    return write(preference, reason)
