"""Preference pairs as two whole conversations or texts, whatever columns the data says them in.

    chosen, rejected             whole conversations, or whole plain texts
    prompt, chosen, rejected     the dialogue so far, or a question as text, and two answers to it
    system                       a system message for both

A reward model that is trained on answers without their question learns style alone, and its loss looks fine. So each
column that may be part of the prompt is read, or found again in the conversations, or named as a fault. And two sides
that answer different prompts are no preference: they are a fault unless someone asks to keep them.
"""

import os
import re

from common.conversation import (
    BadRow,
    Conversation,
    check_response,
    is_blank,
    read_messages,
    unwrap,
)

Side = Conversation | str
DIFFERENT_PROMPTS = ("error", "keep")
# Columns that may hold a part of the prompt: "question", "user_prompt", "full_instruction"; not "question_id".
PART_OF_PROMPT = re.compile(
    r"(.*_)?(prompts?|questions?|instructions?|quer(y|ies)|input|problem|system|context|history|dialog(ue)?|"
    r"conversations?|messages|user|human|request|post|article|passage|document|background)(_text|_message|_prompt)?",
    re.IGNORECASE,
)
# Where an answer begins in rendered or written-out dialogues, for certain and by custom; and where a user's turn does
ANSWER_MARK = re.compile(
    r"\n\n?Assistant:|<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>|\[/INST\]|"
    r"<start_of_turn>model\n|<\|assistant\|>|### ?(?:Response|Assistant):"
)
CUSTOMARY_MARK = re.compile(r"(?:^|\n)(?:Answer|Response|Reply|Output|A|ASSISTANT|Bot|AI):")
USER_MARK = re.compile(
    r"\n\n?Human:|<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>|\[INST\]|<start_of_turn>user\n|"
    r"<\|user\|>|### ?(?:Instruction|Human|User):"
)
END_OF_TURN = re.compile(r"<\|[^|<>\s]{1,30}\|>|</s>|<end_of_turn>|<eos>")
FEW_WORDS = 3


def prompt_columns(names: list[str]) -> tuple[str, ...]:
    """Return which columns may hold a part of the prompt."""
    return tuple(name for name in names if PART_OF_PROMPT.fullmatch(name))


def optional_columns(names: list[str]) -> tuple[str, ...]:
    """Return which columns of a file of pairs are read if they are there: the margin, and what may be of the prompt."""
    return ("margin", *prompt_columns(names))


def read_pair(row: dict, different_prompts: str = "error") -> tuple[Side, Side]:
    """Return the two sides of a row as whole conversations, or as whole plain texts.

    Args:
        row: `chosen` and `rejected`; `prompt`, `system` and columns like them if the data has them.
        different_prompts: "error", or "keep" sides that answer different prompts.

    Raises:
        BadRow: see `read_sides`; a side has no answer or no user's turn; both sides are equal; they answer different
            prompts.
    """
    sides = read_sides(row)
    chosen, rejected = sides["chosen"], sides["rejected"]
    if chosen == rejected:
        raise BadRow(
            "rejected", "chosen and rejected are equal", rejected if isinstance(rejected, str) else rejected[-1]
        )
    check_answers(sides)
    if different_prompts == "error":
        check_same_prompt(chosen, rejected)
    return chosen, rejected


def read_sides(row: dict) -> dict[str, Side]:
    """Return `chosen` and `rejected` as whole conversations or texts, with what other columns say of their prompt.

    Raises:
        BadRow: a side cannot be read; one side is text and the other a conversation; a column that looks like a part
            of the prompt is not in them.
    """
    sides = {name: read_messages(name, row[name]) for name in ("chosen", "rejected")}
    if isinstance(sides["chosen"], str) != isinstance(sides["rejected"], str):
        raise BadRow("rejected", "one side is plain text and the other a conversation")
    if not _is_empty(row.get("prompt")):
        sides = add_prompt(row["prompt"], sides)
    if not _is_empty(row.get("system")):
        sides = {name: add_system(row["system"], name, side) for name, side in sides.items()}
    check_columns(row, ("prompt", "system"), sides["chosen"])
    return sides


def _is_empty(value: object) -> bool:
    return value is None or value == [] or (isinstance(value, str) and is_blank(value))


def add_prompt(prompt: object, sides: dict[str, Side]) -> dict[str, Side]:
    """Return both sides with the prompt in front, unless they hold it already.

    - Messages continue the prompt's messages; turns that both have stand once.
    - A prompt of text is the user's question, and text sides are the assistant's answers; or all three are pieces of
      plain text, if the prompt ends with a mark at which an answer begins ("\\n\\nAssistant:").

    Raises:
        BadRow: they neither hold the prompt nor can follow it.
    """
    before = read_messages("prompt", prompt)
    plain = isinstance(sides["chosen"], str)
    if plain and isinstance(before, str):
        if all(_goes_on(side, before.rstrip()) for side in sides.values()):
            return sides
        marks = list(ANSWER_MARK.finditer(before))
        if marks and is_blank(before[marks[-1].end() :]):
            return {name: before + side for name, side in sides.items()}
    if plain:
        asked = [{"role": "user", "content": before}] if isinstance(before, str) else before
        if asked[-1]["role"] == "assistant":
            raise BadRow("prompt", "ends with the assistant's turn, and chosen and rejected are answers", before)
        return {name: [*asked, {"role": "assistant", "content": side}] for name, side in sides.items()}
    return {name: _continue(before, name, side) for name, side in sides.items()}


def _continue(before: Side, name: str, side: Conversation) -> Conversation:
    if isinstance(before, str):
        if any(before.strip() in turn["content"] for turn in side[:-1] if turn["role"] != "assistant"):
            return side
        if all(turn["role"] == "assistant" for turn in side):
            return [{"role": "user", "content": before}, *side]
        kind = "does not hold the text of the column 'prompt'. Give whole conversations, or answers alone"
        raise BadRow(name, kind, side)
    if side[0]["role"] == "system" and side[1 : 1 + len(before)] == before:
        return side
    for shared in range(min(len(before), len(side)), 0, -1):  # turns that both have stand once
        if before[-shared:] == side[:shared]:
            return [*before, *side[shared:]]
    follows = {"system": ("user", "assistant"), "user": ("assistant",), "assistant": ("user",), "tool": ("assistant",)}
    if side[0]["role"] not in follows[before[-1]["role"]]:
        kind = "neither holds nor follows the messages of the column 'prompt'"
        raise BadRow(name, kind, side)
    return [*before, *side]


def _goes_on(text: str, prompt: str) -> bool:
    """Return whether a text is a prompt and more; an answer may begin with a word of a short prompt ("Hi", "Hi.")."""
    rest = text.removeprefix(prompt)
    return text.startswith(prompt) and (len(prompt.split()) >= FEW_WORDS or not rest or rest[0].isspace())


def add_system(system: object, name: str, side: Side) -> Side:
    """Return a side with the system message in front, unless it holds it already.

    Raises:
        BadRow: the side has another system message, or is plain text that does not hold it.
    """
    message = read_messages("system", system)
    text = message if isinstance(message, str) else "\n".join(turn["content"] for turn in message)
    if isinstance(side, str):
        check_held("system", text, side)
        return side
    if side[0]["role"] != "system":
        return [{"role": "system", "content": text}, *side]
    if text.strip() not in side[0]["content"]:
        raise BadRow(name, "has another system message than the column 'system'", side[0]["content"])
    return side


def check_columns(row: dict, read: tuple[str, ...], side: Side) -> None:
    """Call `check_held` for each column that looks like a part of the prompt, but for those that are read anyway."""
    for column in prompt_columns(list(row)):
        if column not in read:
            check_held(column, row[column], side)


def check_held(column: str, value: object, side: Side) -> None:
    """Raise `BadRow` if a column that looks like a part of the prompt holds text that the side lacks."""
    value = unwrap(column, value)
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("content", part) if isinstance(part, dict) else part for part in parts]
    seen = side if isinstance(side, str) else "\n".join(turn["content"] for turn in side)
    for text in texts:
        if text is None or isinstance(text, bool | int | float) or (isinstance(text, str) and is_blank(text)):
            continue
        if not isinstance(text, str) or text.strip() not in seen:
            kind = (
                "looks like a part of the prompt, and the conversations do not hold it. If it belongs there, put it "
                "into them (or into `system`, of pairs also into `prompt`); else give it another name, or take it out"
            )
            raise BadRow(column, kind, text)


def check_answers(sides: dict[str, Side]) -> None:
    """Raise `BadRow` if a side has no answer, does not end with the assistant, or answers no user."""
    if isinstance(sides["chosen"], str):
        _, *answers = split_texts(*sides.values())
        for (name, text), answer in zip(sides.items(), answers):
            if is_blank(END_OF_TURN.sub("", answer)):
                raise BadRow(name, "empty response", text)
        return
    for name, side in sides.items():
        check_response(name, side)
        if not any(turn["role"] == "user" for turn in side):
            kind = "no turn of a user: the question is missing. Put it into the conversation, or into a column `prompt`"
            raise BadRow(name, kind, side)


def check_same_prompt(chosen: Side, rejected: Side) -> None:
    """Raise `BadRow` if the sides answer different prompts."""
    if isinstance(chosen, str):
        same, found = share_prompt(chosen, rejected), rejected
    else:
        same, found = chosen[:-1] == rejected[:-1], rejected[:-1]
    if not same:
        kind = "chosen and rejected answer different prompts"
        if isinstance(chosen, str) and not split_texts(chosen, rejected)[0].strip():
            kind += ", or the question stands in a column that is not read (call it `prompt`)"
        keep = "; data.different_prompts=keep (--different-prompts keep) keeps such pairs"
        raise BadRow("rejected", kind + keep, found)


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return what two plain texts share as their prompt, and what each of them answers.

    The prompt ends with the last mark of an answer ("\n\nAssistant:") that both have; without marks with the last
    line, or else with the last word, that both have.
    """
    shared = os.path.commonprefix([chosen, rejected])
    if marks := _marks(shared):
        end = marks[-1]
    elif _is_prompt_alone(shared, chosen, rejected):
        end = len(shared)
    else:
        line, word = shared.rpartition("\n")[0].rstrip(), shared.rpartition(" ")[0]
        end = len(line) + 1 if line else len(word)
    return chosen[:end], chosen[end:], rejected[end:]


def _marks(text: str) -> list[int]:
    """Return where marks of an answer end."""
    found = [match.end() for mark in (ANSWER_MARK, CUSTOMARY_MARK) for match in mark.finditer(text)]
    return sorted(found)


def _is_prompt_alone(shared: str, chosen: str, rejected: str) -> bool:
    """Return whether the shorter text is a prompt without an answer: one line, or up to a colon, and the other goes on.

    A shorter answer that the other repeats and continues ("Yes." and "Yes. Because …") has a prompt in front of it.
    """
    shorter, longer = sorted((chosen, rejected), key=len)
    if shorter != shared:
        return False
    return shared.rstrip().endswith(":") or ("\n" not in shared.strip() and longer[len(shared) :].startswith("\n"))


def share_prompt(chosen: str, rejected: str) -> bool:
    """Return whether two plain texts answer the same prompt, as far as their marks, lines and words tell."""
    prompt, *answers = split_texts(chosen, rejected)
    if not prompt.strip() or any(USER_MARK.search(answer) for answer in answers):
        return False
    if _marks(prompt):
        return True
    if any(ANSWER_MARK.search(answer) for answer in answers):
        return False
    shares_a_line = "\n" in chosen[: len(prompt) + 1].lstrip()
    if shares_a_line:
        return True
    if all(CUSTOMARY_MARK.search(answer) for answer in answers):
        return False
    several_lines = all("\n" in text.strip() for text in (chosen, rejected))
    return not several_lines or len(prompt.split()) >= FEW_WORDS
