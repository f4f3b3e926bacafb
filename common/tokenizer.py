"""A model's tokenizer, made fit for training and for what comes after it.

- A pad token of its own. A served reward is read at the last token that is not padding, so pad is never the end token.
- One chat template. A date in it is fixed, its switches are written into it, and for a reward model it ends where the
  turn ends: what the checkpoint carries renders the same text on any day, for anyone.
- Text goes to tokens in one place, the same for training and scoring: the special tokens that a tokenizer adds stand
  once, and a token that the model has no embedding for is found here, not by a worker.
"""

import json
import re
from datetime import date

import jinja2
import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from common.conversation import BadRow, Conversation, DataError

# in order of preference: from the vocabularies of Llama 3, of Qwen, whose base models also end with <|endoftext|>, …
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>", "<pad>", "[PAD]")
CALLED_PAD = re.compile(r"\W*_?pad(ding)?_?\W*", re.IGNORECASE)  # <|padding|>, <｜▁pad▁｜>
NEVER_USED = re.compile(r"\W*(reserved|unused|extra)\w*\W*", re.IGNORECASE)  # <|reserved_special_token_0|>
# what a template may raise: its own refusals, and Python's errors about what a message lacks
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
A_DAY = date(2024, 7, 26)  # what Llama 3's template writes where it cannot ask for the date
CALL_OF_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
SAMPLE = "It's 12,345 o'clock:\n\n  def f(x):  # naïve\n\treturn x + 1\n"
MARKER = "what-the-assistant-says-7f3a"  # in no template by chance
THINK_TAGS = {"<think>", "</think>"}  # special in some vocabularies, and an answer's own


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, as its tokenizer.json says.

    transformers 5 rebuilds some tokenizers by the class that tokenizer_config.json names. If that class is wrong, as it
    is for DeepSeek R1 and its Llama models, all blanks are lost, and nothing says so (transformers issue 45488).

    Raises:
        OSError, ValueError: it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except KeyError as error:
        raise ValueError(f"transformers does not know its tokenizer: {error}") from error
    file = cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    own_code = not type(tokenizer).__module__.startswith("transformers.")
    if not tokenizer.is_fast or file is None or own_code:
        return tokenizer
    raw = Tokenizer.from_file(file)
    raw.no_padding()
    raw.no_truncation()
    if tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] == raw.encode(SAMPLE, add_special_tokens=False).ids:
        return tokenizer
    print(f"{path}: {type(tokenizer).__name__} does not do what tokenizer.json says; the latter is used")
    return PreTrainedTokenizerFast.from_pretrained(path)


def render(tokenizer: PreTrainedTokenizerBase, messages: Conversation, column: str, **options) -> str:
    """Return a conversation through the chat template.

    Raises:
        BadRow: about `column`: the template refuses the conversation, or cannot render it.
    """
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TEMPLATE_ERRORS as error:
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        raise BadRow(column, f"the model's chat template refuses the conversation: {kind}{error}") from error


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Make the tokenizer's chat template the one of that name, or its only or default one.

    Raises:
        DataError: several templates and none chosen, or none of that name.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        if name is not None:
            raise DataError(f"data.chat_template={name}: the tokenizer has no named chat templates; leave it out")
        return
    chosen = "default" if name is None else name
    if chosen not in templates:
        names = ", ".join(sorted(templates))
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has several chat templates, {names}, and none called {chosen}. "
            "Choose one: data.chat_template=NAME"
        )
    tokenizer.chat_template = templates[chosen]


def set_template_options(tokenizer: PreTrainedTokenizerBase, options: dict, setting: str) -> None:
    """Write the chat template's own switches into the template, so that everyone who loads the model uses them too.

    A template that writes today's date gets a fixed one: training, resuming and scoring would differ from day to day.

    Args:
        setting: what the switches are called in the method's config.

    Raises:
        DataError: a switch that the template does not have: it would change nothing.
    """
    template = tokenizer.chat_template
    if not template:
        if options:
            raise DataError(f"{setting}: the model has no chat template, so there is nothing to set; leave it out")
        return
    unknown = [name for name in options if not re.search(rf"\b{re.escape(str(name))}\b", template)]
    if unknown:
        raise DataError(f"{setting}: the model's chat template has no switch {', '.join(unknown)}; leave it out")
    if "strftime_now" in template:
        template = fix_date(template)
        if "date_string" not in options:
            print(f"the chat template writes today's date; here and in the checkpoint it is always {A_DAY:%d %b %Y}.")
            print(f"Another one, if the template has a date_string: '{setting}={{date_string: {A_DAY:%d %b %Y}}}'")
    values = {name: "none" if value is None else json.dumps(value) for name, value in options.items()}
    head = "".join(f"{{%- set {name} = {value} %}}\n" for name, value in values.items())
    tokenizer.chat_template = head + template


def fix_date(template: str) -> str:
    """Return a chat template that writes `A_DAY` where it would write today's date."""
    fixed = CALL_OF_DATE.sub(lambda call: json.dumps(A_DAY.strftime(call[2])), template)
    if "strftime_now(" in fixed:  # with a format that is computed
        fixed = f"{{%- macro strftime_now(format) -%}}{A_DAY:%d %b %Y}{{%- endmacro -%}}\n{fixed}"
    return fixed


def end_at_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a rendered conversation end with the token that ends the assistant's turn.

    Most templates write a line break behind it, some also the end of the text. A policy that is rewarded stops at the
    end of its turn, so its tokens lack what follows, and a reward read at another token is another reward.
    """
    if not tokenizer.chat_template:
        return
    question_and_answer = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARKER}]
    try:
        tail = render(tokenizer, question_and_answer, "messages").rpartition(MARKER)[2]
    except BadRow as fault:
        raise DataError(f"{tokenizer.name_or_path}: a question and an answer: {fault.kind}") from fault
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [(tail.index(token), -len(token)) for token in special if token in tail]
    start, length = min(found, default=(len(tail.rstrip()), 0))
    if behind := tail[start - length :]:
        tokenizer.chat_template = (
            "{%- set whole -%}\n" + tokenizer.chat_template + "\n{%- endset -%}\n"
            f"{{{{- whole[:-{len(behind)}] if whole.endswith({json.dumps(behind)}) and not add_generation_prompt "
            "else whole -}}"
        )


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, embeddings: int, wanted: str | None = None) -> None:
    """Give the tokenizer a pad token that is not its end token and that the model has an embedding for.

    A served reward model reads the last token that is not padding. If pad and end are one token, that is the token
    before the end, and every served reward is wrong.

    Args:
        embeddings: how many tokens the model knows.
        wanted: the user's choice, `data.pad_token`.

    Raises:
        DataError: the wanted token cannot be used, or none is wanted and the vocabulary has no candidate.
    """
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if number < embeddings}
    vocabulary.pop(tokenizer.eos_token, None)
    if wanted is not None:
        if wanted not in vocabulary:
            why = "it ends texts" if wanted == tokenizer.eos_token else "the model has no such token"
            raise DataError(f"data.pad_token={wanted}: {why}. For example: {setting(_rarest(vocabulary))}")
        tokenizer.pad_token = wanted
        return
    if tokenizer.pad_token in vocabulary:
        return
    added = sorted(tokenizer.added_tokens_decoder.items())
    named = [
        token.content for pattern in (CALLED_PAD, NEVER_USED) for _, token in added if pattern.fullmatch(token.content)
    ]
    others = [tokenizer.unk_token, tokenizer.bos_token]  # no text ends with them
    fitting = [token for token in (*PAD_CANDIDATES, *named, *others) if token in vocabulary]
    if not fitting:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no pad token that can be used (pad {tokenizer.pad_token!r}, "
            f"end {tokenizer.eos_token!r}, {embeddings} embeddings). Name a token of its vocabulary with which no text "
            f"ends. For example, after the run script: {setting(_rarest(vocabulary))}"
        )
    tokenizer.pad_token = fitting[0]


def setting(token: str) -> str:
    """Return what to write behind a run script to name a pad token: the quotes keep "<" and "[" from being read."""
    return f"\"data.pad_token='{token}'\""


def _rarest(vocabulary: dict[str, int]) -> str:
    """Return a plain token that was merged late, so few texts hold it."""
    plain = [token for token in vocabulary if token.isascii() and token.isalpha()]
    return max(plain or vocabulary, key=vocabulary.get)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that structure a conversation, also those that the tokenizer has no name for (Llama 3's)."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    return named | {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}


class MessageCheck:
    """Refuses messages that hold a special token. The model would read it as structure, such as a turn's end.

    Such an answer could end its turn and write the next ones itself, and would be rewarded for those.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokens = special_tokens(tokenizer).keys() - THINK_TAGS
        self.lengths = sorted({len(token) for token in self.tokens}, reverse=True)
        # where a token may start: one pattern of thousands of whole tokens, as of Gemma, would take seconds for a text
        starts = "|".join(sorted({re.escape(token[:2]) for token in self.tokens}))
        self.starts = re.compile(f"(?={starts})" if starts else "(?!)")

    def __call__(self, column: str, messages: Conversation) -> None:
        """Raise `BadRow` about `column` if a message holds a special token."""
        for message in messages:
            text = message["content"]
            if found := self.find(text):
                raise BadRow(
                    column, f"a message of the {message['role']} holds the model's special token {found!r}", text
                )

    def find(self, text: str) -> str | None:
        """Return the first special token in a text."""
        for start in (match.start() for match in self.starts.finditer(text)):
            pieces = (text[start : start + length] for length in self.lengths)
            if token := next((piece for piece in pieces if piece in self.tokens), None):
                return token
        return None


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, special_tokens: bool) -> list[np.ndarray]:
    """Return the tokens of each text: (tokens,) int32.

    Args:
        special_tokens: add those that the tokenizer adds to plain text. A text that has them already gets no second
            ones.
    """
    rows = tokenizer(texts, add_special_tokens=special_tokens)["input_ids"]
    if special_tokens:
        before, after = _added_tokens(tokenizer)
        for number, ids in enumerate(rows):
            if before and ids[: 2 * len(before)] == before * 2:
                ids = ids[len(before) :]
            if after and ids[-2 * len(after) :] == after * 2:
                ids = ids[: -len(after)]
            rows[number] = ids
    return [np.asarray(ids, dtype=np.int32) for ids in rows]


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and behind a plain text."""
    ids, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    start = next(place for place in range(len(ids)) if ids[place : place + len(plain)] == plain)
    return ids[:start], ids[start + len(plain) :]


def check_tokens(column: str, ids: np.ndarray, text: str, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raise `BadRow` if a text holds a token that the model has no embedding for."""
    beyond = np.flatnonzero(ids >= embeddings)
    if len(beyond):
        token = tokenizer.convert_ids_to_tokens(int(ids[beyond[0]]))
        kind = f"a token that the model has no embedding for: {token!r} is number {ids[beyond[0]]}, of {embeddings}"
        raise BadRow(
            column, f"{kind}. Take it out of the text, or choose the model that this tokenizer belongs to", text
        )


def check_end(column: str, ids: np.ndarray, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `BadRow` if a text has no tokens or ends in the pad token: a reward is read at the last other token."""
    if not len(ids) or ids[-1] == tokenizer.pad_token_id:
        kind = f"the text ends in the pad token {tokenizer.pad_token!r}, where no reward is read"
        raise BadRow(column, f"{kind}. Take the token away, or name another one: data.pad_token=TOKEN", text)
