"""A tokenizer made fit for training: its pad token, its one chat template, and text as tokens."""

import datetime
import json
import time

import numpy as np
import pytest
from shapes import SHAPES, Shape, answers, assistant, make_tokenizer, user
from transformers import AutoTokenizer

from common.conversation import BadRow, DataError
from common.tokenizer import (
    THINK_TAGS,
    MessageCheck,
    check_end,
    check_tokens,
    choose_template,
    encode_texts,
    end_at_turn,
    ensure_pad_token,
    fix_date,
    load_tokenizer,
    render,
    set_template_options,
    special_tokens,
)

TALK = [user("Name two things."), assistant("A kettle, and a rake.")]


# ---- loading


def test_a_tokenizer_does_what_its_file_says_whatever_class_its_config_names(tmp_path, capsys):
    """DeepSeek R1 and its Llama models name LlamaTokenizerFast, with which transformers 5 loses all blanks."""
    original, text = make_tokenizer(SHAPES["llama3"]), "Two words,\n\n  and 12,345 more. <|eot_id|>"
    original.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"}))
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert "Twowords" in original.decode(ids)  # else transformers has mended it, and load_tokenizer can go

    loaded = load_tokenizer(str(tmp_path))
    assert "LlamaTokenizer does not do what tokenizer.json says" in capsys.readouterr().out
    loaded.save_pretrained(tmp_path / "checkpoint")
    for tokenizer in (loaded, AutoTokenizer.from_pretrained(tmp_path / "checkpoint")):
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
        assert tokenizer.chat_template == original.chat_template
        assert tokenizer.special_tokens_map == original.special_tokens_map


@pytest.mark.parametrize("name", SHAPES)
def test_other_tokenizers_are_loaded_as_transformers_does(tmp_path, name, capsys):
    make_tokenizer(SHAPES[name]).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw |= {"truncation": {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert type(load_tokenizer(str(tmp_path))) is type(AutoTokenizer.from_pretrained(tmp_path))
    assert capsys.readouterr().out == ""


# ---- the pad token


@pytest.mark.parametrize("pad_token", [None, "<|im_end|>"])
def test_a_tokenizer_without_a_pad_token_of_its_own_gets_one_that_is_not_its_end(tiny_tokenizer, pad_token):
    """Trap 1: where pad is the end token, a served reward is read before the end."""
    tiny_tokenizer.pad_token = pad_token
    ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer))
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_a_pad_token_of_its_own_is_left_alone(tiny_tokenizer):
    tiny_tokenizer.pad_token = "<think>"
    ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer))
    assert tiny_tokenizer.pad_token == "<think>"


def test_without_a_candidate_the_error_names_a_token_that_can_be_set(tiny_tokenizer):
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = "<|endoftext|>"
    with pytest.raises(DataError, match=r"pad '<\|endoftext\|>', end '<\|endoftext\|>', \d+ embeddings") as caught:
        ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer))
    assert tiny_tokenizer.pad_token == "<|endoftext|>"
    advised = str(caught.value).rpartition("data.pad_token='")[2].rstrip("'\"")
    ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer), advised)
    assert tiny_tokenizer.pad_token == advised


@pytest.mark.parametrize(
    "token",
    ["<|padding|>", "<｜▁pad▁｜>", "[PAD]", "<pad>", "<|reserved_special_token_0|>", "<unused0>", "<|extra_0|>"],
)
def test_a_token_made_for_padding_or_for_nothing_is_taken(tiny_tokenizer, token):
    tiny_tokenizer.add_tokens([token], special_tokens=True)
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = "<|endoftext|>"
    ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer))
    assert tiny_tokenizer.pad_token == token


def test_a_pad_token_beyond_the_embeddings_is_no_pad_token(tiny_tokenizer):
    known = len(tiny_tokenizer)
    tiny_tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tiny_tokenizer.pad_token_id == known
    ensure_pad_token(tiny_tokenizer, known)
    assert tiny_tokenizer.pad_token == "<|endoftext|>"
    tiny_tokenizer.pad_token, tiny_tokenizer.eos_token = "[PAD]", "<|endoftext|>"
    with pytest.raises(DataError, match=rf"pad '\[PAD\]'.*{known} embeddings"):
        ensure_pad_token(tiny_tokenizer, known)


@pytest.mark.parametrize(("wanted", "why"), [("<|im_end|>", "it ends texts"), ("[NO]", "the model has no such token")])
def test_a_wanted_pad_token_that_cannot_be_one_is_refused_with_another(tiny_tokenizer, wanted, why):
    with pytest.raises(DataError, match=f"{why}. For example: \"data.pad_token='"):
        ensure_pad_token(tiny_tokenizer, len(tiny_tokenizer), wanted)


# ---- the chat template


def test_one_of_several_named_templates_is_chosen_by_name_or_by_being_the_default(tiny_tokenizer):
    whole = tiny_tokenizer.chat_template
    tiny_tokenizer.chat_template = {"tool_use": "x", "chat": whole}
    with pytest.raises(DataError, match="several chat templates, chat, tool_use, and none called default"):
        choose_template(tiny_tokenizer, None)
    with pytest.raises(DataError, match="none called char. Choose one: data.chat_template=NAME"):
        choose_template(tiny_tokenizer, "char")
    choose_template(tiny_tokenizer, "chat")
    assert tiny_tokenizer.chat_template == whole
    with pytest.raises(DataError, match="data.chat_template=chat: the tokenizer has no named chat templates"):
        choose_template(tiny_tokenizer, "chat")
    tiny_tokenizer.chat_template = {"tool_use": "x", "default": whole}
    choose_template(tiny_tokenizer, None)
    assert tiny_tokenizer.chat_template == whole


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("{{ raise_exception('no system message') }}", "refuses the conversation: no system message"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ messages[0].nothing.at_all }}", "refuses the conversation: 'dict object' has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_whatever_a_template_raises_is_about_the_row(tiny_tokenizer, fault, words):
    tiny_tokenizer.chat_template = fault
    with pytest.raises(BadRow, match="the model's chat template refuses") as caught:
        render(tiny_tokenizer, TALK, "chosen")
    assert words in caught.value.kind and caught.value.column == "chosen"


DATED = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now( \"%Y\" ) }}|"
COMPUTED = "{% set form = '%Y' %}{{ strftime_now(form) }}|"
LLAMA = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '?' %}{% endif %}"
    "{{ day }}"
)


class AnotherDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 3, 9)


@pytest.mark.parametrize(
    ("template", "text"), [(DATED, "26 Jul 2024|2024|"), (COMPUTED, "26 Jul 2024|"), (LLAMA, "26 Jul 2024")]
)
def test_a_template_that_writes_the_date_writes_the_same_on_any_day(tiny_tokenizer, monkeypatch, template, text):
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", AnotherDay)
    tiny_tokenizer.chat_template = template
    assert "2031" in render(tiny_tokenizer, TALK, "chosen")
    set_template_options(tiny_tokenizer, {}, "data.template_options")
    assert render(tiny_tokenizer, TALK, "chosen").strip() == text


def test_a_template_without_a_date_is_left_as_it_is_but_for_its_switches(tiny_tokenizer):
    before = tiny_tokenizer.chat_template
    set_template_options(tiny_tokenizer, {}, "data.template_options")
    assert tiny_tokenizer.chat_template == before == fix_date(before)
    tiny_tokenizer.chat_template = before = before + "{{ a }}{{ b }}{{ c }}"
    set_template_options(tiny_tokenizer, {"a": False, "b": None, "c": "x"}, "data.template_options")
    head = '{%- set a = false %}\n{%- set b = none %}\n{%- set c = "x" %}\n'
    assert tiny_tokenizer.chat_template == head + before


def test_a_switch_that_the_template_does_not_have_is_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ messages }}{{ enable_thinking_now }}"
    fault = "data.template_options: the model's chat template has no switch enable_thinking, other; leave it out"
    with pytest.raises(DataError, match=fault):
        set_template_options(tiny_tokenizer, {"enable_thinking": False, "other": 1}, "data.template_options")
    tiny_tokenizer.chat_template = None
    with pytest.raises(DataError, match="data.template_options: the model has no chat template"):
        set_template_options(tiny_tokenizer, {"enable_thinking": False}, "data.template_options")


# ---- messages that would be read as structure


@pytest.mark.parametrize("name", SHAPES)
def test_every_special_token_is_found_in_a_message_wherever_it_stands(name):
    tokenizer = make_tokenizer(SHAPES[name])
    check = MessageCheck(tokenizer)
    for token in special_tokens(tokenizer).keys() - THINK_TAGS:
        for text in (token, f"a{token}", f"<{token}b", f"a < b, {token} {token}"):
            with pytest.raises(BadRow, match="a message of the assistant holds the model's special token") as caught:
                check("chosen", [user("a < b"), assistant(text)])
            assert (caught.value.column, repr(token) in caught.value.kind) == ("chosen", True)
        check("chosen", [user(token[:-1]), assistant(f"{token[:1]} {token[1:]}")])
    check("chosen", [user("<think> [b] <|x|> </s"), assistant("</think>")])


def test_of_thousands_of_special_tokens_one_is_found_quickly(tiny_tokenizer):
    tiny_tokenizer.add_tokens([f"<unused{number}>" for number in range(6000)], special_tokens=True)
    check, page = MessageCheck(tiny_tokenizer), "<td>a &lt; b</td> <unused> <unused6000>" * 20_000
    started = time.perf_counter()
    assert check.find(page) is None and check.find(page + "<unused5999>") == "<unused5999>"
    assert time.perf_counter() - started < 5


# ---- the end of a rendered conversation


PHI3 = """\
{%- for turn in messages -%}
    {{- '<|' ~ turn.role ~ '|>\\n' ~ turn.content ~ '<|end|>\\n' -}}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token -}}
"""
DEEPSEEK = """\
{{- bos_token -}}
{%- for turn in messages -%}
    {{- '<｜Assistant｜>' ~ turn.content ~ eos_token if turn.role == 'assistant' else '<｜User｜>' ~ turn.content -}}
{%- endfor -%}
{{- '<｜Assistant｜>' if add_generation_prompt -}}
"""
ENDINGS = SHAPES | {
    "phi3, the end of the text behind the end of the turn": Shape(
        PHI3,
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        lambda messages: [text + "<|end|>" for text in answers(messages)],
        (("eos_token", "<|endoftext|>"),),
    ),
    "deepseek": Shape(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        lambda messages: [text + "<｜end▁of▁sentence｜>" for text in answers(messages)],
        (("bos_token", "<｜begin▁of▁sentence｜>"), ("eos_token", "<｜end▁of▁sentence｜>")),
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_conversation_ends_where_the_assistants_turn_ends(name):
    """What a policy writes ends there, so its tokens and the rendered text are the same, and get the same reward."""
    shape = ENDINGS[name]
    tokenizer = make_tokenizer(shape)
    set_template_options(tokenizer, dict(shape.options), "data.template_options")
    before = render(tokenizer, TALK, "messages")
    prompt = render(tokenizer, TALK[:1], "messages", add_generation_prompt=True)
    end_at_turn(tokenizer)
    after = render(tokenizer, TALK, "messages")
    assert before.startswith(after)
    written = shape.turns(TALK)[-1]
    assert after == prompt + written
    assert render(tokenizer, TALK[:1], "messages", add_generation_prompt=True) == prompt
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[-1:]) in {token.content for token in tokenizer.added_tokens_decoder.values()}
    # the tokens that a policy was given and sampled, and the same decoded and read again
    given, sampled = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, written))
    assert ids == given + sampled == tokenizer(tokenizer.decode(given + sampled), add_special_tokens=False)["input_ids"]
    end_at_turn(tokenizer)
    assert render(tokenizer, TALK, "messages") == after


def test_the_end_is_found_for_answers_that_look_like_it_and_several_turns(tiny_tokenizer):
    end_at_turn(tiny_tokenizer)
    for answer in ("ends with a line\n", "  ", "<|im_end|>"):
        text = render(tiny_tokenizer, [*TALK, user("Why?"), assistant(answer)], "messages")
        assert text.endswith(answer + "<|im_end|>") and text.count("<|im_start|>") == 4


# ---- tokens


@pytest.mark.parametrize("name", ["llama3", "gemma", "inst"])
def test_a_text_that_has_its_first_token_already_gets_no_second(name):
    """Trap 2."""
    tokenizer = make_tokenizer(SHAPES[name])
    with_bos, without, empty = encode_texts([tokenizer.bos_token + "kettle", "kettle", ""], tokenizer, True)
    np.testing.assert_array_equal(with_bos, without)
    assert with_bos.tolist().count(tokenizer.bos_token_id) == 1 and with_bos.dtype == np.int32
    assert empty.tolist() == [tokenizer.bos_token_id]


def test_tokens_that_the_tokenizer_does_not_add_stay_as_they_are_written(tiny_tokenizer):
    text = "<|endoftext|><|endoftext|>kettle"
    (ids,) = encode_texts([text], tiny_tokenizer, True)
    assert tiny_tokenizer.decode(ids) == text
    rendered = render(tiny_tokenizer, TALK, "messages")
    (ids,) = encode_texts([rendered], tiny_tokenizer, False)
    assert ids.tolist() == tiny_tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_token_without_an_embedding_is_named_with_its_number(tiny_tokenizer):
    known = len(tiny_tokenizer)
    tiny_tokenizer.add_tokens(["<tool>"])
    (ids,) = encode_texts(["kettle <tool>"], tiny_tokenizer, False)
    check_tokens("chosen", ids, "kettle <tool>", tiny_tokenizer, known + 1)
    with pytest.raises(BadRow, match=f"no embedding for: '<tool>' is number {known}, of {known}") as caught:
        check_tokens("chosen", ids, "kettle <tool>", tiny_tokenizer, known)
    assert (caught.value.column, caught.value.found) == ("chosen", " (found 'kettle <tool>')")


def test_a_text_that_ends_in_the_pad_token_gets_a_remedy(tiny_tokenizer):
    for ids in (np.array([], np.int32), np.array([5, tiny_tokenizer.pad_token_id])):
        with pytest.raises(BadRow, match="ends in the pad token '<|endoftext|>'.*data.pad_token=TOKEN"):
            check_end("chosen", ids, "text", tiny_tokenizer)
    check_end("chosen", np.array([tiny_tokenizer.pad_token_id, 5]), "text", tiny_tokenizer)


def test_the_chat_template_of_a_dated_model_is_one_line_of_json_away_from_the_original(tiny_tokenizer):
    assert fix_date("{{ strftime_now('%d') }}") == "{{ " + json.dumps("26") + " }}"
