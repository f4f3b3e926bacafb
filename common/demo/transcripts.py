"""Conversations of a judge in the demo world: how a response is scored, how two are compared.

They are the demo data of `sft`, and text for the tiny model's tokenizer. The questions are those of the two judges'
prompt.py, written out once more because this room knows no method; a test compares them. Nothing is quoted: no text of
the demo world holds a tag.
"""

from common.conversation import Conversation
from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC

SCORE_QUESTION = """\
Score how well the response answers the dialogue.

{rubric}

<dialogue>
<user>
{query}
</user>
</dialogue>
<response>
{response}
</response>

Reason between <think> and </think>. Then write only the score, 0 to 4, between <score> and </score>."""
PREFERENCE_QUESTION = """\
Compare how well two responses answer the dialogue.

{rubric}

<dialogue>
<user>
{query}
</user>
</dialogue>
<response_a>
{response_a}
</response_a>
<response_b>
{response_b}
</response_b>

Reason between <think> and </think>. Then write only the better one, A, B or tie, between <preference> and \
</preference>."""


def scoring(row: dict) -> Conversation:
    """Return a row of `pointwise_rows` as a judge's conversation."""
    query, (response,) = _texts(row)
    question = SCORE_QUESTION.format(rubric=SCORE_RUBRIC, query=query, response=response)
    return _conversation(question, row["reasoning"], f"<score>{row['label']}</score>")


def comparing(row: dict) -> Conversation:
    """Return a row of `pairwise_rows` as a judge's conversation, the responses in the order as given."""
    query, (response_a, response_b) = _texts(row)
    responses = {"response_a": response_a, "response_b": response_b}
    question = PREFERENCE_QUESTION.format(rubric=PREFERENCE_RUBRIC, query=query, **responses)
    preferred = row["metadata"]["preferred"]
    return _conversation(question, row["reasoning"], f"<preference>{preferred}</preference>")


def _texts(row: dict) -> tuple[str, list[str]]:
    return row["input"][0]["content"], [response["answer"]["content"] for response in row["output"]]


def _conversation(question: str, reasoning: str, verdict: str) -> Conversation:
    answer = f"<think>\n{reasoning}\n</think>\n\n{verdict}"  # the line breaks are those of Qwen3's chat template
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
