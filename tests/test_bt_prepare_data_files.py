"""prepare_data.py as a command: local files or the demo in, three Parquet files out, wrong calls in one line."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO

from bradley_terry import prepare_data
from common.conversation import DataError, prompt_of
from common.demo.world import preference_pairs

SPLITS = ("train", "val", "test")


def helpsteer2(strength: int, prompt: str, number: int = 0) -> dict:
    answers = {"response_1": f"first {number}", "response_2": f"second {number}"}
    return {"prompt": prompt, **answers, "preference_strength": strength}


def hh_rlhf(number: int) -> dict:
    talk = f"\n\nHuman: Name {number} gifts.\n\nAssistant: For whom?\n\nHuman: For Ann.\n\nAssistant:"
    return {"chosen": f"{talk} A kettle {number}.", "rejected": f"{talk} No."}


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Run the command in this process, with a cache of its own and no way to the hub; return what it printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(*options) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, options)])
        prepare_data.main()
        return capsys.readouterr().out

    return run


def written(folder) -> dict[str, list[dict]]:
    return {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in SPLITS}


def write_lines(path, rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize("name", ["preference.jsonl", "preference.jsonl.gz", "preference.json", "preference.v2.jsonl"])
def test_a_local_json_lines_file_becomes_three_files_without_a_shared_prompt(run_main, tmp_path, name):
    rows = [helpsteer2(number % 3, f"question {number // 2}", number) for number in range(120)]
    write_lines(tmp_path / name, rows)
    printed = run_main("--source", "helpsteer2", "--path", tmp_path / name, "--output", tmp_path, "--val-share", 0.1)
    splits = written(tmp_path)
    assert [len(splits[split]) for split in SPLITS] == pytest.approx([64, 8, 8], abs=2)
    assert "left out: 40 x ties" in printed
    assert f"{tmp_path / 'train.parquet'}: {len(splits['train'])} pairs, the longer answer is the" in printed
    pairs = [pair for split in SPLITS for pair in splits[split]]
    assert sorted(pair["chosen"][-1]["content"] for pair in pairs) == sorted(
        f"second {number}" for number in range(120) if number % 3
    )
    prompts = [{prompt_of(pair) for pair in splits[split]} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set().union(*prompts))


def test_a_local_parquet_file_of_transcripts_becomes_conversations(run_main, tmp_path):
    pq.write_table(pa.Table.from_pylist([hh_rlhf(number) for number in range(40)]), tmp_path / "hh.parquet")
    run_main("--source", "hh-rlhf", "--path", tmp_path / "hh.parquet", "--output", tmp_path / "data")
    splits = written(tmp_path / "data")
    assert [len(splits[split]) for split in SPLITS] == [36, 2, 2]
    assert all(pair["margin"] == 0.0 and len(pair["chosen"]) == 4 for pair in splits["train"])


def test_a_damaged_local_file_is_refused_in_one_message(run_main, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"chosen": [{"role": "user"')
    with pytest.raises(DataError, match="bad.jsonl"):
        run_main("--source", "skywork", "--path", tmp_path / "bad.jsonl", "--output", tmp_path)


@pytest.mark.parametrize("name", ["rows.csv.bak", "rows"])
def test_a_local_file_of_another_format_is_refused_and_not_looked_up_on_the_hub(run_main, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("x")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    with pytest.raises(DataError, match=r"expected a \.parquet, \.json or \.jsonl file"):
        run_main("--source", "skywork", "--path", tmp_path / name, "--output", tmp_path)


@pytest.mark.parametrize("path", ["missing.jsonl", "./missing.parquet", "/no/such/folder/rows.json.gz"])
def test_a_missing_local_file_is_refused_without_asking_the_hub(monkeypatch, path):
    """Away from the network the hub's client retries for half a minute, and calls the missing file a missing set."""
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    with pytest.raises(DataError, match=f"{path}: no such file"):
        prepare_data.load_source(str(path), "train")


def test_shares_that_leave_nothing_to_train_on_are_refused(run_main, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [helpsteer2(1, f"question {number}") for number in range(9)])
    with pytest.raises(DataError, match="expected positive shares that sum to 1"):
        run_main("--source", "helpsteer2", "--path", tmp_path / "rows.jsonl", "--output", tmp_path, "--val-share", 0.5)


# ---- the command as it is called


def run_command(folder, *options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(REPO / "bradley_terry" / "prepare_data.py"), *options, "--output", str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_demo_is_the_same_bytes_for_the_same_seed_in_another_process_too(run_main, tmp_path):
    command = run_command(tmp_path / "a", "--source", "demo", "--demo-pairs", "600", "--seed", "3")
    assert (command.returncode, command.stderr) == (0, "")
    printed = run_main("--source", "demo", "--output", tmp_path / "b", "--demo-pairs", 600, "--seed", 3)
    assert printed == command.stdout.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    for split, count in (("train", 600), ("val", 500), ("test", 1000)):
        path = tmp_path / "a" / f"{split}.parquet"
        assert path.read_bytes() == (tmp_path / "b" / f"{split}.parquet").read_bytes()
        assert pq.read_table(path).to_pylist() == preference_pairs(split, count, 3)
    run_main("--source", "demo", "--output", tmp_path / "b", "--demo-pairs", 600, "--seed", 4)
    assert path.read_bytes() != (tmp_path / "b" / "test.parquet").read_bytes()


def test_a_missing_file_ends_the_command_with_one_line_and_an_error_code(tmp_path):
    command = run_command(tmp_path, "--source", "skywork", "--path", "missing.jsonl")
    assert command.returncode == 1
    assert command.stderr.startswith("prepare_data.py: missing.jsonl: ")
    assert command.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.parquet"))


def test_an_unknown_source_is_refused_with_the_known_ones(run_main, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main("--source", "hellaswag", "--output", tmp_path)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(source in message for source in ["demo", *prepare_data.SOURCES])
