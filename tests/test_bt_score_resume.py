"""What an output folder of `score.py` holds decides what a further start does."""

import json
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shapes import assistant, user
from transformers import AutoModelForSequenceClassification

from bradley_terry import score as bt_score
from bradley_terry.parts import part_path
from common.conversation import DataError

ROWS = 250  # three parts


def write_file(path, word: str) -> None:
    talks = [json.dumps([user("Name a thing."), assistant(f"A {word}, {number}.")]) for number in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "messages": talks}), path)


@pytest.fixture
def command(monkeypatch, reward_checkpoint, tmp_path):
    """Score `rows.parquet` with `model` into `out`."""
    write_file(tmp_path / "rows.parquet", "kettle")
    shutil.copytree(reward_checkpoint, tmp_path / "model")

    def run(*more: str) -> None:
        arguments = ["--input", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "out"), *more]
        monkeypatch.setattr(sys, "argv", ["score.py", "--model", str(tmp_path / "model"), *arguments])
        bt_score.main()

    return run


def test_a_missing_part_alone_is_made_again_and_is_what_it_was(command, tmp_path):
    command()
    tables = [pq.read_table(part_path(tmp_path / "out", number)) for number in range(3)]
    assert [table.num_rows for table in tables] == [100, 100, 50]
    times = [part_path(tmp_path / "out", number).stat().st_mtime_ns for number in (0, 2)]
    part_path(tmp_path / "out", 1).unlink()
    command()
    assert pq.read_table(part_path(tmp_path / "out", 1)).equals(tables[1])
    assert times == [part_path(tmp_path / "out", number).stat().st_mtime_ns for number in (0, 2)]


@pytest.mark.parametrize(
    ("options", "name"), [(["--max-length", "30"], "max_length"), (["--dtype", "bfloat16"], "dtype")]
)
def test_options_that_change_rewards_are_refused(command, options, name):
    command()
    with pytest.raises(DataError, match=f"different in {name}: .* there, .* here. Choose another --output"):
        command(*options)


def test_options_that_change_no_reward_go_on(command, tmp_path):
    command()
    part_path(tmp_path / "out", 2).unlink()
    command("--max-tokens", "100", "--workers", "1")
    assert pq.read_metadata(part_path(tmp_path / "out", 2)).num_rows == 50


def test_another_model_is_refused(command, tmp_path):
    command()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.score.weight.mul_(2)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="holds another run, different in model: "):
        command()


def test_other_rows_in_a_file_of_the_same_size_are_refused(command, tmp_path):
    command()
    size = (tmp_path / "rows.parquet").stat().st_size
    part_path(tmp_path / "out", 2).unlink()
    write_file(tmp_path / "rows.parquet", "bottle")
    assert (tmp_path / "rows.parquet").stat().st_size == size
    with pytest.raises(DataError, match="different in files"):
        command()


def test_rows_that_change_places_in_a_large_file_are_refused(command, tmp_path):
    rows = [f"A kettle, {number}. {'spoon ' * 1000}" for number in range(400)]

    def write() -> int:
        talks = [json.dumps([user("Name a thing."), assistant(text)]) for text in rows]
        pq.write_table(
            pa.table({"messages": talks}), tmp_path / "rows.parquet", compression="none", use_dictionary=False
        )
        return (tmp_path / "rows.parquet").stat().st_size

    size = write()
    command("--max-length", "200")
    rows[5], rows[110] = rows[110], rows[5]
    rows[5], rows[110] = rows[5].replace("110", "1"), rows[110].replace("5.", "555.")
    assert size == write() > 2**21
    with pytest.raises(DataError, match="different in files"):
        command("--max-length", "200")


def test_another_chat_template_is_refused(command, tmp_path):
    command()
    part_path(tmp_path / "out", 2).unlink()
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("Be strict. " + template.read_text())
    with pytest.raises(DataError, match="different in"):
        command()
