"""The shapes of rows that `score.py` takes, its parts in one process, and what it refuses before Ray starts."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rewards import plain_rewards
from shapes import assistant, system, user
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bradley_terry import score as bt_score
from common.checkpoint import claim_folder
from common.conversation import BadRow, DataError
from common.demo.world import preference_pairs
from common.parquet import write_rows

TALKS = [[user("Name a thing."), assistant(f"A kettle, and {number} bowls.")] for number in range(3)]
ASKED = [system("Be brief."), user("Hello."), assistant("Yes?"), user("Name a thing.")]


def outputs(*responses: str) -> list[dict]:
    return [{"answer": {"role": "assistant", "content": response}} for response in responses]


# ---- read_texts


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"chosen": TALKS[0], "rejected": json.dumps(TALKS[1])}, ("chosen", "rejected"), TALKS[:2]),
        ({"chosen": "Good.", "rejected": "Bad."}, ("chosen", "rejected"), ["Good.", "Bad."]),
        ({"messages": TALKS[0]}, ("messages",), TALKS[:1]),
        ({"messages": "As it is."}, ("messages",), ["As it is."]),
        ({"query": "Hi", "response": "Ho"}, ("query", "response"), [[user("Hi"), assistant("Ho")]]),
        ({"query": ASKED, "response": "Ho"}, ("query", "response"), [[*ASKED, assistant("Ho")]]),
        ({"query": json.dumps(ASKED), "response": "Ho"}, ("query", "response"), [[*ASKED, assistant("Ho")]]),
        ({"query": "Hi", "response": '[{"a": 1}]'}, ("query", "response"), [[user("Hi"), assistant('[{"a": 1}]')]]),
        ({"input": "Hi", "output": outputs("A")}, ("input", "output"), [[user("Hi"), assistant("A")]]),
        (
            {"input": ASKED, "output": json.dumps(outputs("A", "B", "C"))},
            ("input", "output"),
            [[*ASKED, assistant(response)] for response in "ABC"],
        ),
    ],
)
def test_what_a_row_wants_scored(row, shape, expected):
    assert bt_score.read_texts(row, shape) == expected


@pytest.mark.parametrize(
    ("row", "shape", "column", "kind"),
    [
        ({"chosen": TALKS[0], "rejected": ASKED}, ("chosen", "rejected"), "rejected", "not the assistant's"),
        ({"messages": None}, ("messages",), "messages", "expected a list of messages"),
        ({"messages": [user("Hi"), {"role": "assistant", "content": None}]}, ("messages",), "messages", "without role"),
        ({"query": None, "response": "Ho"}, ("query", "response"), "query", "expected a list of messages"),
        ({"query": "Hi", "response": None}, ("query", "response"), "response", "expected text"),
        ({"query": "Hi", "response": " \n"}, ("query", "response"), "response", "empty response"),
        ({"query": "", "response": "Ho"}, ("query", "response"), "query", "empty text"),
        ({"input": "Hi", "output": []}, ("input", "output"), "output", "expected a list of 1 or more response"),
        ({"input": "Hi", "output": outputs("A", "")}, ("input", "output"), "output", "empty response"),
        ({"input": "Hi", "output": "[{"}, ("input", "output"), "output", "JSON that cannot be parsed"),
    ],
)
def test_a_row_that_holds_nothing_to_score_is_refused_by_its_column(row, shape, column, kind):
    with pytest.raises(BadRow, match=kind) as fault:
        bt_score.read_texts(row, shape)
    assert fault.value.column == column


# ---- score_rows


def make_scorer(reward_checkpoint, shape, **changes):
    defaults = {"dtype": "float32", "trust_remote_code": False, "max_length": 4096, "max_tokens": None}
    defaults |= {"ensemble": [], "pessimism": 1.0}
    return bt_score.Scorer(shape, argparse.Namespace(model=str(reward_checkpoint), **defaults | changes))


def answers(count: int) -> list[tuple[str, str]]:
    """Queries, two answers to each."""
    pairs = preference_pairs("test", count, seed=3)
    return [
        (pair["chosen"][0]["content"], pair[side][1]["content"]) for pair in pairs for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("max_tokens", [1, 200, None])
@pytest.mark.parametrize("columns", [("messages",), ("query", "response")], ids=["messages", "query and response"])
def test_one_reward_a_row(reward_checkpoint, columns, max_tokens):
    talks = [[user(query), assistant(answer)] for query, answer in answers(5)]
    rows = [{"query": talk[0]["content"], "response": talk[1]["content"], "messages": talk} for talk in talks]
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows])
    scored = make_scorer(reward_checkpoint, columns, max_tokens=max_tokens).score_rows(table)
    assert scored.column_names == [*columns, "reward", "reward_error"]
    assert scored.schema.field("reward").type == pa.float32()
    assert scored.select(columns).equals(table) and scored["reward_error"].null_count == 10
    expected = plain_rewards(reward_checkpoint, talks)
    assert np.std(expected) > 0.02
    np.testing.assert_allclose(scored["reward"].to_pylist(), expected, atol=1e-5, rtol=0)


def test_several_responses_have_a_list_of_rewards_in_their_order(reward_checkpoint):
    texts = ["One kettle.", "Two bowls and a rake.", "No.", "Dear reader, a spoon."]
    rows = [
        {"input": "Name a thing.", "output": outputs(*texts)},
        {"input": "Name a thing.", "output": outputs(texts[0], "")},
        {"input": "What else?", "output": outputs(texts[2])},
    ]
    scored = make_scorer(reward_checkpoint, ("input", "output")).score_rows(pa.Table.from_pylist(rows))
    assert scored.schema.field("rewards").type == pa.list_(pa.float32())
    first, second, third = scored["rewards"].to_pylist()
    talks = [[user("Name a thing."), assistant(text)] for text in texts] + [[user("What else?"), assistant(texts[2])]]
    np.testing.assert_allclose([*first, *third], plain_rewards(reward_checkpoint, talks), atol=1e-5, rtol=0)
    assert second is None
    assert scored["reward_error"].to_pylist() == [None, "column 'output': empty response (found '')", None]


def test_a_part_of_bad_rows_alone_keeps_the_types_of_its_columns(reward_checkpoint):
    table = pa.table({"messages": pa.array([None, None], pa.string())})
    scored = make_scorer(reward_checkpoint, ("messages",)).score_rows(table)
    assert scored.schema.field("reward").type == pa.float32()
    assert scored["reward"].to_pylist() == [None, None] and scored["reward_error"].null_count == 0


def test_a_row_has_both_rewards_or_none(reward_checkpoint):
    scorer = make_scorer(reward_checkpoint, ("chosen", "rejected"), max_length=40)
    long = [user("Name a thing."), assistant("kettle " * 40)]
    rows = [{"chosen": TALKS[0], "rejected": long}, {"chosen": long, "rejected": TALKS[0]}]
    rows.append({"chosen": TALKS[0], "rejected": TALKS[1]})
    scored = scorer.score_rows(pa.Table.from_pylist(rows))
    rewards = [scored[name].to_pylist() for name in ("chosen_reward", "rejected_reward")]
    assert [values[:2] for values in rewards] == [[None, None]] * 2
    expected = plain_rewards(reward_checkpoint, TALKS[:2])
    np.testing.assert_allclose([values[2] for values in rewards], expected, atol=1e-5)
    assert all("longer than 40 tokens" in error for error in scored["reward_error"].to_pylist()[:2])


def test_bfloat16_moves_rewards_by_little(reward_checkpoint):
    table = pa.Table.from_pylist([{"query": query, "response": answer} for query, answer in answers(5)])
    exact, rounded = (
        make_scorer(reward_checkpoint, ("query", "response"), dtype=dtype).score_rows(table)["reward"].to_numpy()
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.05


@pytest.fixture(scope="module")
def other_checkpoint(reward_checkpoint, tmp_path_factory) -> Path:
    """The same model with another head."""
    path = tmp_path_factory.mktemp("other_model")
    model = AutoModelForSequenceClassification.from_pretrained(reward_checkpoint)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(reward_checkpoint).save_pretrained(path)
    return path


def test_several_models_give_their_mean_less_their_standard_deviation(reward_checkpoint, other_checkpoint):
    shape, rows = ("query", "response"), [{"query": query, "response": answer} for query, answer in answers(5)]
    table = pa.Table.from_pylist([*rows, {"query": "Hi", "response": ""}])
    first, second = (
        make_scorer(path, shape).score_rows(table)["reward"].to_pylist()
        for path in (reward_checkpoint, other_checkpoint)
    )
    for pessimism in (0.0, 2.0):
        ensemble = {"ensemble": [str(other_checkpoint)], "pessimism": pessimism}
        scored = make_scorer(reward_checkpoint, shape, **ensemble).score_rows(table)
        both = zip(first[:-1], second[:-1], strict=True)
        expected = [(one + two) / 2 - pessimism * abs(one - two) / 2 for one, two in both]
        np.testing.assert_allclose(scored["reward"].to_pylist()[:-1], expected, atol=1e-4)
        assert scored["reward"].to_pylist()[-1] is None and "empty response" in scored["reward_error"].to_pylist()[-1]


def test_a_run_with_one_model_is_known_as_before_and_another_ensemble_is_another_run(reward_checkpoint, rows_file):
    options = {"model": str(reward_checkpoint), "max_length": 9, "dtype": "float32"}
    one, several, milder = (
        bt_score.identity(argparse.Namespace(**options, ensemble=ensemble, pessimism=pessimism), [str(rows_file)])
        for ensemble, pessimism in (([], 1.0), ([str(reward_checkpoint)], 1.0), ([str(reward_checkpoint)], 0.5))
    )
    assert set(one) == {"max_length", "dtype", "model", "files"}
    assert one != several != milder and several == one | {"ensemble": [one["model"]], "pessimism": 1.0}


# ---- refused before Ray starts


@pytest.fixture
def rows_file(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.parquet", [{"id": 0, "messages": TALKS[0]}])


@pytest.fixture
def refuse(monkeypatch, tmp_path):
    """Run the command, which must refuse with a message and leave no output folder."""

    def run(message: str, model, rows, *more: str, error: type = DataError) -> None:
        arguments = ["--model", str(model), "--input", str(rows), "--output", str(tmp_path / "out"), *more]
        monkeypatch.setattr(sys, "argv", ["score.py", *arguments])
        monkeypatch.setattr(bt_score, "start_ray", lambda options: pytest.fail("Ray was started"))
        with pytest.raises(error, match=message):
            bt_score.main()
        assert not list(tmp_path.glob("out/part-*"))

    return run


def test_no_input_is_refused(refuse, reward_checkpoint, tmp_path):
    refuse("nothing.*no such file", reward_checkpoint, tmp_path / "nothing*.parquet")
    refuse("a folder without any .parquet file", reward_checkpoint, tmp_path)


def test_a_file_that_is_no_parquet_is_refused(refuse, reward_checkpoint, tmp_path):
    (tmp_path / "rows.parquet").write_text("{}")
    refuse("rows.parquet: not a Parquet file", reward_checkpoint, tmp_path / "rows.parquet")


def test_no_column_to_score_is_refused_with_what_was_found(refuse, reward_checkpoint, tmp_path):
    file = write_rows(tmp_path / "rows.parquet", [{"prompt": "a", "chosen": "b"}])
    refuse(
        "expected the columns chosen and rejected, or messages, or .*; found prompt, chosen", reward_checkpoint, file
    )


@pytest.mark.parametrize("name", ["reward", "reward_error"])
def test_a_column_that_scoring_adds_is_refused(refuse, reward_checkpoint, tmp_path, name):
    file = write_rows(tmp_path / "rows.parquet", [{"messages": "a", name: "b"}])
    refuse(f"there is a column {name} already", reward_checkpoint, file)


def test_files_of_two_kinds_are_refused(refuse, reward_checkpoint, rows_file, tmp_path):
    write_rows(tmp_path / "other.parquet", [{"query": "a", "response": "b"}])
    message = "several kinds: other.parquet has query and response; rows.parquet has messages"
    refuse(message, reward_checkpoint, tmp_path)


def test_what_is_no_reward_model_is_refused(refuse, tiny_model, rows_file, tmp_path):
    refuse("2 labels, expected 1. Is it a reward model", tiny_model, rows_file)
    refuse("cannot be loaded .there is no folder of that name", tmp_path / "nowhere", rows_file)


@pytest.mark.parametrize("option", ["--max-tokens", "--workers", "--max-length"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_sizes_below_one_are_refused(refuse, reward_checkpoint, rows_file, option, value):
    refuse("are at least 1", reward_checkpoint, rows_file, option, value)


def test_pessimism_is_refused_that_is_none_or_about_nothing(refuse, reward_checkpoint, rows_file):
    refuse("about several models", reward_checkpoint, rows_file, "--pessimism", "2")
    for value in ("-1", "nan", "inf"):
        refuse(
            "a number of at least 0",
            reward_checkpoint,
            rows_file,
            "--ensemble",
            str(reward_checkpoint),
            "--pessimism",
            value,
        )


def test_a_folder_that_another_run_writes_to_is_refused(refuse, reward_checkpoint, rows_file, tmp_path):
    with claim_folder(tmp_path / "out"):
        error = bt_score.CheckpointError
        refuse("another run is writing to", reward_checkpoint, rows_file, error=error)


def test_a_file_without_rows_is_scored_at_once(monkeypatch, capsys, reward_checkpoint, tmp_path):
    pq.write_table(pa.table({"messages": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    arguments = ["--model", str(reward_checkpoint), "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["score.py", *arguments])
    bt_score.main()
    assert "0 rows, 0 of them with rewards" in capsys.readouterr().out
    assert (tmp_path / "out" / "_bad_rows.jsonl").read_text() == ""
