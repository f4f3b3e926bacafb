"""OpenJudge's own prompts and verdicts, for a judge that is to stand behind its unmodified graders.

- The prompt is not written here. The grader of the installed package is called with a model that only notes what it is
  sent. So whatever a grader does before it asks, and whatever version is installed, training sees what serving sees.
- The verdict is one JSON object, as these graders ask for. It is read more strictly than OpenJudge reads it: to its
  parser "3", true, 3.7, 11 and NaN are scores, and a key given twice is its last value. Here they are no verdict.
- OpenJudge does not quote what is judged, so text in a response can close the response and go on as the prompt. Only
  special tokens are broken, when training and evaluation render the prompt (`tokens.py`). A judge's own prompt is
  safer: see `quoting.py`.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from common.conversation import Conversation, DataError, check_unicode

# what the grader gets for an answer; it is of both kinds
ANY_VERDICT = {"score": 1, "rank": [1, 2], "reason": ""}


@cache
def graders_model() -> Any:
    """Return the model that notes what it is sent, in `messages`. Raise `DataError` if OpenJudge is not installed."""
    try:
        from openjudge.models.base_chat_model import BaseChatModel
        from openjudge.models.schema.oai.response import ChatResponse
    except ModuleNotFoundError as error:
        raise DataError(f"{error}: the prompt is OpenJudge's, `pip install -e '.[grader]'`") from error

    class Noting(BaseChatModel):
        messages: list[dict] | None = None

        async def achat(self, messages: list[dict], **_: Any) -> ChatResponse:
            self.messages = messages
            return ChatResponse(role="assistant", content="", parsed=dict(ANY_VERDICT))

        def __deepcopy__(self, memo: dict) -> "Noting":
            return self  # OpenJudge copies a grader for each call

    return Noting("noting", stream=False)


@cache
def built(make_grader: Callable) -> Any:
    """Return the grader that `make_grader(model)` builds, around the model that notes what it is sent."""
    return make_grader(graders_model())


def messages_of(make_grader: Callable, **evaluated: Any) -> Conversation:
    """Return what a grader sends to its model when it is called so.

    Raises:
        DataError: it sends nothing, or needs more than the model's answer.
    """
    model, grader = graders_model(), built(make_grader)
    model.messages = None
    call = grader.aevaluate(**evaluated)
    try:
        call.send(None)  # without a loop, as this is called from within one too: the model answers at once
    except StopIteration:
        pass
    else:
        call.close()
        raise DataError(f"{type(grader).__name__} waits for something else than its model, so its prompt is not known")
    if not model.messages:
        raise DataError(f"{type(grader).__name__} asked its model nothing when it was called with {sorted(evaluated)}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in model.messages]


def query_of(dialogue: Conversation) -> str:
    """Return a dialogue as the query of a grader: its one turn of the user, or else all turns with their roles.

    Whoever calls the trained judge with a longer dialogue should write it in the same way.
    """
    if [turn["role"] for turn in dialogue] == ["user"]:
        return dialogue[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in dialogue)


def read_json_verdict(text: str, key: str) -> tuple[object, str] | None:
    """Read a verdict from an answer that is one JSON object of `key` and "reason", and nothing else.

    A think block may stand before it, closed by the one `</think>`: a chat template writes an empty one where thinking
    is switched off, and a server's reasoning parser takes it away.

    Returns:
        What stands under `key`, whatever it is, and the reason; None for anything else.
    """
    thought, closing, rest = text.partition("</think>")
    if closing and "<think>" in thought.lstrip().removeprefix("<think>"):
        return None
    try:
        found = json.loads(rest if closing else text, object_pairs_hook=_no_key_twice, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {key, "reason"} or not isinstance(found["reason"], str):
        return None
    return None if re.search("[\ud800-\udfff]", found["reason"]) else (found[key], found["reason"])


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def write_json_verdict(**parts: object) -> str:
    """Return the JSON object that `read_json_verdict` reads, in the order of its parts."""
    check_unicode("reasoning", str(parts["reason"]))
    return json.dumps(parts, ensure_ascii=False)
