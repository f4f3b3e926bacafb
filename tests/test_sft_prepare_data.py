"""Judgements and chat data turned into conversations: both orders together, no prompt on two sides, faults named."""

import json
import os
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO

from common.conversation import prompt_of
from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC, pairwise_rows, pointwise_rows
from common.judge import pairwise_prompt, parse_preference, parse_score, pointwise_prompt
from common.labelled import read_comparison, read_scored
from sft import dataset, prepare_data

SPLITS = ("train", "val", "test")
PREFERRED = ("A", "B", "tie")


def answers(*texts) -> list:
    return [{"answer": {"role": "assistant", "content": text}} for text in texts]


def question(number: int) -> list:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {number}"}]


def scored(number: int, **cells) -> dict:
    """Two answers to each question, the rows far apart."""
    cells = {"output": answers(f"answer {number}"), "label": number % 5, **cells}
    return {"input": question(number % 60), **cells, "unique_id": f"row-{number}"}


def compared(number: int, **cells) -> dict:
    output = answers(f"first {number}", f"second {number}")
    return {"input": question(number % 60), "output": output, "metadata": {"preferred": PREFERRED[number % 3]}, **cells}


def chat(number: int) -> dict:
    return {"messages": [*question(number), {"role": "assistant", "content": f"answer {number}"}], "prompt_id": "x"}


def as_json(row: dict) -> dict:
    return {name: json.dumps(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Run the command in this process, with a cache of its own and no way to the hub; return what it printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(*options) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--output", str(tmp_path), *map(str, options)])
        prepare_data.main()
        return capsys.readouterr().out

    return run


def write(path, rows) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def written(folder) -> dict[str, list[list[dict]]]:
    return {split: pq.read_table(folder / f"{split}.parquet")["messages"].to_pylist() for split in SPLITS}


def prompts(conversations: list[list[dict]]) -> list[str]:
    return [conversation[0]["content"] for conversation in conversations]


def verdicts(conversations: list[list[dict]], parse) -> list:
    return [parse(conversation[-1]["content"]) for conversation in conversations]


# ---- the demo


def test_the_demos_answers_are_the_labels_and_its_prompts_those_of_the_judges():
    splits = prepare_data.demo_splits({"val": 41, "test": 10}, seed=3)
    assert {split: len(rows) for split, rows in splits.items()} == {"val": 41, "test": 10}
    conversations = [row["conversations"][0] for row in splits["val"]]
    rows, pairs = pointwise_rows("val", 21, 3), pairwise_rows("val", 20, 3)
    assert verdicts(conversations[:21], parse_score) == [row["label"] for row in rows]
    assert verdicts(conversations[21:], parse_preference) == [row["metadata"]["preferred"] for row in pairs]
    dialogue, response, _ = read_scored(rows[0])
    assert conversations[0][0]["content"] == pointwise_prompt(dialogue, response, SCORE_RUBRIC)
    shown = read_comparison(pairs[0])
    expected = pairwise_prompt(shown.dialogue, shown.response_a, shown.response_b, PREFERENCE_RUBRIC)
    assert conversations[21][0]["content"] == expected
    for row, conversation in zip(rows + pairs, conversations):
        assert row["reasoning"] in conversation[1]["content"]


def test_the_demos_verdicts_are_balanced_and_no_query_is_in_two_splits():
    splits = prepare_data.demo_splits({"train": 2000, "val": 300, "test": 600}, seed=0)
    conversations = [row["conversations"][0] for row in splits["train"]]
    scores = Counter(verdicts(conversations[:1000], parse_score))
    preferences = Counter(verdicts(conversations[1000:], parse_preference))
    assert scores == {score: pytest.approx(200, abs=45) for score in range(5)}
    assert preferences == {preference: pytest.approx(333, abs=50) for preference in PREFERRED}
    queries = [
        {row["conversations"][0][0]["content"].partition("</dialogue>")[0].partition("<dialogue>")[2] for row in rows}
        for rows in splits.values()
    ]
    assert len(set().union(*queries)) == sum(map(len, queries)) > 2000


def test_the_command_writes_the_demo_the_same_in_another_process_and_otherwise_for_another_seed(run_main, tmp_path):
    arguments = ["--source", "demo", "--demo-rows", "30", "--seed", "3"]
    command = subprocess.run(
        [sys.executable, str(REPO / "sft" / "prepare_data.py"), *arguments, "--output", str(tmp_path / "a")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (command.returncode, command.stderr) == (0, "")
    printed = run_main(*arguments)
    assert printed == command.stdout.replace(str(tmp_path / "a"), str(tmp_path))
    assert f"{tmp_path / 'train.parquet'}: 30 conversations; score 0: " in printed
    for split in SPLITS:
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (tmp_path / f"{split}.parquet").read_bytes()
    assert [len(rows) for rows in written(tmp_path).values()] == [30, 300, 600]
    assert len(dataset.load_conversations(tmp_path / "train.parquet")[0]) == 30
    run_main(*arguments[:-1], "4")
    assert not set(map(repr, written(tmp_path)["train"])) & set(map(repr, written(tmp_path / "a")["train"]))


# ---- labelled data


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
@pytest.mark.parametrize("name", ["scores.parquet", "scores.jsonl"])
def test_scored_rows_become_the_judges_prompts_byte_for_byte(run_main, tmp_path, name, form):
    rows = [scored(number) for number in range(120)]
    write(tmp_path / name, [form(row) for row in rows])
    printed = run_main("--source", "pointwise", "--path", tmp_path / name, "--val-share", 0.1)
    splits = written(tmp_path)
    assert [len(splits[split]) for split in SPLITS] == [96, 12, 12]
    expected = {pointwise_prompt(row["input"], row["output"][0]["answer"]["content"]): row["label"] for row in rows}
    conversations = sum(splits.values(), [])
    assert dict(zip(prompts(conversations), verdicts(conversations, parse_score))) == expected
    assert conversations[0][1]["content"].startswith("<think>\n\n</think>\n\n<score>")
    counts = Counter(verdicts(splits["train"], parse_score))
    assert f"96 conversations; score {', '.join(f'{score}: {counts[score]}' for score in range(5))}\n" in printed
    # row n and row n + 60 answer the same question
    asked = [{text.partition("question ")[2].partition("\n")[0] for text in prompts(splits[split])} for split in SPLITS]
    assert list(map(len, asked)) == [48, 6, 6] and len(set().union(*asked)) == 60


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
def test_compared_rows_are_written_in_both_orders_on_the_same_side(run_main, tmp_path, form):
    """Trap 21."""
    rows = [compared(number) for number in range(120)]
    write(tmp_path / "pairs.parquet", [form(row) for row in rows])
    run_main("--source", "pairwise", "--path", tmp_path / "pairs.parquet", "--val-share", 0.1)
    splits = written(tmp_path)
    assert [len(splits[split]) for split in SPLITS] == [192, 24, 24]
    swapped = {"A": "B", "B": "A", "tie": "tie"}
    expected = {}
    for number in range(120):
        texts, preferred = (f"first {number}", f"second {number}"), PREFERRED[number % 3]
        expected[pairwise_prompt(question(number % 60), *texts)] = preferred
        expected[pairwise_prompt(question(number % 60), *texts[::-1])] = swapped[preferred]
    conversations = sum(splits.values(), [])
    assert dict(zip(prompts(conversations), verdicts(conversations, parse_preference))) == expected
    asked = [{text.partition("question ")[2].partition("\n")[0] for text in prompts(splits[split])} for split in SPLITS]
    assert list(map(len, asked)) == [48, 6, 6] and len(set().union(*asked)) == 60
    for text in prompts(splits["test"]):
        mirror = text.replace("first", "x").replace("second", "first").replace("x", "second")
        assert mirror in prompts(splits["test"])


def test_reasoning_goes_into_the_answer_and_pairs_with_it_keep_their_order(run_main, tmp_path):
    write(tmp_path / "pairs.jsonl", [compared(number, reasoning=f"why {number}") for number in range(60)])
    run_main("--source", "pairwise", "--path", tmp_path / "pairs.jsonl", "--val-share", 0.1)
    conversations = sum(written(tmp_path).values(), [])
    assert sorted(conversation[1]["content"] for conversation in conversations) == sorted(
        f"<think>\nwhy {number}\n</think>\n\n<preference>{PREFERRED[number % 3]}</preference>" for number in range(60)
    )
    assert all(text.index("first") < text.index("second") for text in prompts(conversations))


def test_chat_data_is_written_as_it_is_and_without_other_columns(run_main, tmp_path):
    rows = [chat(number) for number in range(40)]
    write(tmp_path / "chats.parquet", rows[:39] + [rows[3]])
    printed = run_main("--source", "messages", "--path", tmp_path / "chats.parquet", "--val-share", 0.1)
    splits = written(tmp_path)
    assert sorted(map(repr, sum(splits.values(), []))) == sorted(repr(row["messages"]) for row in rows[:39])
    assert pq.read_schema(tmp_path / "train.parquet").names == ["messages"]
    assert "conversations; no verdicts, so no judge's data" in printed
    assert "left out: 1 x repeated conversations" in printed
    assert {prompt_of(row) for row in rows[:39]} == {
        prompt_of({"messages": conversation}) for split in SPLITS for conversation in splits[split]
    }
