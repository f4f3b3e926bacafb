"""Rows as people hold them: CSV, and columns by other names."""

import gzip
import sys

import pyarrow.parquet as pq
import pytest

import bradley_terry.prepare_data
import generative_pairwise.prepare_data
import generative_pointwise.prepare_data
import sft.prepare_data
from common.conversation import DataError
from common.sources import load_source

METHODS = (bradley_terry, generative_pairwise, generative_pointwise, sft)
CSV = """question,better,worse,margin,rater
"Name a fruit,
and a nut.","An apple, a ""walnut"".",A stone.,1.5,ann
2+2?,4,5,,NA
Say NA.,NA,null,2,bob
"""
PAIRS = ("prompt=question", "chosen=better", "rejected=worse")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.csv").write_text(CSV)
    return tmp_path / "mine.csv"


def test_csv_is_read_as_it_is_written(file):
    rows = load_source(str(file), "train", PAIRS, ["margin"])
    assert rows == [
        {
            "prompt": "Name a fruit,\nand a nut.",
            "chosen": 'An apple, a "walnut".',
            "rejected": "A stone.",
            "margin": 1.5,
            "rater": "ann",
        },
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": None, "rater": "NA"},
        {"prompt": "Say NA.", "chosen": "NA", "rejected": "null", "margin": 2.0, "rater": "bob"},
    ]


def test_answers_that_all_look_like_numbers_stay_text(tmp_path):
    (tmp_path / "sums.csv").write_text("question,chosen,rejected,margin\n7,4,05,1\n8,true,2020-01-01,\n")
    rows = load_source(str(tmp_path / "sums.csv"), "train", numbers=["margin"])
    assert rows[0] == {"question": "7", "chosen": "4", "rejected": "05", "margin": 1}
    assert rows[1] == {"question": "8", "chosen": "true", "rejected": "2020-01-01", "margin": None}


def test_a_question_of_digits_is_not_left_out(monkeypatch, tmp_path):
    """A number in a column that looks like the question is no text, so it would not be missed in the conversations."""
    (tmp_path / "sums.csv").write_text("question,chosen,rejected\n7,4,5\n8,4,5\n")
    arguments = ("--source", "pairs", "--path", tmp_path / "sums.csv", "--output", tmp_path)
    with pytest.raises(DataError, match="column 'question': looks like a part of the prompt"):
        run(monkeypatch, bradley_terry, *arguments)


def test_a_row_may_be_longer_than_a_megabyte(tmp_path):
    long = "word " * 500_000
    (tmp_path / "long.csv").write_text(f'prompt,chosen,rejected\nA,b,c\n"{long}",b,c\n')
    assert [row["prompt"] for row in load_source(str(tmp_path / "long.csv"), "train")] == ["A", long]


def test_an_empty_answer_stays_empty_and_several_files_are_one(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as packed:
        packed.write("chosen,rejected\n,no\n")
    (tmp_path / "b.csv").write_text("chosen,rejected,margin\nyes,no,1\n")
    rows = load_source(str(tmp_path), "train", numbers=["margin"])
    assert [row["chosen"] for row in rows] == ["", "yes"] and [row["margin"] for row in rows] == [None, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n1,2,3\n", r"mine\.csv: cannot be read: .*Expected 2 columns, got 3: 1,2,3"),
        ("a,b\n1\n", r"Expected 2 columns, got 1"),
        ("a,a\n1,2\n", "mine.csv: more than one column is called a. Rename or take out the others"),
    ],
)
def test_broken_csv_is_one_clear_line(file, text, message):
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_source(str(file), "train")


def test_files_whose_numbers_are_of_two_kinds_are_one_clear_line(tmp_path):
    for name, label in (("a", "1"), ("b", "good")):
        (tmp_path / f"{name}.csv").write_text(f"input,label\nq,{label}\n")
    with pytest.raises(DataError, match="cannot be read: .*label"):
        load_source(str(tmp_path), "train", numbers=["label"])


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (["chosen"], "--columns chosen: expected NAME=THEIRS, such as chosen=better"),
        (["chosen="], "--columns chosen=: expected NAME=THEIRS"),
        (["chosen=best"], "mine.csv has no column best; it has question, better, worse, margin, rater"),
        (["margin=rater"], "mine.csv has a column margin already. Give that one another name too"),
        (["chosen=better", "chosen=worse"], "--columns names chosen twice"),
        (["chosen=better", "rejected=better"], "--columns names better twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(file, renamed, message):
    with pytest.raises(DataError, match=message):
        load_source(str(file), "train", renamed)


def test_columns_of_other_files_change_names_too_and_may_change_places(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"chosen": "bad", "rejected": "good"}\n')
    rows = load_source(str(tmp_path / "mine.jsonl"), "train", ["chosen=rejected", "rejected=chosen"])
    assert list(rows) == [{"chosen": "good", "rejected": "bad"}]


def run(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    module.prepare_data.main()


def test_a_csv_of_prompts_and_two_answers_becomes_pairs(file, tmp_path, monkeypatch, capsys):
    rows = "".join(f'"Name {number} nuts.",{number},none,1,ann\n' for number in range(20))
    file.write_text("question,better,worse,margin,rater\n" + rows)
    arguments = ["--source", "pairs", "--path", file, "--output", tmp_path / "data", "--columns", *PAIRS]
    run(monkeypatch, bradley_terry, *arguments)
    assert "not read, so no model sees it: rater" in capsys.readouterr().out
    written = [
        row
        for split in ("train", "val", "test")
        for row in pq.read_table(tmp_path / f"data/{split}.parquet").to_pylist()
    ]
    assert len(written) == 20
    for row in written:
        asked, answer = row["chosen"]
        assert asked == {"role": "user", "content": f"Name {answer['content']} nuts."}
        assert answer["role"] == "assistant" and row["rejected"][-1]["content"] == "none" and row["margin"] == 1


@pytest.mark.parametrize("module", METHODS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("given", [["--path", "mine.csv"], ["--columns", "chosen=better"], ["--without", __file__]])
def test_the_demo_takes_no_rows(monkeypatch, tmp_path, module, given):
    with pytest.raises(DataError, match="--source demo makes its own rows: leave out --path, --columns and --without"):
        run(monkeypatch, module, "--source", "demo", "--output", tmp_path, *given)


def test_a_judges_columns_and_conversations_may_have_other_names(monkeypatch, tmp_path, capsys):
    words = ["one", "two", "three", "four"]
    talks = [
        f'[{{""role"": ""user"", ""content"": ""{word}?""}}, {{""role"": ""assistant"", ""content"": ""yes""}}]'
        for word in words
    ]
    (tmp_path / "talks.csv").write_text("talk\n" + "".join(f'"{talk}"\n' for talk in talks))
    run(
        monkeypatch,
        sft,
        "--source",
        "messages",
        "--path",
        tmp_path / "talks.csv",
        "--columns",
        "messages=talk",
        "--output",
        tmp_path / "s",
        "--val-share",
        0.25,
    )
    assert pq.read_metadata(tmp_path / "s" / "train.parquet").num_rows == 2

    answers = [f'[{{""answer"": {{""role"": ""assistant"", ""content"": ""{word}""}}}}]' for word in words]
    rows = [f'Say {word}.,"{answer}",{score}\n' for score, (word, answer) in enumerate(zip(words, answers))]
    (tmp_path / "scores.csv").write_text("question,answer,score\n" + "".join(rows))
    names = ("input=question", "output=answer", "label=score")
    run(
        monkeypatch,
        generative_pointwise,
        "--source",
        "pointwise",
        "--path",
        tmp_path / "scores.csv",
        "--columns",
        *names,
        "--output",
        tmp_path / "p",
        "--val-share",
        0.25,
    )
    table = pq.read_table(tmp_path / "p" / "train.parquet")
    assert table.num_rows == 2 and set(table["label"].to_pylist()) < {0, 1, 2, 3}
