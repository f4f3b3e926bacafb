"""Files and cells in the shapes that real exports have: read if they can mean one thing only, else named."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shapes import assistant, user

from bradley_terry.dataset import load_pairs
from bradley_terry.prepare_data import convert_pairs, from_pairs
from common.conversation import BadRow, DataError, is_blank, read_conversation
from common.parquet import Faults, read_rows, write_rows
from common.sources import load_source
from sft.dataset import check_conversation, load_conversations
from sft.prepare_data import convert_conversations

TALK = [user("Name a tool."), assistant("A rake.")]
PAIR = {"chosen": TALK, "rejected": [TALK[0], assistant("No.")]}

# ---- a conversation in a cell, wrapped in many ways

TEXT = json.dumps(TALK)
WRAPPED = {
    "json": TEXT,
    "indented": json.dumps(TALK, indent=2),
    "byte-order mark": "\ufeff" + TEXT,
    "zero-width space": "\u200b\n" + TEXT + "\n",
    "encoded twice": json.dumps(TEXT),
    "encoded three times": json.dumps(json.dumps(TEXT)),
    "in a list": json.dumps([TALK]),
    "in a list, native": [TALK],
    "in an object": json.dumps({"messages": TALK}),
    "in an object, native": {"conversations": TALK},
    "with an id": json.dumps({"id": 7, "conversation": TALK, "source": "x", "num_turns": 2}),
    "encoded in an object": json.dumps({"messages": TEXT}),
    "python": repr(TALK),
    "python, encoded": json.dumps(repr(TALK)),
    "python, with None": repr([{**turn, "name": None} for turn in TALK]),
}


@pytest.mark.parametrize("cell", WRAPPED.values(), ids=WRAPPED)
def test_messages_are_read_however_they_are_wrapped(cell):
    """Trap 24: as plain text they would be trained on, brackets and all."""
    assert read_conversation("chosen", cell) == TALK


UNREADABLE = {
    "cut off": TEXT[:-5],
    "cut off, twice encoded": json.dumps(TEXT)[:-9],
    "several": json.dumps([TALK, TALK]),
    "with a system text": json.dumps({"system": "Be kind.", "messages": TALK}),
    "with tools": json.dumps({"messages": TALK, "tools": ["f"]}),
    "numpy": "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",
    "array": "array([{'role': 'user', 'content': 'a'}], dtype=object)",
    "one message": json.dumps(TALK[0]),
    "sharegpt": json.dumps([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
    "json lines": "\n".join(map(json.dumps, TALK)),
}


@pytest.mark.parametrize("cell", UNREADABLE.values(), ids=UNREADABLE)
def test_text_that_looks_like_messages_and_cannot_be_read_is_no_plain_text(cell):
    with pytest.raises(BadRow):
        read_conversation("chosen", cell)


PLAIN = [
    '{"answer": 3}',
    "[1, 2]",
    "[x] done",
    '[{"name": "weather", "arguments": {}}]',
    "role: user",
    'He said: {"role": "user"}',
    '{"name": "Bob", "role": "user"}',
    '[Note] Send {"role": "user", "content": "Hi"} to it.',
    "{ not json",
    "print([{'a': 1}])",
    '```json\n[{"role": "user", "content": "x"}]\n```',
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_that_resembles_json_stays_plain_text(text):
    assert read_conversation("chosen", text) == text


@pytest.mark.parametrize("text", ["", " ", "\u200b\u2060", "\ufeff", "\u3164", "\u2800\n", "\ufe0f", "\x00", "\u202e"])
def test_what_nobody_can_see_is_blank(text):
    assert is_blank(text)
    with pytest.raises(BadRow, match="empty response"):
        read_conversation("chosen", [TALK[0], assistant(text)])


@pytest.mark.parametrize("text", ["a", "👩\u200d👩\u200d👧", ".", "é", "0", "❤\ufe0f"])
def test_what_can_be_seen_is_not(text):
    assert not is_blank(text)


# ---- files


def read_text(files, **options):
    return [row["text"] for row in read_rows(files, ("text",), **options)[0]]


def test_folders_and_names_of_any_kind_are_read(tmp_path):
    for name in ("we[ird]/a.parquet", "we[ird]/deep/lang=de/b.parquet", "a, b.parquet", "uf [v2].parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / name, [{"text": name}])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "we[ird]" / "empty.parquet")
    (tmp_path / "we[ird]" / "_SUCCESS").touch()
    assert read_text(tmp_path / "we[ird]") == ["we[ird]/a.parquet", "we[ird]/deep/lang=de/b.parquet"]
    assert read_text(str(tmp_path / "a, b.parquet")) == ["a, b.parquet"]
    assert read_text(f"{tmp_path / 'we[ird]' / 'a.parquet'},{tmp_path / 'uf [v2].parquet'}") == [
        "we[ird]/a.parquet",
        "uf [v2].parquet",
    ]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: a folder without any .parquet file"):
        read_text(tmp_path / "nothing")


def test_two_columns_of_one_name_are_one_clear_line(tmp_path):
    path = tmp_path / "dup.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    for read in (read_text, lambda file: load_source(str(file), "train")):
        with pytest.raises(DataError, match="dup.parquet: more than one column is called 'text'. Rename or take out"):
            read(path)


def test_sources_are_read_from_folders_and_files_of_any_name(tmp_path):
    (tmp_path / "we[ird]").mkdir()
    (tmp_path / "we[ird]" / "uf [v2].jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "we[ird]" / "empty.jsonl").touch()
    for path in (tmp_path / "we[ird]", tmp_path / "we[ird]" / "uf [v2].jsonl"):
        assert [row["text"] for row in load_source(str(path), "train")] == ["a", "b"]
    with pytest.raises(DataError, match="empty.jsonl: the file is empty"):
        load_source(str(tmp_path / "we[ird]" / "empty.jsonl"), "train")
    write_rows(tmp_path / "we[ird]" / "c.parquet", [{"text": "c"}])
    with pytest.raises(DataError, match="files of one kind; found json and parquet"):
        load_source(str(tmp_path / "we[ird]"), "train")


def test_what_is_not_read_is_named(tmp_path, capsys):
    talk = [{**turn, "name": "Ann", "weight": None} for turn in TALK]
    rows = [{**PAIR, "chosen": talk, "images": ["a.png"], "tools": "[]", "margin": 1.0}]
    load_pairs(write_rows(tmp_path / "train.parquet", rows))
    assert (
        capsys.readouterr().out == "train.parquet: not read, so no model sees it: images, tools, name (of messages)\n"
    )
    load_pairs(write_rows(tmp_path / "plain.parquet", [PAIR]))
    assert capsys.readouterr().out == ""
    said = "not read, so no model sees it: images, tools, name (of messages)\n"
    convert_pairs(rows, from_pairs, "error")
    assert capsys.readouterr().out == said
    talks = [{"messages": [{**turn, "weight": None, "name": "Ann"} for turn in TALK], "images": [], "tools": "[]"}]
    convert_conversations(talks, "error")
    assert capsys.readouterr().out == said


# ---- one report of all faults


def test_faults_of_several_files_and_kinds_are_one_error(tmp_path):
    bad = write_rows(tmp_path / "train.parquet", [PAIR, {**PAIR, "rejected": TALK}])
    faults = Faults()
    for file in (bad, tmp_path / "val.parquet"):
        with faults.gathered():
            rows, dropped = load_pairs(file, faults=faults)
            assert (len(rows), dropped) == (1, Counter())
    with pytest.raises(DataError) as caught:
        faults.raise_all()
    first, second = str(caught.value).split("\n\n")
    assert "train.parquet row 1, column 'rejected': chosen and rejected are equal" in first
    assert "val.parquet: no such file" in second
    Faults().raise_all()


def test_when_no_row_can_be_used_the_source_is_asked_for(tmp_path):
    rows = [{**PAIR, "chosen": "Q: 1"}] * 3
    with pytest.raises(DataError, match=r"3 of 3 rows(?s:.*)Not one row can be used: is this the right file") as caught:
        load_pairs(write_rows(tmp_path / "train.parquet", rows))
    assert "on_bad_row" not in str(caught.value)


# ---- sft: which turns are trained on

LATER = [*TALK, user("Another?"), assistant("A saw.")]


def weighted(*weights, name: str = "weight") -> dict:
    return {"messages": [{**turn, name: weight} for turn, weight in zip(LATER, weights)]}


@pytest.mark.parametrize("name", ["weight", "train", "loss"])
@pytest.mark.parametrize("zero", [0, 0.0, False])
def test_a_turn_of_weight_0_is_not_trained_on(name, zero, tmp_path):
    read = check_conversation(weighted(None, zero, None, None, name=name))
    assert read == {"messages": LATER, "trained": [False, True]}
    assert check_conversation(weighted(None, 1, zero, zero, name=name))["trained"] == [True, False]
    rows, _ = load_conversations(
        write_rows(tmp_path / "t.parquet", [weighted(None, bool(zero), None, True, name=name)])
    )
    assert rows[0]["trained"] == [False, True]


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ((None, 0.5, None, None), "a turn's weight is 0 or 1"),
        ((None, "no", None, None), "a turn's weight is 0 or 1"),
        ((1, None, None, None), "a turn of the user to train on"),
        ((None, 0, None, 0), "no assistant turn is trained on"),
    ],
)
def test_a_weight_that_cannot_be_honoured_is_named(weights, kind):
    with pytest.raises(BadRow, match=kind):
        check_conversation(weighted(*weights))


def test_weights_that_contradict_each_other_are_named():
    row = weighted(None, 0, None, None)
    row["messages"][1]["train"] = True
    with pytest.raises(BadRow, match="contradict each other"):
        check_conversation(row)
