"""Reading rows: every fault is named with its file, row, column, what was found and the remedy."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.conversation import BadRow, DataError, read_conversation
from common.parquet import check_rows, left_out_figures, named_paths, read_rows, short_names

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
GOOD = [USER, ANSWER]


def test_files_of_one_name_are_told_apart_by_as_few_folders_as_that_needs():
    paths = [Path("/home/me/runs/a/out/test.parquet"), Path("/home/me/runs/b/out/test.parquet")]
    assert list(short_names(paths).values()) == ["a/out/test.parquet", "b/out/test.parquet"]
    assert list(short_names([Path("/x/a.parquet"), Path("/x/b.parquet")]).values()) == ["a.parquet", "b.parquet"]
    assert list(short_names([Path("a.parquet"), Path("/x/a.parquet")]).values()) == ["a.parquet", "x/a.parquet"]
    assert short_names([]) == {}


def test_a_long_line_of_files_is_read_as_files():
    """A path may have 255 characters between two slashes, a line of files has more."""
    names = [f"{number:040}.parquet" for number in range(9)]
    assert named_paths(", ".join(names)) == [Path(name) for name in names]


def write_column(path, values, name="text", kind=None):
    pq.write_table(pa.table({name: pa.array(values, kind)}), path)
    return path


def check_text(row):
    return {"text": read_conversation("text", row["text"])}


def read_text(path, **options):
    return read_rows(path, ("text",), check=check_text, **options)


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# ---- files


def test_rows_come_in_file_order_with_file_and_row_number(tmp_path):
    first = write_column(tmp_path / "a.parquet", ["one", "two"])
    second = write_column(tmp_path / "b.parquet", ["three"])
    expected = [
        {"text": "one", "source": "a.parquet row 0"},
        {"text": "two", "source": "a.parquet row 1"},
        {"text": "three", "source": "b.parquet row 0"},
    ]
    assert read_text([first, second]) == (expected, {})
    assert read_text(f"{first}, {second}") == (expected, {})
    assert read_text(second)[0] == read_text(str(second))[0] == expected[2:]


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of(read_text, "data/train.parquet") == (
        f"data/train.parquet: no such file (looked in {tmp_path}). Make one with prepare_data.py, or correct the path."
    )


def test_one_missing_file_of_two_is_an_error(tmp_path):
    present = write_column(tmp_path / "a.parquet", ["one"])
    assert f"{tmp_path / 'b.parquet'}: no such file" in error_of(read_text, [present, tmp_path / "b.parquet"])


def test_a_file_that_is_not_parquet_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text('{"text": "jsonl under a wrong name"}\n')
    message = error_of(read_text, path)
    assert message.startswith(f"{path}: not a Parquet file (")
    assert message.endswith("Convert it with prepare_data.py.")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_parquet_file_is_not_a_parquet_file(tmp_path, kept):
    path = write_column(tmp_path / "train.parquet", [f"text {number}" for number in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert f"{path}: not a Parquet file" in error_of(read_text, path)


def test_a_parquet_file_with_damaged_pages_is_not_a_parquet_file(tmp_path):
    path = write_column(tmp_path / "train.parquet", [f"text {number}" for number in range(500)])
    damaged = bytearray(path.read_bytes())
    damaged[4:60] = bytes(byte ^ 0x5A for byte in damaged[4:60])
    path.write_bytes(damaged)
    assert f"{path}: not a Parquet file" in error_of(read_text, path)


def test_a_missing_column_is_named_beside_those_present(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"good": ["a"], "bad": ["b"]}), path)
    assert error_of(read_rows, path, ("chosen", "rejected", "good")) == (
        f"{path}: column 'chosen', 'rejected' is missing; the file has 'good', 'bad'. "
        "Rename the column or convert the file with prepare_data.py."
    )


def test_only_the_asked_columns_are_read_and_a_missing_optional_one_is_left_out(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"], "margin": [1.0], "source": ["a column of the file"]}), path)
    rows, _ = read_rows(path, ("text",), ("margin", "weight"))
    assert rows == [{"text": "a", "margin": 1.0, "source": "train.parquet row 0"}]


def test_a_file_without_rows_is_an_error(tmp_path):
    path = write_column(tmp_path / "train.parquet", [], kind=pa.string())
    assert error_of(read_text, path) == f"{path}: no usable row in it"


def test_dropping_every_row_is_an_error_that_says_why_they_were_dropped(tmp_path):
    path = write_column(tmp_path / "train.parquet", [" ", ""])
    expected = f"{path}: no usable row: all were dropped (2 x column 'text': empty text)"
    assert error_of(read_text, path, on_bad_row="drop") == expected


def test_on_bad_row_takes_two_values_and_names_them(tmp_path):
    message = error_of(read_text, write_column(tmp_path / "a.parquet", ["one"]), on_bad_row="skip")
    assert message == "data.on_bad_row='skip': expected 'error' or 'drop'"


# ---- bad rows, all in one message


def test_bad_rows_are_shown_by_file_row_column_and_value_then_counted(tmp_path):
    path = write_column(tmp_path / "train.parquet", ["fine", "", "fine", json.dumps([USER])])
    assert error_of(read_text, path).splitlines() == [
        "2 of 4 rows cannot be used:",
        "  train.parquet row 1, column 'text': empty text",
        "  train.parquet row 3, column 'text': the last turn is not the assistant's (found \"role 'user'\")",
        "In all: 1 x column 'text': empty text; 1 x column 'text': the last turn is not the assistant's.",
        "Fix these rows, or drop them with data.on_bad_row=drop (--on-bad-row drop, on_bad_row='drop').",
    ]


def test_of_many_bad_rows_five_are_shown_and_all_are_counted(tmp_path):
    path = write_column(tmp_path / "train.parquet", [""] * 40 + ["fine"])
    lines = error_of(read_text, path).splitlines()
    assert [line for line in lines if " row " in line] == [
        f"  train.parquet row {number}, column 'text': empty text" for number in range(5)
    ]
    assert lines[0] == "40 of 41 rows cannot be used:"
    assert "  … and 35 more" in lines
    assert "In all: 40 x column 'text': empty text." in lines


def test_dropped_rows_are_counted_by_kind_and_the_others_keep_their_row_numbers(tmp_path):
    values = ["fine", "", json.dumps([USER]), " ", json.dumps(GOOD)]
    rows, dropped = read_text(write_column(tmp_path / "train.parquet", values), on_bad_row="drop")
    assert rows == [
        {"text": "fine", "source": "train.parquet row 0"},
        {"text": GOOD, "source": "train.parquet row 4"},
    ]
    assert dropped == {"column 'text': empty text": 2, "column 'text': the last turn is not the assistant's": 1}


def test_a_column_of_ints_is_an_error_and_not_text(tmp_path):
    message = error_of(read_text, write_column(tmp_path / "train.parquet", [7, 8]))
    expected = "row 0, column 'text': expected a list of messages, JSON text of one, or plain text (found 7)"
    assert expected in message


def test_a_long_value_is_shown_shortened():
    rows = [{"text": [{"role": "x" * 10_000, "content": "Why?"}], "source": "row 0"}]
    message = error_of(check_rows, rows, check_text, "error")
    assert len(message) < 500
    assert "…" in message


def test_an_error_in_a_check_that_is_not_a_bad_row_is_not_swallowed():
    def broken_check(row):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        check_rows([{"source": "row 0"}], broken_check, "drop")


# ---- conversations


FAULTS = [
    ('[{"role": "user", "content": "Wh', "JSON that cannot be parsed", "Unterminated string"),
    ([{"role": "user"}, ANSWER], "a message without role or content", "message 0: {'role': 'user'}"),
    ([USER, {"content": "Because."}], "a message without role or content", "message 1: {'content': 'Because.'}"),
    ([USER, {"role": "assistant", "content": None}], "a message without role or content", "message 1"),
    (["Why?", "Because."], "a message without role or content", "message 0: 'Why?'"),
    ([{"role": "human", "content": "Why?"}, ANSWER], "unknown role, expected one of system, user,", "'human'"),
    ([USER, {"role": "assistant", "content": 3}], "a message whose content is not text", "3"),
    ([USER, ANSWER, USER], "the last turn is not the assistant's", "role 'user'"),
    ([USER, {"role": "assistant", "content": " \n"}], "empty response", r"' \n'"),
    ([], "expected a list of messages, JSON text of one, or plain text", "[]"),
    (None, "expected a list of messages, JSON text of one, or plain text", ""),
    (3.5, "expected a list of messages, JSON text of one, or plain text", "3.5"),
    (b"bytes", "expected a list of messages, JSON text of one, or plain text", "b'bytes'"),
    ("\n ", "empty text", ""),
    ([USER, {**ANSWER, "reasoning_content": "Hm."}], "a message with reasoning_content; write it into", "'Hm.'"),
    ([USER, {**ANSWER, "reasoning": "Hm."}], "a message with reasoning; write it into the content, between", "'Hm.'"),
    ([USER, {**ANSWER, "thinking": "Hm."}], "a message with thinking; write it into the content, between", "'Hm.'"),
    ([USER, {**ANSWER, "tool_calls": ["f()"]}], "a message with tool calls; write them into the content", "['f()']"),
]


@pytest.mark.parametrize(("value", "kind", "found"), FAULTS, ids=lambda value: re.sub(r"\W+", "-", str(value))[:30])
def test_each_fault_of_a_conversation_has_its_own_name_and_shows_the_value(value, kind, found):
    with pytest.raises(BadRow) as caught:
        read_conversation("chosen", value)
    assert caught.value.column == "chosen"
    assert caught.value.kind.startswith(kind)
    assert found in caught.value.found


def test_native_lists_json_text_and_plain_text_read_to_the_same(tmp_path):
    conversations = [GOOD, [{"role": "system", "content": 'Say "é 😀"'}, *GOOD]]
    native = write_column(tmp_path / "native.parquet", conversations)
    spaced = [f" \n{json.dumps(conversation, indent=2)}" for conversation in conversations]
    as_json = write_column(tmp_path / "json.parquet", spaced)
    assert pa.types.is_list(pq.read_schema(native).field("text").type)
    assert [row["text"] for row in read_text(native)[0]] == conversations
    assert [row["text"] for row in read_text(as_json)[0]] == conversations


@pytest.mark.parametrize("text", ["Q: why?\nA: because", "[1] a citation", '{"answer": 3}', " x "])
def test_plain_text_stays_as_it_is_even_where_it_resembles_json(text):
    assert read_conversation("chosen", text) == text


def test_further_fields_of_a_message_are_left_out():
    named = [{"content": "Why?", "role": "user", "name": "Ann", "tool_calls": None}, ANSWER]
    assert read_conversation("chosen", named) == read_conversation("chosen", json.dumps(named)) == GOOD


@pytest.mark.parametrize("first_key", ["name", "id", "weight"])
def test_json_messages_are_read_as_messages_whatever_their_first_field_is(first_key):
    text = json.dumps([{first_key: "x", **message} for message in GOOD])
    assert read_conversation("chosen", text) == GOOD


def test_json_in_the_style_of_sharegpt_is_a_bad_row_and_not_plain_text():
    with pytest.raises(BadRow, match="a message without role or content"):
        read_conversation("chosen", '[{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]')


def test_a_json_conversation_with_half_an_emoji_is_a_bad_row_because_no_tokenizer_takes_it():
    text = '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "\\ud83d"}]'
    with pytest.raises(BadRow, match="Unicode"):
        read_conversation("chosen", text)


def test_a_native_list_that_arrives_as_numpy_is_refused_and_never_read_as_empty_text(tmp_path):
    """Trap 24: pandas reads list<struct> as an object array, which is no `list`."""
    with pytest.raises(BadRow, match="expected a list of messages"):
        read_conversation("chosen", np.array(GOOD, dtype=object))
    rows, _ = read_text(write_column(tmp_path / "train.parquet", [GOOD]))
    assert type(rows[0]["text"]) is list and type(rows[0]["text"][0]) is dict


def test_what_was_left_out_of_held_out_rows_stands_beside_their_figures():
    left_out = {"train": Counter(x=3), "val": Counter(), "test": Counter({"empty response": 28, "too long": 2})}
    assert left_out_figures(left_out) == {"test/left_out_or_cut": "30 rows: 28 x empty response; 2 x too long"}
