"""Find the assistant's turns in a rendered conversation, whatever the chat template does around them.

The textbook (and verl's stock dataset) puts each message alone through the chat template and joins the pieces. That
breaks wherever a template looks at the whole conversation: Qwen3's drops the thinking of earlier turns and writes an
empty think block into the last, Llama 2's puts the system message into the first user turn, many refuse a message
without those before it. transformers' own mask needs `{% generation %}` in the template, which few have.

Here the conversation is rendered as a whole, exactly as it will be when the model is served, and once more with a
marker in place of each assistant turn. What stands between two markers is the template's and the user's text, so in the
real rendering everything else is the assistant's.
"""

import re
from collections.abc import Callable

import numpy as np

from common.conversation import BadRow, Conversation, DataError

MARKER = "assistant-turn-7f3a-{}-marker"  # in no text by chance
EMPTY_THINKING = re.compile(r"<think>\s*</think>\s*\Z")  # what Qwen3's template writes in front of a turn without any

Render = Callable[[Conversation], str]


def find_turns(
    messages: Conversation, render: Render, prefilled: str = "", left_out: str = ""
) -> tuple[str, list[tuple[int, int] | None]]:
    """Render a conversation and find the assistant's turns in the text.

    Args:
        render: the chat template, as a function of the messages; raises `BadRow` if it refuses them.
        prefilled: what the template's generation prompt writes of the answer itself, `<think>` for some models. The
            model need not write that, so it is not part of the turn.
        left_out: the blank that the generation prompt leaves out of the header. The model has to write that.

    Returns:
        The text, and (start, end) of each assistant turn, without its end-of-turn token; None for an earlier turn that
        the generation prompt would begin otherwise.

    Raises:
        BadRow: the template refuses the conversation, leaves nothing of a turn, or hides where one starts or ends.
    """
    marked, marks = [], []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            marks.append(MARKER.format(number))
            message = {**message, "content": marks[-1]}
        marked.append(message)
    text, scaffold = render(messages), render(marked)
    pieces = re.split("|".join(marks), scaffold)
    if len(pieces) != len(marks) + 1:
        raise BadRow("messages", "the model's chat template leaves out an assistant turn")
    pieces = [EMPTY_THINKING.sub("", piece) for piece in pieces]
    turns, position = [], 0
    for number, (before, after) in enumerate(zip(pieces, pieces[1:]), start=1):
        last = number == len(marks)
        start = position + len(before)
        end = len(text) - len(after) if last else text.find(after, start)
        if text[position:start] != before or end < start or text[end : end + len(after)] != after:
            raise BadRow("messages", "the model's chat template hides where an assistant turn starts or ends")
        position = end
        begun = text.startswith(prefilled, start)
        # Behind a think block that the prompt has closed comes an answer without thinking, with that block or without
        # it.
        if begun or (EMPTY_THINKING.search(prefilled) and not text.startswith("<think>", start)):
            if begun:
                start += len(prefilled)  # not the model's to write
            if before.endswith(left_out):
                start -= len(left_out)  # the model's to write
            if not text[start:end].strip():
                raise BadRow("messages", "the model's chat template leaves an assistant turn empty")
            turns.append((start, end))
        elif not last:
            turns.append(None)
        else:
            kind = f"the generation prompt begins the answer with {prefilled!r}, but the last turn starts otherwise"
            raise BadRow("messages", kind, text[start : start + 80])
    return text, turns


def find_seam(render: Callable[..., str]) -> tuple[str, str]:
    """Return what the template's generation prompt writes of the answer, and which blank of the header it leaves out.

    Both are "" for most templates. `<think>` is written in advance for some models; Llama 2's and Mistral's prompt ends
    with `[/INST]`, and the blank that follows it in the conversation is the model's to write.
    """
    question = [{"role": "user", "content": "?"}]
    try:
        prompt = render(question, add_generation_prompt=True)
        answered = render([*question, {"role": "assistant", "content": MARKER}])
    except BadRow as fault:
        raise DataError(f"a question and an answer: {fault.kind}") from fault
    header = EMPTY_THINKING.sub("", answered.partition(MARKER)[0])
    if prompt.startswith(header):
        written = prompt.removeprefix(header)
        return written if "<think>" in written else "", ""
    left_out = header.removeprefix(prompt)
    return "", "" if left_out.strip() else left_out


def mask_turns(row: dict, end_ids: np.ndarray) -> np.ndarray:
    """Mark the tokens of the assistant's turns, each with the special token that ends it.

    Args:
        row: text; spans, the turns as (start, end) in it; ids, (n,); offsets, (n, 2), each token's place in the text.
        end_ids: the special tokens.

    Returns:
        (n,) bool.

    Raises:
        BadRow: no special token follows a turn, so nothing would teach the model to stop.
    """
    starts, ends = row["offsets"].T
    mask, special = np.zeros(len(row["ids"]), dtype=bool), np.isin(row["ids"], end_ids)
    for start, end in row["spans"]:
        closing = np.flatnonzero((starts >= end) & special)
        if not len(closing) or row["text"][end : starts[closing[0]]].strip():
            raise BadRow("messages", "the model's chat template ends an assistant turn with no special token")
        # A token that only partly lies in the turn has to be written too, but no special token of the header: Phi-3's
        # swallow the blanks behind them.
        first = np.flatnonzero((ends > start) & ((starts >= start) | ~special))[0]
        mask[first : closing[0] + 1] = True
    mask[0] = False  # nothing comes before it from which to predict it
    return mask
