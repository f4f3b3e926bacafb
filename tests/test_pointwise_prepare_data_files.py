"""prepare_data.py of the pointwise judge as a command: files or the demo in, Parquet out, wrong calls named."""

import json
import os
import runpy
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.conversation import DataError
from common.demo.transcripts import scoring
from common.demo.world import SCORE_RUBRIC, pointwise_rows
from generative_pointwise import dataset, prepare_data
from generative_pointwise.prompt import RUBRIC, RUBRICS, ask, parse, write

SPLITS = ("train", "val", "test")
DEMO = ["--demo-rows", "300", "--seed", "3", "--lenient-transcripts", "200"]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def asked(query: str | list[dict], response: str, *rubric: str) -> str:
    return ask([user(query)] if isinstance(query, str) else query, response, *rubric)[0]["content"]


def pointwise(number: int) -> dict:
    """Two answers to each question, the rows far apart."""
    output = [{"answer": {"role": "assistant", "content": f"answer {number}"}}]
    return {"input": [user(f"question {number % 60}")], "output": output, "label": number % 5, "unique_id": f"{number}"}


def helpsteer2(number: int) -> dict:
    return {"prompt": f"question {number}", "response": "Because.", "helpfulness": 3, "correctness": 4}


def ultrafeedback(number: int) -> dict:
    annotations = [{"honesty": {"Rating": rating, "Rationale": "…"}} for rating in ("1", "4", "N/A")]
    completions = [{"response": f"answer {n}", "annotations": found} for n, found in enumerate(annotations)]
    return {"instruction": f"question {number}", "completions": completions}


def prometheus(number: int) -> dict:
    meanings = {f"orig_score{score}_description": "…" for score in range(1, 6)}
    row = {"orig_instruction": f"question {number}", "orig_response": f"answer {number}", "orig_score": "1"}
    return {**row, "orig_criteria": "Is it kind?", **meanings}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the command on rows, or on a file, without a way to the hub; return the rows written and what was printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(source: str, rows, *options) -> tuple[dict[str, list[dict]], str]:
        path = rows
        if isinstance(rows, list):
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        arguments = ["--source", source, *(["--path", path] if path else []), "--output", tmp_path, *options]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        prepare_data.main()
        splits = {split: pq.read_table(tmp_path / f"{split}.parquet").to_pylist() for split in SPLITS}
        return splits, capsys.readouterr().out

    return run


def dialogues(rows: list[dict]) -> set[str]:
    return {row["prompt"][0]["content"].partition("<response>")[0] for row in rows}


@pytest.mark.parametrize("form", [lambda cell: cell, json.dumps], ids=["native", "json"])
def test_labelled_rows_are_split_by_dialogue_and_have_their_prompts_written(convert, tmp_path, form):
    """Traps 21 and 24."""
    rows = [pointwise(number) for number in range(120)]
    cells = [{**row, **{name: form(row[name]) for name in ("input", "output", "label")}} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "scores.parquet")
    splits, printed = convert("pointwise", tmp_path / "scores.parquet", "--val-share", 0.1)
    assert [len(splits[split]) for split in SPLITS] == [96, 12, 12]
    expected = {asked(row["input"], f"answer {number}"): number % 5 for number, row in enumerate(rows)}
    written = sum(splits.values(), [])
    assert {row["prompt"][0]["content"]: row["label"] for row in written} == expected
    assert all(row.keys() == {"input", "prompt", "label", "rubric", "response", "data_source"} for row in written)
    assert {(row["data_source"], row["rubric"]) for row in written} == {("pointwise", RUBRIC)}
    assert [len(dialogues(splits[split])) for split in SPLITS] == [48, 6, 6]
    assert len(dialogues(written)) == 60
    loaded, dropped = dataset.load_rows(tmp_path / "train.parquet")
    assert not dropped and len(loaded) == 96
    for row, kept in zip(splits["train"], loaded):
        assert row == {name: kept[name] for name in row}
    assert f"{tmp_path / 'train.parquet'}: 96 rows; labels 0: " in printed


def test_a_question_as_text_and_as_messages_is_one_dialogue_and_stays_on_one_side(convert):
    rows = [{**pointwise(number), "input": json.dumps(pointwise(number)["input"])} for number in range(60)]
    rows += [{**pointwise(number), "input": f"question {number % 60}"} for number in range(60, 120)]
    splits, _ = convert("pointwise", rows, "--val-share", 0.1)
    assert [len(splits[split]) for split in SPLITS] == [96, 12, 12]
    assert [len(dialogues(splits[split])) for split in SPLITS] == [48, 6, 6]


def test_public_sets_keep_their_name_and_attribute_and_say_that_they_were_mapped(convert, tmp_path):
    rows = [ultrafeedback(number) for number in range(20)]
    splits, printed = convert("ultrafeedback", rows, "--attribute", "honesty", "--val-share", 0.1)
    assert [len(splits[split]) for split in SPLITS] == [32, 4, 4]
    found = {(row["data_source"], row["label"]) for row in splits["val"]}
    assert found == {("ultrafeedback/honesty", 0), ("ultrafeedback/honesty", 3)}
    assert "scores of 1 to 5 are written as labels 0 to 4\n" in printed
    assert "left out: 20 x responses that were not rated\n" in printed
    splits, printed = convert("helpsteer2", [helpsteer2(number) for number in range(20)])
    found = {(row["data_source"], row["label"], row["rubric"]) for row in splits["train"]}
    assert found == {("helpsteer2/helpfulness", 3, RUBRICS["helpfulness"])}
    assert "1 to 5" not in printed


def test_a_rubric_of_ones_own_takes_the_place_of_the_sources(convert, tmp_path):
    (tmp_path / "mine.txt").write_text("Is it short?\n")
    rows = [prometheus(number) for number in range(20)]
    splits, _ = convert("prometheus", rows, "--rubric", tmp_path / "mine.txt")
    written = sum(splits.values(), [])
    assert {row["prompt"][0]["content"] for row in written} == {
        asked(f"question {number}", f"answer {number}", "Is it short?") for number in range(20)
    }
    assert {row["rubric"] for row in written} == {"Is it short?"}


WRONG_CALLS = {
    "--source prometheus has no --attribute honesty; it has \\[\\]": ("prometheus", "--attribute", "honesty"),
    "has no --attribute correctness; it has \\['helpfulness', ": ("ultrafeedback", "--attribute", "correctness"),
    "none.txt: no such file, or nothing in it": ("demo", "--rubric", "none.txt"),
    "null: no such file, or nothing in it": ("demo", "--rubric", "/dev/null"),
    "--source pointwise needs --path: a local file or a hub id": ("pointwise",),
    "--lenient-transcripts can be made of --source demo alone": ("helpsteer2", "--lenient-transcripts", "5"),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_options_that_would_not_be_read_are_refused(convert, tmp_path, monkeypatch, message):
    """Trap 10."""
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    source, *options = WRONG_CALLS[message]
    with pytest.raises(DataError, match=message):
        convert(source, None, *options)
    assert not list(tmp_path.glob("*.parquet"))


def test_transcripts_are_the_same_rows_in_the_same_splits_for_sft(convert, tmp_path):
    """Each is the row's prompt, and the answer that the judge should give to it."""
    rows = [{**pointwise(number), "reasoning": f"It is {number % 5}." if number % 2 else None} for number in range(120)]
    splits, _ = convert("pointwise", rows, "--transcripts")
    for split in SPLITS:
        shown = pq.read_table(tmp_path / "transcripts" / f"{split}.parquet").to_pylist()
        assert len(shown) == len(splits[split])
        for row, transcript in zip(splits[split], shown):
            question, answer = transcript["messages"]
            reasons = {write(row["label"], f"It is {row['label']}."), write(row["label"])}
            assert transcript.keys() == {"messages"} and [question] == row["prompt"]
            assert answer["role"] == "assistant" and answer["content"] in reasons
    with pytest.raises(DataError, match="transcripts is of an earlier run. Give --transcripts, or use another"):
        convert("pointwise", rows, "--seed", 1)  # they may hold what is held out now
    (tmp_path / "mine.txt").write_text("Is it short?")
    convert("pointwise", rows, "--transcripts", "--rubric", tmp_path / "mine.txt")
    shown = pq.read_table(tmp_path / "transcripts" / "train.parquet")["messages"].to_pylist()
    assert all("\nIs it short?\n" in question["content"] for question, _ in shown)


def test_a_response_that_comes_again_with_the_same_label_is_one_row_and_all_of_its_reasonings(convert, tmp_path):
    rows = [pointwise(number) for number in range(60)]
    rows += [{**pointwise(7), "reasoning": reasoning} for reasoning in ("Too long.", "Too short.", "Too long.")]
    splits, printed = convert("pointwise", [{"reasoning": None} | row for row in rows], "--transcripts")
    assert len(sum(splits.values(), [])) == 60
    assert "left out: 3 x repeated responses with the same label" in printed
    files = [tmp_path / "transcripts" / f"{split}.parquet" for split in SPLITS]
    answers = [
        answer["content"]
        for file in files
        for question, answer in pq.read_table(file)["messages"].to_pylist()
        if question["content"] == asked("question 7", "answer 7")
    ]
    assert answers == [write(2), write(2, "Too long."), write(2, "Too short.")]


def test_the_demo_and_a_lenient_warm_start_are_those_of_the_demo_world(convert, tmp_path):
    splits, printed = convert("demo", None, *DEMO)
    assert [len(splits[split]) for split in SPLITS] == [300, 200, 400]
    for row, made in zip(splits["test"], pointwise_rows("test", 400, 3)):
        text = asked(made["input"], made["output"][0]["answer"]["content"], SCORE_RUBRIC)
        assert (row["prompt"], row["label"], row["data_source"]) == ([user(text)], made["label"], "demo")
        assert row["rubric"] == SCORE_RUBRIC
        assert all(f"{fact} " in made["reasoning"] for fact in row["evidence"]) and len(row["evidence"]) == 4
    assert splits["test"][0]["evidence"][0].split("/")[0] in ("topic kitchen", "topic garden")
    lenient, right = (pointwise_rows("train", 200, 4, leniency) for leniency in (0.65, 0.0))
    messages = pq.read_table(tmp_path / "warm_start.parquet")["messages"].to_pylist()
    assert messages == [scoring(row) for row in lenient]
    assert [parse(turns[1]["content"]) for turns in messages] == [row["label"] for row in lenient]
    share = sum(kind["label"] > row["label"] for kind, row in zip(lenient, right)) / 200
    assert f"200 conversations of a lenient annotator; {share:.1%} of the scores are too high" in printed


@pytest.mark.run
def test_the_demo_is_the_same_in_another_process(convert, tmp_path):
    command = [sys.executable, "-m", "generative_pointwise.prepare_data", "--source", "demo", *DEMO]
    run = subprocess.run([*command, "--output", str(tmp_path / "a")], capture_output=True, text=True, env=os.environ)
    assert (run.returncode, run.stderr) == (0, "")
    _, printed = convert("demo", None, *DEMO)
    assert printed == run.stdout.replace(str(tmp_path / "a"), str(tmp_path))
    for name in (*SPLITS, "warm_start"):
        assert (tmp_path / "a" / f"{name}.parquet").read_bytes() == (tmp_path / f"{name}.parquet").read_bytes()


def test_a_bad_row_ends_the_command_with_its_number_and_without_a_traceback(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist([pointwise(0), {**pointwise(1), "label": 7}]), tmp_path / "scores.parquet")
    paths = ["--path", str(tmp_path / "scores.parquet"), "--output", str(tmp_path / "data")]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--source", "pointwise", *paths])
    monkeypatch.delitem(sys.modules, "generative_pointwise.prepare_data")  # or runpy warns that it is there twice
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("generative_pointwise.prepare_data", run_name="__main__")
    expected = "row 1, column 'label': expected a whole number from 0 to 4, the scale that SCORES sets (found 7)\n"
    assert str(caught.value).startswith(f"prepare_data.py: 1 of 2 rows cannot be used:\n  {expected}")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("name", "rows"), [("pointwise_train", 760), ("pointwise_human_json", 2516)])
def test_real_files_are_converted_whole_but_for_repetitions(convert, shared_data, name, rows):
    splits, printed = convert("pointwise", shared_data / f"{name}.parquet")
    written = sum(splits.values(), [])
    repeated = sum(int(line.split()[2]) for line in printed.splitlines() if line.startswith("left out: "))
    assert len(written) == rows == pq.read_metadata(shared_data / f"{name}.parquet").num_rows - repeated
    assert [len(splits[split]) / rows for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert len(dialogues(written)) == sum(len(dialogues(splits[split])) for split in SPLITS)
