"""Conversations in a table's cell: read, checked, and keyed by their prompt.

A cell may hold native list<struct<role, content>>, JSON text of the same, or plain text; all become plain Python. A
broken message is named, never repaired: a role guessed or a content emptied would be trained on.
"""

import json
import os
import re

ROLES = ("system", "user", "assistant", "tool")
# a list of objects, or one object that looks like a message: JSON, and an error if it does not hold a conversation
JSON_CONVERSATION = re.compile(r'\s*(\[\s*\{|\{\s*"(role|content|from|messages)")')

Conversation = list[dict[str, str]]


class DataError(ValueError):
    """Input that cannot be trained on. Its text is for the user: what was found where, what is expected, what to do."""


class BadRow(ValueError):
    """One row's fault. `kind` groups equal faults for the count, `found` shows the offending value, None too."""

    def __init__(self, column: str, kind: str, *found: object):
        super().__init__(kind)
        self.column, self.kind = column, kind
        self.found = "".join(f" (found {_shorten(value)})" for value in found)


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _is_json(value: object) -> bool:
    """Tell a conversation as JSON text from plain text."""
    return isinstance(value, str) and bool(JSON_CONVERSATION.match(value))


def read_conversation(column: str, value: object) -> Conversation | str:
    """Return a cell as messages that end with the assistant's response, or as plain text.

    Raises:
        BadRow: as for `read_messages`; a conversation that does not end with the assistant; an empty response.
    """
    messages = read_messages(column, value)
    if isinstance(messages, str):
        return messages
    check_last_turn(column, messages)
    if not messages[-1]["content"].strip():
        raise BadRow(column, "empty response", messages[-1]["content"])
    return messages


def check_last_turn(column: str, messages: Conversation) -> None:
    """Raise `BadRow` where the assistant has not the last word."""
    if messages[-1]["role"] != "assistant":
        raise BadRow(column, "the last turn is not the assistant's", f"role {messages[-1]['role']!r}")


def read_messages(column: str, value: object) -> Conversation | str:
    """Return a cell as messages with `role` and `content` only, whoever has the last word, or as plain text.

    Raises:
        BadRow: not text, JSON or messages; JSON that does not parse; a message without role or content; an unknown
            role; content that is not text.
    """
    if isinstance(value, str):
        if not _is_json(value):
            if not value.strip():
                raise BadRow(column, "empty text")
            return check_unicode(column, value)
        value = read_json(column, value)
    if not isinstance(value, list) or not value:
        raise BadRow(column, "expected a list of messages, JSON text of one, or plain text", value)
    return [_read_message(column, position, message) for position, message in enumerate(value)]


def read_json(column: str, value: object) -> object:
    """Return what a cell of JSON text holds, and any other cell as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        raise BadRow(column, "JSON that does not parse", f"{error}: {value}") from error


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
        raise BadRow(column, "a message with tool calls, which only text can stand for", message["tool_calls"])
    return {"role": message["role"], "content": check_unicode(column, message["content"])}


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


def check_unicode(column: str, text: str) -> str:
    """Return the text, if it is one: JSON can escape half an emoji, which no tokenizer and no file takes."""
    if re.search("[\ud800-\udfff]", text):
        raise BadRow(column, "text that is not Unicode, half of a surrogate pair", text)
    return text


def prompt_of(row: dict) -> str:
    """Return what a row's answers answer: the key by which rows stay together in a split."""
    columns = {name: row[name] for name in ("input", "messages", "chosen", "rejected") if name in row}
    row = {name: json.loads(value) if _is_json(value) else value for name, value in columns.items()}
    if "input" in row:
        return json.dumps(row["input"], sort_keys=True)
    if "messages" in row:
        return json.dumps(row["messages"][:-1], sort_keys=True)
    if isinstance(row["chosen"], str):  # plain text: what both sides share, up to its last line or else word
        shared = os.path.commonprefix([row["chosen"], row["rejected"]])
        return shared.rpartition("\n")[0] or shared.rpartition(" ")[0] or row["chosen"] + row["rejected"]
    return json.dumps(row["chosen"][:-1], sort_keys=True)
