"""Conversations read, cut to length, batched and shown."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import CHATML, SHAPES, assistant, make_tokenizer, user

from common.conversation import DataError
from common.parquet import write_rows
from sft import dataset

Example, encode_conversations = dataset.Example, dataset.encode_conversations

LONG = 10**6


def row(*messages: dict, number: int = 0) -> dict:
    return {"messages": list(messages), "source": f"train.parquet row {number}"}


def decoded(example, tokenizer) -> tuple[str, str]:
    """All of an example, and what of it is trained on."""
    return tokenizer.decode(example.ids), tokenizer.decode(example.ids[example.mask])


@pytest.fixture(scope="module")
def chatml():
    return make_tokenizer(SHAPES["chatml"])


# ---- reading


UNUSABLE = {
    "Q: 12 A: 13": "expected a list of messages or JSON text of one, found plain text (found 'Q: 12 A: 13')",
    json.dumps([user("a")]): "no assistant turn (found [{'role': 'user', 'content': 'a'}])",
    json.dumps([user("a"), assistant("b"), user("c")]): "the last turn is not the assistant's (found \"role 'user'\")",
    json.dumps([user("a"), assistant(" \n"), user("b"), assistant("c")]): "an empty assistant turn",
    json.dumps([user("a"), assistant("\n")]): "an empty assistant turn",
}


def test_rows_with_nothing_to_learn_are_refused_by_file_and_row_or_dropped_and_counted(tmp_path):
    talk = [user("Why?"), assistant("So.")]
    cells = [*UNUSABLE, json.dumps(talk)]
    path = write_rows(tmp_path / "train.parquet", [{"messages": cell} for cell in cells])
    with pytest.raises(DataError) as caught:
        dataset.load_conversations(path)
    faults = list(UNUSABLE.values())
    shown = [f"  train.parquet row {number}, column 'messages': {fault}" for number, fault in enumerate(faults)]
    assert str(caught.value).splitlines()[:6] == ["5 of 6 rows cannot be used:", *shown]
    rows, counts = dataset.load_conversations(path, on_bad_row="drop")
    assert rows == [row(*talk, number=5) | {"trained": [True]}]
    assert counts == Counter(f"column 'messages': {fault.partition(' (found')[0]}" for fault in faults)


@pytest.mark.parametrize("cut", ["\n<think>\nHm, so", "<think>\n\n</think>\n\n<think>Hm, so", "[THINK]Hm, so"])
def test_an_answer_whose_reasoning_was_cut_off_is_not_trained_on(chatml, cut):
    with pytest.raises(DataError, match=r"opens (<think>|\[THINK\]) and does not close it: cut off\? \(found '"):
        encode_conversations([row(user("Why?"), assistant(cut))], chatml, 99, "error")
    earlier = row(user("Why?"), assistant(cut), user("Why?"), assistant("<think>\nHm.\n</think>\nSo."))
    assert len(encode_conversations([earlier], chatml, 999, "error", turns="last")[0]) == 1
    unwanted = earlier | {"trained": [False, True]}
    assert len(encode_conversations([unwanted], chatml, 999, "error")[0]) == 1


def test_the_prompt_is_all_before_the_last_turn_however_the_cell_is_written(tmp_path):
    """Else a prompt lands on two sides of a split."""
    system, other = {"role": "system", "content": "Be brief."}, [user("Why?"), assistant("Because."), user("Why?")]
    talks = [[user("Why?"), assistant("So.")], [system, user("Why?"), assistant("So.")], [*other, assistant("So.")]]
    turned = [[{"content": turn["content"], "role": turn["role"]} for turn in messages] for messages in talks]
    other_answer = [[*messages[:-1], assistant("No.")] for messages in talks]
    prompts = []
    for number, cells in enumerate((talks, turned, map(json.dumps, turned), other_answer)):
        path = write_rows(tmp_path / f"{number}.parquet", [{"messages": cell} for cell in cells])
        prompts.append([dataset.prompt_of(row) for row in dataset.load_conversations(path)[0]])
    assert prompts == [prompts[0]] * 4
    assert len(set(prompts[0])) == 3


# ---- length: a digit is one token; a header has three, an end of turn with its line feed two

NUMBERS = row(user("12"), assistant("345"), user("6"), assistant("78"))  # 28 tokens, its last turn begins at 24
LONGER = row(user("1"), assistant("2" * 30), number=1)  # 41 tokens
SHORT = row(user("1"), assistant("2"), number=2)  # 12 tokens


def test_a_conversation_of_exactly_max_length_is_kept_whole(chatml):
    (example,), counts = encode_conversations([NUMBERS], chatml, 28, "error")
    assert (example.tokens, counts) == (28, {})


def test_truncation_error_names_the_longest_conversations_and_the_remedies(chatml):
    with pytest.raises(DataError) as caught:
        encode_conversations([NUMBERS, LONGER, SHORT], chatml, 27, "error")
    assert str(caught.value).splitlines() == [
        "2 of 3 conversations are longer than data.max_length=27 tokens. The longest:",
        "  train.parquet row 1: 41 tokens",
        "  train.parquet row 0: 28 tokens",
        "Raise data.max_length (--max-length) if the model reads more, or set data.truncation (--truncation):",
        "drop leaves them out, left cuts their start.",
    ]


def test_truncation_drop_leaves_long_conversations_out_and_counts_them(chatml):
    examples, counts = encode_conversations([NUMBERS, LONGER, SHORT], chatml, 27, "drop")
    assert [example.source for example in examples] == ["train.parquet row 2"]
    assert counts == {"longer than 27 tokens, dropped": 2}


FIRST, LAST = "345<|im_end|>", "78<|im_end|>"
REST = "\n<|im_start|>user\n6<|im_end|>\n<|im_start|>assistant\n78<|im_end|>\n"


@pytest.mark.parametrize(
    ("max_length", "text", "trained"),
    [
        (20, "assistant\n345<|im_end|>" + REST, FIRST + LAST),
        (19, "\n345<|im_end|>" + REST, FIRST + LAST),
        (18, "345<|im_end|>" + REST, LAST),  # what would predict the 3 is cut off
        (17, "45<|im_end|>" + REST, LAST),
        (15, "<|im_end|>" + REST, LAST),
        (14, REST, LAST),
        (5, "\n78<|im_end|>\n", LAST),
    ],
)
def test_truncation_left_cuts_the_start_and_trains_on_the_turns_that_are_still_whole(max_length, text, trained, chatml):
    (example,), counts = encode_conversations([NUMBERS], chatml, max_length, "left")
    assert decoded(example, chatml) == (text, trained)
    assert counts == {f"longer than {max_length} tokens, start cut": 1}


@pytest.mark.parametrize("name", ["chatml", "llama3", "inst"])
@pytest.mark.parametrize("max_length", [1, 2, 3, 11])
def test_truncation_left_drops_and_counts_a_conversation_that_has_no_whole_turn_left(name, max_length):
    """Llama 3's and Mistral's conversations end with the end of turn: nothing behind the mask is given."""
    with pytest.raises(DataError) as caught:
        encode_conversations([LONGER], make_tokenizer(SHAPES[name]), max_length, "left")
    fate = "dropped, as no assistant turn would be left whole"
    assert str(caught.value) == f"no usable conversation: 1 x longer than {max_length} tokens, {fate}"


# ---- the batch

WORKED = [
    Example(np.array([1, 2, 3], np.int32), np.array([0, 0, 1], bool), "a"),
    Example(np.array([4, 5], np.int32), np.array([0, 1], bool), "b"),
]


def test_a_batch_is_laid_out_as_the_docstring_of_collate_shows():
    batch = dataset.collate(WORKED)
    assert {name: [line.tolist() for line in lines.unbind()] for name, lines in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 5]],
        "position_ids": [[0, 1, 2], [0, 1]],
        "loss_mask": [[0, 0, 1], [0, 1]],
    }
    assert {lines.dtype for lines in batch.values()} == {torch.int64}
    assert {lines.layout for lines in batch.values()} == {torch.jagged}


def test_no_sequence_has_its_first_token_trained_on_not_even_one_that_begins_with_an_answer():
    """Packed, the token before it is another conversation's last."""
    bare = CHATML.replace("'<|im_start|>' ~ turn.role ~ '\\n' ~ turn.content", "turn.content")
    tokenizer = make_tokenizer(SHAPES["chatml"], chat_template=bare)
    rows = [row(assistant("12"), user("3"), assistant("45")), row(user("1"), assistant("2"))]
    batch = dataset.collate(encode_conversations(rows, tokenizer, LONG, "error")[0])
    assert [line.tolist() for line in batch["loss_mask"].unbind()] == [
        [0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
    ]


def test_the_digest_tells_other_tokens_and_another_mask():
    other_mask = [replace(WORKED[0], mask=np.array([0, 1, 1], bool)), WORKED[1]]
    other_ids = [replace(WORKED[0], ids=np.array([1, 2, 4], np.int32)), WORKED[1]]
    digests = {dataset.digest_examples(examples) for examples in (WORKED, other_mask, other_ids, WORKED[::-1])}
    assert len(digests) == 4
    assert dataset.digest_examples([replace(example, source="c") for example in WORKED]) in digests


def test_an_example_is_shown_with_what_is_given_and_what_is_trained_on(chatml):
    (example,), _ = encode_conversations([NUMBERS], chatml, LONG, "error")
    assert dataset.describe(example, chatml) == (
        "[given, tokens: 10]\n<|im_start|>user\n12<|im_end|>\n<|im_start|>assistant\n\n"
        "[trained on, tokens: 4]\n345<|im_end|>\n"
        "[given, tokens: 10]\n\n<|im_start|>user\n6<|im_end|>\n<|im_start|>assistant\n\n"
        "[trained on, tokens: 3]\n78<|im_end|>\n"
        "[given, tokens: 1]\n\n"
    )
