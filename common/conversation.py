"""Conversations and responses in a table's cells: read and checked.

A cell may hold a native list<struct<role, content>>, JSON text of the same, or plain text. All become plain Python. A
broken message is reported, never repaired: training would use a guessed role or an emptied content as if it were true.

Exports wrap JSON in many ways: encoded twice, with a byte-order mark, inside an object or another list, as Python's
repr. What can mean only one thing is read. Text that looks like messages and cannot be read is an error. As plain text
it would be trained on with all its brackets, and nothing would say so.
"""

import ast
import json
import re
import unicodedata

ROLES = ("system", "user", "assistant", "tool")
# text that starts like a list or an object, in quotes or not, and soon says who speaks
LOOKS_LIKE_MESSAGES = re.compile(
    r"""b?["'\\\s]*(\w{1,9}\(|\()?["'\\\s]*[\[{][\s\[{]*(?=\\*["']\w+\\*["']\s*:).{0,2000}?\\*["']"""
    r"""((role|from)\\*["']\s*:\s*\\*["'](system|developer|user|human|assistant|gpt|tool|function)"""
    r"""|(messages|conversations?)\\*["']\s*:\s*\\*["']?\[)""",
    re.DOTALL | re.IGNORECASE,
)
AROUND = "\ufeff\u200b\u2060 \t\r\n"  # what exports leave around JSON; the first is the byte-order mark
WRAPPERS = ("messages", "conversation", "conversations")  # an object's keys under which a conversation stands
BESIDE = re.compile(r"((.*_)?(id|idx|index|uuid|hash)|source|dataset|model|lang(uage)?|(num_)?turns?)", re.IGNORECASE)
INVISIBLE = "\u034f\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols without a glyph
RESPONSE_FORM = '{"answer": {"role": "assistant", "content": text}}'

Conversation = list[dict[str, str]]


class DataError(ValueError):
    """Input that cannot be used. Its text is for the user: what was found where, what is expected, what to do."""


class BadRow(ValueError):
    """The fault of one row. `kind` groups equal faults for the count, `found` shows the wrong value, also None."""

    def __init__(self, column: str, kind: str, *found: object):
        super().__init__(kind)
        self.column, self.kind = column, kind
        self.found = "".join(f" (found {_shorten(value)})" for value in found)

    @property
    def told(self) -> str:
        """The whole fault for someone who gave arguments: "query: empty (found '')"."""
        return f"{self.column}: {self.kind}{self.found}"

    @property
    def in_column(self) -> str:
        """The whole fault for someone who gave a table: "column 'query': empty (found '')"."""
        return f"column '{self.column}': {self.kind}{self.found}"


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def read_conversation(column: str, value: object) -> Conversation | str:
    """Return a cell as messages that end with the assistant's response, or as plain text.

    Raises:
        BadRow: as for `read_messages`; a conversation that does not end with the assistant; an empty response.
    """
    messages = read_messages(column, value)
    if not isinstance(messages, str):
        check_response(column, messages)
    return messages


def check_response(column: str, messages: Conversation) -> None:
    """Raise `BadRow` if the conversation does not end with the assistant, or its response is empty."""
    check_last_turn(column, messages)
    if is_blank(messages[-1]["content"]):
        raise BadRow(column, "empty response", messages[-1]["content"])


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: white space, control and zero-width characters alone."""
    return all(
        unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs", "Mn") or character in INVISIBLE
        for character in text
    )


def check_last_turn(column: str, messages: Conversation) -> None:
    """Raise `BadRow` if the conversation does not end with the assistant."""
    if messages[-1]["role"] != "assistant":
        raise BadRow(column, "the last turn is not the assistant's", f"role {messages[-1]['role']!r}")


def read_messages(column: str, value: object) -> Conversation | str:
    """Return a cell as messages with `role` and `content` only, whoever speaks last, or as plain text.

    Raises:
        BadRow: not text, JSON or messages; JSON that cannot be parsed; a message without role or content; an unknown
            role; content that is not text.
    """
    value = unwrap(column, value)
    if isinstance(value, str):
        if is_blank(value):
            raise BadRow(column, "empty text")
        return check_unicode(column, value)
    if not isinstance(value, list) or not value:
        raise BadRow(column, "expected a list of messages, JSON text of one, or plain text", value)
    return [_read_message(column, position, message) for position, message in enumerate(value)]


def unwrap(column: str, value: object) -> object:
    """Return the list of messages that a cell holds, however it is wrapped, or the cell as it is.

    Raises:
        BadRow: text that looks like messages and cannot be read; several conversations; an object that says more than
            its messages.
    """
    if isinstance(value, str):
        return _unwrap_text(column, value)
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        if len(value) > 1:
            raise BadRow(column, "several conversations in one cell, expected one", value)
        return unwrap(column, value[0])
    if isinstance(value, dict) and (keys := [key for key in WRAPPERS if value.get(key)]):
        if beside := [
            key for key, found in value.items() if found and key not in keys[:1] and not BESIDE.fullmatch(key)
        ]:
            kind = f"an object with {', '.join(beside)} beside its {keys[0]}; give the messages alone"
            raise BadRow(column, kind, value)
        return unwrap(column, value[keys[0]])
    return value


def _unwrap_text(column: str, text: str) -> object:
    bare = text.strip(AROUND)
    if not LOOKS_LIKE_MESSAGES.match(bare):
        return text
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        try:
            value = ast.literal_eval(bare)  # Python's repr of messages
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadRow(column, "JSON that cannot be parsed", f"{error}: {text}") from error
    if isinstance(value, dict) and not {"content", "value", *WRAPPERS} & value.keys():
        return text  # an object that is not about messages
    return unwrap(column, value)


def read_json(column: str, value: object) -> object:
    """Return what a cell of JSON text holds, and any other cell as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(column, "JSON that cannot be parsed", f"{error}: {value}") from error


def _read_message(column: str, position: int, message: object) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") is None or message.get("content") is None:
        raise BadRow(column, "a message without role or content", f"message {position}: {message!r}")
    if message["role"] not in ROLES:
        raise BadRow(column, f"unknown role, expected one of {', '.join(ROLES)}", message["role"])
    if not isinstance(message["content"], str):
        raise BadRow(column, "a message whose content is not text", message["content"])
    for key in ("reasoning_content", "reasoning", "thinking"):
        if message.get(key):
            kind = f"a message with {key}; write it into the content, between <think> and </think>"
            raise BadRow(column, kind, message[key])
    if message.get("tool_calls"):
        raise BadRow(column, "a message with tool calls; write them into the content as text", message["tool_calls"])
    return {"role": message["role"], "content": check_unicode(column, message["content"])}


def check_unicode(column: str, text: str) -> str:
    """Return the text. Raise `BadRow` if it holds half of an emoji: JSON can escape that, but no tokenizer takes it."""
    if re.search("[\ud800-\udfff]", text):
        raise BadRow(column, "text that is not Unicode, half of a surrogate pair", text)
    return text


def read_dialogue(value: object, column: str = "input") -> Conversation:
    """Return what is answered, a dialogue or a query, as messages; plain text is the user's."""
    dialogue = read_messages(column, value)
    return [{"role": "user", "content": dialogue}] if isinstance(dialogue, str) else dialogue


def read_response(response: object, column: str = "response") -> str:
    """Return a response, which may be empty: an empty response is a bad one. Raise `BadRow` if it is not text."""
    if not isinstance(response, str):
        raise BadRow(column, "expected text", response)
    return check_unicode(column, response)


def read_responses(value: object, least: int, most: int | None = None, column: str = "output") -> list[str]:
    """Return the texts of a cell of responses, each as `RESPONSE_FORM`; the cell may be JSON text.

    Raises:
        BadRow: fewer than `least` or more than `most` responses (None: no limit), or another form.
    """
    answers = read_json(column, value)
    if not isinstance(answers, list) or len(answers) < least or len(answers) > (most or len(answers)):
        number = f"{least} or more responses" if most is None else f"{least} response{'s' * (least > 1)}"
        raise BadRow(column, f"expected a list of {number}, each {RESPONSE_FORM}", value)
    return [_read_answer(answer, column) for answer in answers]


def _read_answer(answer: object, column: str) -> str:
    message = answer.get("answer") if isinstance(answer, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or message.get("role") not in (None, "assistant"):
        raise BadRow(column, f"expected each response as {RESPONSE_FORM}", answer)
    return check_unicode(column, text)


def read_marked_turns(text: str) -> Conversation:
    """Return a prompt of HelpSteer2 as messages: the user's, then each below its mark, "<extra_id_1>Assistant"."""
    if not isinstance(text, str):
        raise BadRow("prompt", "expected text", text)
    parts = re.split(r"\n*<extra_id_1>(User|Assistant)\n", "<extra_id_1>User\n" + text)[1:]
    return [{"role": role.lower(), "content": content} for role, content in zip(parts[::2], parts[1::2])]


def read_transcript(column: str, text: str) -> Conversation:
    """Return a dialogue of hh-rlhf as messages: one text, "\\n\\nHuman: …\\n\\nAssistant: …" turn by turn."""
    if not isinstance(text, str):
        raise BadRow(column, "expected text", text)
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": turn.strip()} for name, turn in zip(parts[::2], parts[1::2])]
