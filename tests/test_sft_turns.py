"""Where turns are, which are trained on, what is refused and in which words; whole masks are in test_sft_templates."""

import pytest
from shapes import CHATML, NO_THINKING, QWEN3_THINKING, SHAPES, assistant, make_tokenizer, system, user
from transformers import AutoTokenizer

from common.conversation import DataError
from common.tokenizer import set_template_options
from sft import dataset, turns

encode_conversations = dataset.encode_conversations

LONG = 10**6
TALK = [user("Why?"), assistant("So."), user("How?"), assistant("By hand.")]


def row(*messages: dict, number: int = 0) -> dict:
    return {"messages": list(messages), "source": f"train.parquet row {number}"}


def renderer(name: str, **changes):
    """The chat template of a shape, as a function of the messages."""
    tokenizer, chosen = make_tokenizer(SHAPES[name], **changes), dict(SHAPES[name].options)
    return lambda messages, **options: tokenizer.apply_chat_template(messages, tokenize=False, **chosen, **options)


def decoded(example, tokenizer) -> tuple[str, str]:
    """All of an example, and what of it is trained on."""
    return tokenizer.decode(example.ids), tokenizer.decode(example.ids[example.mask])


@pytest.fixture(scope="module")
def chatml():
    return make_tokenizer(SHAPES["chatml"])


# ---- where turns begin


@pytest.mark.parametrize(
    ("name", "seam"),
    [
        ("chatml", ("", "")),
        ("qwen3", ("", "")),
        ("qwen3, thinking switched off", (NO_THINKING, "")),
        ("llama3", ("", "")),
        ("gemma", ("", "")),
        ("inst", ("", " ")),
    ],
)
def test_what_the_generation_prompt_writes_or_leaves_out_is_found_for_every_kind_of_template(name, seam):
    assert turns.find_seam(renderer(name)) == seam


def test_a_generation_prompt_that_opens_the_thinking_is_found():
    assert turns.find_seam(renderer("qwen3", chat_template=QWEN3_THINKING)) == ("<think>\n", "")


def test_a_template_that_has_no_generation_prompt_does_not_have_the_model_write_its_header():
    """A server puts it before the answer by other means; only a blank is the model's to write."""
    without_prompt = CHATML.partition("{%- if add")[0]
    assert turns.find_seam(renderer("chatml", chat_template=without_prompt)) == ("", "")
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=without_prompt)
    (example,), _ = encode_conversations([row(*TALK)], tokenizer, LONG, "error")
    assert decoded(example, tokenizer)[1] == "So.<|im_end|>By hand.<|im_end|>"


def test_turns_are_found_in_the_real_text_without_their_end():
    text, spans = turns.find_turns(TALK, renderer("gemma"))
    assert [text[start:end] for start, end in spans] == ["So.", "By hand."]
    text, spans = turns.find_turns(TALK, renderer("inst"), left_out=" ")
    assert [text[start:end] for start, end in spans] == [" So.", " By hand."]


# ---- which turns


def test_all_turns_are_trained_on_or_only_the_last(chatml):
    (every,), _ = encode_conversations([row(*TALK)], chatml, LONG, "error")
    (last,), _ = encode_conversations([row(*TALK)], chatml, LONG, "error", turns="last")
    assert decoded(every, chatml)[1] == "So.<|im_end|>By hand.<|im_end|>"
    assert decoded(last, chatml)[1] == "By hand.<|im_end|>"
    assert every.ids.tolist() == last.ids.tolist()
    assert chatml.convert_ids_to_tokens(last.end_of_turn) == "<|im_end|>"


def test_rows_beyond_one_tokenizer_call_keep_their_own_tokens_and_mask(chatml, monkeypatch):
    rows = [row(user("a" * number), assistant("b" * (9 - number)), number=number) for number in range(1, 8)]
    at_once, _ = encode_conversations(rows, chatml, LONG, "error")
    monkeypatch.setattr(dataset, "TOKENIZE_AT_ONCE", 3)
    in_chunks, _ = encode_conversations(rows, chatml, LONG, "error")
    assert [example.source for example in in_chunks] == [source["source"] for source in rows]
    assert [decoded(example, chatml) for example in in_chunks] == [decoded(example, chatml) for example in at_once]


# ---- what is refused


@pytest.mark.parametrize(
    ("instead_of", "put", "fault"),
    [
        ("<|im_end|>", "", "ends an assistant turn with no special token"),
        ("<|im_end|>", " (over)<|im_end|>", "ends an assistant turn with no special token"),
        ("in messages", "in messages[-2:]", "leaves out an assistant turn"),
        ("turn.content", "turn.content[:9]", "leaves out an assistant turn"),
        ("turn.content", "turn.content * 2", "leaves out an assistant turn"),
        ("{%- for", "{{- messages[-1].content[0] -}}{%- for", "hides where an assistant turn starts or ends"),
        ("turn.role", "turn.content | length", "hides where an assistant turn starts or ends"),
        ("'<|im_end|>", "turn.content[0] ~ '<|im_end|>", "hides where an assistant turn starts or ends"),
    ],
)
def test_a_template_that_does_not_show_each_turn_whole_and_ended_is_refused(instead_of, put, fault):
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=CHATML.replace(instead_of, put))
    with pytest.raises(DataError, match=f"train.parquet row 0, column 'messages': the model's chat template {fault}"):
        encode_conversations([row(*TALK)], tokenizer, LONG, "error")


@pytest.mark.parametrize(("name", "token"), [("chatml", "<|im_start|>"), ("llama3", "<|eot_id|>"), ("gemma", "<bos>")])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_that_holds_a_special_token_is_refused_whoever_says_it(name, token, number):
    talk = [dict(turn) for turn in TALK]
    talk[number]["content"] += f" a{token}b"
    with pytest.raises(DataError) as caught:
        encode_conversations([row(*talk)], make_tokenizer(SHAPES[name]), LONG, "error")
    who = talk[number]["role"]
    fault = f"a message of the {who} holds the model's special token {token!r} (found {talk[number]['content']!r})"
    assert str(caught.value).splitlines()[1] == f"  train.parquet row 0, column 'messages': {fault}"


def test_a_think_tag_is_not_a_special_token_and_may_be_said(chatml):
    (example,), _ = encode_conversations(
        [row(user("What is <think>?"), assistant("A </think>."))], chatml, LONG, "error"
    )
    assert decoded(example, chatml)[1] == "A </think>.<|im_end|>"


def test_dropped_rows_are_counted_by_fault_and_the_others_encoded():
    tokenizer = make_tokenizer(SHAPES["gemma"])
    asides, tokens = row(system("Be short."), *TALK), row(user("<eos>"), assistant("a"))
    examples, counts = encode_conversations(
        [asides, row(*TALK, number=1), asides, tokens], tokenizer, LONG, "error", "drop"
    )
    assert [example.source for example in examples] == ["train.parquet row 1"]
    refusal = "refuses the conversation: user and assistant take turns, there is no place for: system"
    assert counts == {
        f"column 'messages': the model's chat template {refusal}": 2,
        "column 'messages': a message of the user holds the model's special token '<eos>'": 1,
    }
    with pytest.raises(DataError, match="no usable conversation: 1 x column 'messages': the model's chat"):
        encode_conversations([asides], tokenizer, LONG, "error", "drop")


def test_rows_dropped_for_their_missing_end_of_turn_are_counted_too():
    unended = CHATML.replace("'<|im_end|>", "('<|im_end|>' if messages | length > 2 else '') ~ '")
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=unended)
    rows = [row(*TALK), row(*TALK[:2], number=1)]
    examples, counts = encode_conversations(rows, tokenizer, LONG, "error", "drop")
    assert [example.source for example in examples] == ["train.parquet row 0"]
    assert counts == {"column 'messages': the model's chat template ends an assistant turn with no special token": 1}


def test_thinking_that_the_generation_prompt_has_already_closed_is_refused():
    """Served with thinking switched off, the model would have to think behind a closed think block."""
    tokenizer = make_tokenizer(SHAPES["qwen3"])
    thoughtful = row(user("Why?"), assistant("<think>\nHm.\n</think>\n\nSo."))
    assert len(encode_conversations([thoughtful], tokenizer, LONG, "error")[0]) == 1
    set_template_options(tokenizer, {"enable_thinking": False}, "data.template_options")
    with pytest.raises(DataError, match="the generation prompt begins the answer with '<think>.*</think>"):
        encode_conversations([thoughtful], tokenizer, LONG, "error")


def test_a_template_that_opens_the_thinking_and_drops_it_from_what_is_trained_on_is_refused():
    """DeepSeek-R1's distilled models: served behind <think>, the model would never have seen it."""
    dropping = CHATML.replace("turn.content", "turn.content.split('</think>')[-1]")
    dropping = dropping.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=dropping)
    assert turns.find_seam(lambda m, **o: tokenizer.apply_chat_template(m, tokenize=False, **o))[0] == "<think>\n"
    with pytest.raises(DataError, match="begins the answer with '<think>.*but the last turn starts otherwise"):
        encode_conversations([row(user("Why?"), assistant("<think>\nHm.\n</think>\n\nSo."))], tokenizer, LONG, "error")


def test_thinking_that_the_template_leaves_out_is_counted():
    tokenizer, thoughtful = make_tokenizer(SHAPES["qwen3"]), assistant("<think>\nHm.\n</think>\n\nSo.")
    talk = row(user("Why?"), thoughtful, user("How?"), thoughtful | {"content": "<think>\nOh.\n</think>\n\nBy hand."})
    assert encode_conversations([talk], tokenizer, LONG, "error")[1] == {dataset.NOT_SHOWN: 1}
    assert encode_conversations([talk], tokenizer, LONG, "error", turns="last")[1] == {}


def test_a_template_that_leaves_out_the_last_turns_thinking_is_refused_unless_there_is_none():
    """A judge trained so would never reason."""
    dropping = CHATML.replace("turn.content", "turn.content.split('</think>')[-1]")
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=dropping)
    thoughtful, plain = assistant("<think>\nHm.\n</think>\n\nSo."), assistant("So.")
    with pytest.raises(DataError, match="row 0, column 'messages': .* leaves out the thinking of the last turn"):
        encode_conversations([row(user("Why?"), thoughtful)], tokenizer, LONG, "error")
    talk = row(user("Why?"), thoughtful, user("How?"), plain)
    assert encode_conversations([talk], tokenizer, LONG, "error")[1] == {dataset.NOT_SHOWN: 1}


def test_options_of_the_template_are_written_into_it_for_everyone_who_loads_it(tmp_path):
    tokenizer = make_tokenizer(SHAPES["qwen3"])
    question = {"conversation": [user("Why?")], "tokenize": False, "add_generation_prompt": True}
    asked = tokenizer.apply_chat_template(**question, enable_thinking=False)
    set_template_options(tokenizer, {"enable_thinking": False}, "data.template_options")
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(**question) == asked
    assert asked.endswith(NO_THINKING)


def test_a_template_that_writes_the_date_gets_a_warning(capsys):
    for options, said in (({"date_string": "26 Jul 2024"}, False), ({}, True)):
        tokenizer = make_tokenizer(SHAPES["chatml"], chat_template="{{ date_string or strftime_now('%Y') }}" + CHATML)
        set_template_options(tokenizer, options, "data.template_options")
        assert ("the chat template writes today's date" in capsys.readouterr().out) == said


def test_a_template_that_refuses_a_lone_question_says_so():
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template="{{ raise_exception('A system message comes first.') }}")
    with pytest.raises(
        DataError, match="a question and an answer: the model's chat template refuses .*: A system message comes"
    ):
        encode_conversations([row(user("Why?"), assistant("So."))], tokenizer, LONG, "error")


def test_thinking_is_trained_on_where_its_tags_are_special_tokens_too():
    tokenizer = make_tokenizer(SHAPES["chatml"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    (example,), _ = encode_conversations(
        [row(user("Why?"), assistant("<think>Hm.</think>So."))], tokenizer, LONG, "error"
    )
    assert decoded(example, tokenizer)[1] == "<think>Hm.</think>So.<|im_end|>"
