"""A judge's prompt, made safe for the tokenizer that will read it: no text in it is a special token.

`quoting.py` breaks what looks like a special token. That is a list by hand, and a new model family is not on it. Here
the tokenizer is known and says itself which tokens it has. Whoever renders a prompt calls this before: `measure_rows`
for training and evaluation, `JudgeGrader` for graders. The same text then gives the same prompt everywhere.
"""

import re

from transformers import PreTrainedTokenizerBase

from common.conversation import BadRow, Conversation
from common.judging.quoting import own_names


class TokenBreaker:
    """Breaks in a prompt what a tokenizer would read as structure. Training, evaluation and graders use it alike.

    Which tokens these are, the tokenizer says: all that it calls special, and those of its added tokens that the chat
    template writes, as <tool_call> of Qwen3, which is not special. Tokens like <table>, which some vocabularies add for
    ordinary text, are not.

    Args:
        frame: the prompt without its slots. What stands in it is the prompt's own and stays, as do the tags in
            `OWN_TAGS`; `quote` has broken these in judged text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, frame: str = ""):
        self.tokenizer = tokenizer
        added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
        tokens = {*tokenizer.all_special_tokens}
        tokens |= {str(token) for token in added.values() if token.special or str(token) in template}
        in_frame = tokenizer.convert_ids_to_tokens(tokenizer(frame, add_special_tokens=False)["input_ids"])
        tokens -= {token for token in in_frame if token in frame}
        in_angles, in_squares = own_names(frame)
        own = rf"(?P<own></?(?:{in_angles})>|\[/?(?:{in_squares})\])"
        # a single character cannot be broken, and no text could do without a blank
        self.tokens = {token for token in tokens if len(token.strip()) > 1 and not re.fullmatch(own, token)}
        self.lengths = sorted({len(token) for token in self.tokens}, reverse=True)
        # where a token may start: one pattern of thousands of whole tokens, as of Gemma, would take seconds for a text
        starts = "|".join(sorted({re.escape(token[:2]) for token in self.tokens})) or "(?!)"
        self.openings = re.compile(rf"{own}|(?={starts})")
        # only such tokens are found in other text: "＜s＞" may be read as "<s>". Any text may have unknown characters.
        self.also_found = {
            id: str(token)
            for id, token in added.items()
            if token.normalized and str(token) in self.tokens and id != tokenizer.unk_token_id
        }

    def __call__(self, prompt: Conversation) -> Conversation:
        """Return a prompt whose text holds none of the tokens.

        Raises:
            BadRow: the tokenizer reads one in a text that is written otherwise.
        """
        return [{**turn, "content": self._break(turn["content"])} for turn in prompt]

    def _break(self, text: str) -> str:
        while (broken := self._break_once(text)) != text:  # tokens may overlap
            text = broken
        if self.also_found:
            found = self.also_found.keys() & set(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if found:
                names = ", ".join(repr(self.also_found[id]) for id in sorted(found))
                raise BadRow("prompt", f"the tokenizer reads its special token {names} in this text", text)
        return text

    def _break_once(self, text: str) -> str:
        """Break tokens as a tokenizer finds them: the first, of several the longest, then on behind it."""
        parts, done = [], 0
        for opening in self.openings.finditer(text):
            start = opening.start()
            if opening["own"] or start < done:
                continue
            here = (text[start : start + length] for length in self.lengths)
            if token := next((token for token in here if token in self.tokens), None):
                parts += [text[done:start], _with_a_blank(token)]
                done = start + len(token)
        return "".join([*parts, text[done:]])


def _with_a_blank(token: str) -> str:
    first = len(token) - len(token.lstrip()) + 1
    return f"{token[:first]} {token[first:]}"
