"""The assistant mask, token for token, under six kinds of chat template: what the model writes when it is served."""

import copy
import functools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import NO_THINKING, QWEN3_THINKING, SHAPES, assistant, make_tokenizer, system, user
from tokenizers import AddedToken, normalizers

from common.conversation import DataError
from common.tokenizer import set_template_options
from sft import dataset

LONG = 10**6
IN_ANY_ORDER = {
    "the assistant begins": [assistant("Welcome."), user("Hi"), assistant("Hello")],
    "two assistant turns in a row": [user("Hi"), assistant("Hello"), assistant("Anyone?")],
}
WITH_SYSTEM = {
    "a system message": [system("Be short."), user("Why?"), assistant("So."), user("How?"), assistant("By hand.")]
}
CONVERSATIONS = {
    "a single turn": [user("Name two gifts."), assistant("A kettle and a lamp.")],
    "several turns": [user("Why?"), assistant("So."), user("How?"), assistant("By hand."), user("!"), assistant("Ok!")],
    "emoji, CJK and zero-width text": [
        user("日本\u200b"),
        assistant("\u200b👩\u200d👧 é"),
        user("😀"),
        assistant("中\u200d文\ufeff"),
    ],
    "blanks and line feeds around": [user(" a\n"), assistant("  b \n\n"), user("\n c\t"), assistant("\td\r\n e\n")],
    "answers that equal the questions": [user("Yes"), assistant("Yes"), user("Yes"), assistant("Yes")],
    "answers of one character": [user("x"), assistant("1"), user("."), assistant("x"), user("1"), assistant(".")],
    "template words in the text": [
        user("assistant\n"),
        assistant("user\nassistant\n model"),
        user("["),
        assistant("[/INST]"),
    ],
    **WITH_SYSTEM,
    **IN_ANY_ORDER,
}


def allowed(name: str, conversation: str) -> bool:
    shape = SHAPES[name]
    return (shape.takes_any_order or conversation not in IN_ANY_ORDER) and (
        shape.takes_system or conversation not in WITH_SYSTEM
    )


CASES = [(name, conversation) for name in SHAPES for conversation in CONVERSATIONS]
ALLOWED = [case for case in CASES if allowed(*case)]
REFUSED = [case for case in CASES if not allowed(*case)]
tokenizer_of = functools.cache(lambda name: make_tokenizer(SHAPES[name]))


def encode(messages, tokenizer, options=(), **others):
    rows = [{"messages": messages, "source": "train.parquet row 0"}]
    with_options = copy.copy(tokenizer)
    set_template_options(with_options, dict(options), "data.template_options")
    (example,), _ = dataset.encode_conversations(rows, with_options, LONG, "error", **others)
    return example


def trained(example, tokenizer) -> list[str]:
    """The decoded runs of the mask."""
    runs = np.split(example.ids, np.flatnonzero(np.diff(example.mask)) + 1)
    return [tokenizer.decode(run) for run in runs[int(not example.mask[0]) :: 2]]


def templated(messages, tokenizer, options=(), **others) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=True, **dict(options), **others)["input_ids"]


def assert_served_as_trained(messages, tokenizer, options=()) -> None:
    """The generation prompt's tokens, then the masked ones, are how the whole conversation's tokens begin."""
    prompt = templated(messages[:-1], tokenizer, options, add_generation_prompt=True)
    example = encode(messages, tokenizer, options, turns="last")
    masked = example.ids[example.mask].tolist()
    assert [*prompt, *masked] == example.ids.tolist()[: len(prompt) + len(masked)]
    assert tokenizer.decode(example.ids[len(prompt) + len(masked) :]).strip() == ""


@pytest.mark.parametrize(("name", "conversation"), ALLOWED)
def test_all_that_the_model_has_to_write_is_trained_on_and_nothing_else(name, conversation):
    shape, tokenizer, messages = SHAPES[name], tokenizer_of(name), CONVERSATIONS[conversation]
    example = encode(messages, tokenizer, shape.options)
    assert trained(example, tokenizer) == shape.turns(messages)
    assert example.ids.tolist() == templated(messages, tokenizer, shape.options)


@pytest.mark.parametrize(("name", "conversation"), [case for case in ALLOWED if "in a row" not in case[1]])
def test_the_masked_tokens_are_what_follows_the_generation_prompt(name, conversation):
    assert_served_as_trained(CONVERSATIONS[conversation], tokenizer_of(name), SHAPES[name].options)


@pytest.mark.parametrize(("name", "conversation"), REFUSED)
def test_a_conversation_that_the_template_refuses_is_a_bad_row_with_the_templates_own_words(name, conversation):
    with pytest.raises(
        DataError, match="row 0, column 'messages': the model's chat template refuses .*: user and assis"
    ):
        encode(CONVERSATIONS[conversation], tokenizer_of(name))


@pytest.mark.parametrize("name", ["llama3", "gemma", "inst"])
def test_a_template_that_writes_the_bos_token_gives_one_bos_and_not_two(name):
    """Trap 2."""
    tokenizer = tokenizer_of(name)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert encode([user("a"), assistant("b")], tokenizer).ids.tolist().count(tokenizer.bos_token_id) == 1


def test_an_end_of_turn_that_the_tokenizer_has_no_name_for_is_trained_on():
    tokenizer = tokenizer_of("llama3")
    assert "<|eot_id|>" not in tokenizer.all_special_tokens
    example = encode([user("a"), assistant("b")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.end_of_turn) == "<|eot_id|>"


# ---- thinking


def thinking(thought: str, answer: str) -> dict:
    return assistant(f"<think>\n{thought}\n</think>\n\n{answer}")


THOUGHTFUL = [user("1?"), thinking("one", "1."), user("2?"), thinking("two", "2.")]


def test_qwen3_trains_on_the_last_thinking_and_not_on_that_which_its_template_drops():
    tokenizer = tokenizer_of("qwen3")
    example = encode(THOUGHTFUL, tokenizer)
    assert trained(example, tokenizer) == ["1.<|im_end|>", "<think>\ntwo\n</think>\n\n2.<|im_end|>"]
    assert example.ids.tolist() == templated(THOUGHTFUL, tokenizer)
    assert_served_as_trained(THOUGHTFUL, tokenizer)


def test_qwen3_trains_on_every_thinking_after_the_last_question_as_the_template_writes_it():
    tokenizer = tokenizer_of("qwen3")
    messages = [*THOUGHTFUL[:3], assistant("<think>\n\n a\n\nb</think>2."), assistant("3."), thinking("c", "\n4. \n")]
    a, three, c = (
        "<think>\n a\n\nb\n</think>\n\n2.<|im_end|>",
        "3.<|im_end|>",
        "<think>\nc\n</think>\n\n4. \n<|im_end|>",
    )
    assert trained(encode(messages, tokenizer), tokenizer) == ["1.<|im_end|>", a, three, c]


def test_an_empty_think_block_is_the_models_to_write_unless_thinking_is_switched_off():
    tokenizer, messages = tokenizer_of("qwen3"), [user("1?"), assistant("1.")]
    assert trained(encode(messages, tokenizer), tokenizer) == [NO_THINKING + "1.<|im_end|>"]
    assert trained(encode(messages, tokenizer, {"enable_thinking": True}), tokenizer) == [NO_THINKING + "1.<|im_end|>"]
    assert trained(encode(messages, tokenizer, {"enable_thinking": False}), tokenizer) == ["1.<|im_end|>"]


def test_an_opening_think_tag_that_the_generation_prompt_writes_is_not_trained_on():
    tokenizer = make_tokenizer(SHAPES["qwen3"], chat_template=QWEN3_THINKING)
    assert trained(encode(THOUGHTFUL, tokenizer), tokenizer) == ["two\n</think>\n\n2.<|im_end|>"]
    assert_served_as_trained(THOUGHTFUL, tokenizer)


def test_an_answer_of_which_the_template_leaves_nothing_is_refused():
    """Trained on, it would teach the model to end its turn at once."""
    tokenizer = tokenizer_of("qwen3")
    with pytest.raises(DataError, match="row 0, column 'messages': the model's chat template leaves .* turn empty"):
        encode([user("1?"), thinking("one", ""), *THOUGHTFUL[2:]], tokenizer)
    assert trained(encode([user("1?"), thinking("one", "")], tokenizer), tokenizer) == [
        "<think>\none\n</think>\n\n<|im_end|>"
    ]


# ---- where tokens and turns do not begin together


def test_a_line_feed_that_is_one_token_with_the_headers_is_in_the_mask_with_it():
    tokenizer = tokenizer_of("chatml")
    assert len(tokenizer.tokenize("\n\n")) == 1
    example = encode([user("a"), assistant("\nb")], tokenizer)
    assert trained(example, tokenizer) == ["\n\nb<|im_end|>"]


@pytest.mark.parametrize("answer", ["kettle", "1", "é", "😀"])
def test_a_blank_that_the_generation_prompt_leaves_out_is_the_models_to_write_a_token_of_its_own_or_not(answer):
    tokenizer = tokenizer_of("inst")
    example = encode([user("a"), assistant(answer)], tokenizer)
    assert trained(example, tokenizer) == [f" {answer}</s>"]


def test_a_special_token_that_swallows_the_blanks_behind_it_is_not_taken_for_the_answers_first():
    """Phi-3's tokens do: the header's last token then reaches into an answer that begins with a blank."""
    tokenizer = make_tokenizer(SHAPES["chatml"])
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|assistant|>", rstrip=True, normalized=False)])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<|im_start|>' ~ turn.role ~ '\\n'", "'<|' ~ turn.role ~ '|>'"
    )
    example = encode([user("a"), assistant("  b")], tokenizer)
    assert trained(example, tokenizer) == ["b<|im_end|>"]


def test_text_that_the_tokenizer_composes_stays_within_its_turn():
    tokenizer = make_tokenizer(SHAPES["chatml"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as Qwen's
    messages = [
        user("e\u0301" * 9),
        assistant("o\u0302e\u0301"),
        user("e\u0301"),
        assistant("\u1112\u1161\u11abn\u0303"),
    ]
    assert trained(encode(messages, tokenizer), tokenizer) == ["ôé<|im_end|>", "한ñ<|im_end|>"]


SIGNS = st.sampled_from("ab1. \n\t\r<>|[]/é日😀\u200b\u200d\u3000") | st.characters(exclude_categories=["Cs"])
WORDS = st.text(SIGNS).filter(lambda text: not re.search(r"<\|\w+\|>|think>", text))
ANSWERS = WORDS.filter(str.strip)
TALKS = st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "qwen3, thinking switched off"])
@given(talk=TALKS, instruction=st.none() | WORDS)
def test_whatever_is_said_the_mask_is_the_assistants_text(name, talk, instruction):
    messages = [system(instruction)] * (instruction is not None)
    messages += [turn for question, answer in talk for turn in (user(question), assistant(answer))]
    shape, tokenizer = SHAPES[name], tokenizer_of(name)
    example = encode(messages, tokenizer, shape.options)
    assert example.ids.tolist() == templated(messages, tokenizer, shape.options)
    runs, turns = trained(example, tokenizer), shape.turns(messages)
    assert len(runs) == len(turns)
    for run, turn in zip(runs, turns):
        glued = turn[0].isspace() and run.endswith(turn) and run.removesuffix(turn) in ("\n", "\n\n")
        assert run == turn or glued  # glued: line feeds of the header, one token with those of the answer
