"""Chat data and the demo turned into conversations: no prompt on two sides, faults named, nothing lost in silence."""

import json
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import generative_pairwise.prepare_data
import generative_pointwise.prepare_data
from common.conversation import DataError
from common.demo.transcripts import comparing, scoring
from common.demo.world import pairwise_rows, pointwise_rows
from sft import dataset, evaluate, prepare_data

SPLITS = ("train", "val", "test")


def question(number: int) -> list:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {number}"}]


def chat(number: int, answer: str = "") -> dict:
    """One of several answers to a question, with a column that nobody needs."""
    answer = answer or f"answer {number}"
    return {"messages": [*question(number), {"role": "assistant", "content": answer}], "prompt_id": "x"}


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Run the command in this process, with a cache of its own and no way to the hub; return what it printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(*options, module=prepare_data) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--output", str(tmp_path), *map(str, options)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def convert(run_main, tmp_path):
    """Write chat data as JSON lines, convert it, and return what was written and what was printed."""

    def run(rows: list[dict], *options) -> tuple[dict[str, list], str]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        printed = run_main("--source", "messages", "--path", path, *options)
        return written(tmp_path), printed

    return run


def written(folder) -> dict[str, list[list[dict]]]:
    return {split: pq.read_table(folder / f"{split}.parquet")["messages"].to_pylist() for split in SPLITS}


def prompts(conversations: list[list[dict]]) -> set[str]:
    return {dataset.prompt_of({"messages": messages}) for messages in conversations}


# ---- the demo


def test_the_demo_is_the_worlds_judgements_scores_first():
    splits = prepare_data.demo_splits({"val": 41, "test": 10}, seed=3)
    assert {split: len(rows) for split, rows in splits.items()} == {"val": 41, "test": 10}
    expected = [*map(scoring, pointwise_rows("val", 21, 3)), *map(comparing, pairwise_rows("val", 20, 3))]
    assert splits["val"] == [{"messages": messages} for messages in expected]


def test_the_demos_verdicts_are_balanced_and_no_query_is_in_two_splits():
    splits = prepare_data.demo_splits({"train": 2000, "val": 300, "test": 600}, seed=0)
    counts = {
        kind: Counter(verdict for _, verdict in found)
        for kind, found in evaluate.find_judgements(splits["train"]).items()
    }
    assert counts == {
        "score": {str(score): pytest.approx(200, abs=45) for score in range(5)},
        "preference": {preference: pytest.approx(333, abs=50) for preference in ("A", "B", "tie")},
    }
    queries = [
        {row["messages"][0]["content"].partition("</dialogue>")[0].partition("<dialogue>")[2] for row in rows}
        for rows in splits.values()
    ]
    assert len(set().union(*queries)) == sum(map(len, queries)) > 2000


def test_the_command_writes_the_demo_and_another_one_for_another_seed(run_main, tmp_path):
    arguments = ["--source", "demo", "--demo-rows", "30", "--seed", "3"]
    printed = run_main(*arguments)
    splits = written(tmp_path)
    assert [len(splits[split]) for split in SPLITS] == [30, 300, 600]
    scores = Counter(row["label"] for row in pointwise_rows("train", 15, 3))
    shown = ", ".join(f"{score}: {scores[score]}" for score in range(5) if scores[score])
    assert f"{tmp_path / 'train.parquet'}: 30 conversations; score {shown}; preference A: " in printed
    assert len(dataset.load_conversations(tmp_path / "train.parquet")[0]) == 30
    run_main(*arguments[:-1], "4")
    assert not set(map(repr, written(tmp_path)["train"])) & set(map(repr, splits["train"]))


# ---- chat data


def test_chat_data_is_written_as_it_is_and_without_other_columns(run_main, tmp_path):
    rows = [chat(number) for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows[:39] + [rows[3]]), tmp_path / "chats.parquet")
    printed = run_main("--source", "messages", "--path", tmp_path / "chats.parquet", "--val-share", 0.1)
    splits = written(tmp_path)
    assert sorted(map(repr, sum(splits.values(), []))) == sorted(repr(row["messages"]) for row in rows[:39])
    assert pq.read_schema(tmp_path / "train.parquet").names == ["messages"]
    assert "conversations; no verdicts, so not a judge's data\n" in printed
    assert "left out: 1 x repeated conversations\n" in printed


def test_json_text_of_messages_is_read_as_the_messages(convert):
    rows = [chat(number) for number in range(20)]
    native, _ = convert(rows)
    as_text, _ = convert([{"messages": json.dumps(row["messages"])} for row in rows])
    assert as_text == native


def test_answers_to_one_prompt_are_never_apart(convert):
    rows = [chat(number % 20, f"answer {number}") for number in range(80)]
    splits, _ = convert(rows, "--val-share", 0.2)
    asked = [prompts(splits[split]) for split in SPLITS]
    assert list(map(len, asked)) == [12, 4, 4]
    assert len(set().union(*asked)) == 20
    assert [len(splits[split]) for split in SPLITS] == [48, 16, 16]


def test_the_split_does_not_depend_on_the_rows_order_and_does_on_the_seed(convert):
    rows = [chat(number) for number in range(60)]
    splits, _ = convert(rows, "--val-share", 0.2)
    again, _ = convert(rows[::-1], "--val-share", 0.2)
    other, _ = convert(rows, "--val-share", 0.2, "--seed", 1)
    held_out = [sorted(map(repr, found["test"])) for found in (splits, again, other)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_judges_verdicts_are_counted_whatever_its_scale(convert):
    answers = [f"<think>\nHm, {number}.\n</think>\n\n<points>{number % 2 + 6}</points>" for number in range(30)]
    splits, printed = convert([chat(number, answer) for number, answer in enumerate(answers)], "--val-share", 0.1)
    counts = Counter(messages[-1]["content"][-10] for messages in splits["train"])
    assert set(counts) == {"6", "7"}
    assert f"train.parquet: 24 conversations; points 6: {counts['6']}, 7: {counts['7']}\n" in printed


# ---- what is refused


def test_bad_rows_stop_the_conversion_and_are_shown_with_their_numbers(convert, tmp_path):
    rows = [chat(number) for number in range(60)]
    rows[7]["messages"], rows[40]["messages"] = rows[7]["messages"][:-1], None
    with pytest.raises(DataError) as caught:
        convert(rows)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 60 rows cannot be used:"
    assert lines[1].startswith("  row 7, column 'messages': no assistant turn (found ")
    assert lines[2].startswith("  row 40, column 'messages': expected a list of messages, ")
    assert "--on-bad-row drop" in lines[-1]
    assert not list(tmp_path.glob("*.parquet"))


def test_bad_rows_are_dropped_and_counted_if_asked(convert):
    rows = [chat(number) for number in range(60)]
    for number in (3, 4, 5):
        rows[number]["messages"] = rows[number]["messages"][:-1]
    rows[8] = chat(8, " ")
    splits, printed = convert(rows, "--on-bad-row", "drop")
    assert sum(map(len, splits.values())) == 56
    assert "left out: 3 x column 'messages': no assistant turn\n" in printed
    assert "left out: 1 x column 'messages': an empty assistant turn\n" in printed


def test_if_every_row_is_bad_the_reason_is_said(convert):
    with pytest.raises(DataError, match="no usable row: 9 x column 'messages': an empty assistant turn"):
        convert([chat(number, " ") for number in range(9)], "--on-bad-row", "drop")


def test_rows_without_messages_are_refused_with_their_columns(convert):
    with pytest.raises(DataError, match=r"row 0 has no column messages; it has \['input', 'label'\]. Is --source rig"):
        convert([{"input": "Why?", "label": 3}])


def test_chat_data_without_a_path_is_refused(run_main):
    with pytest.raises(DataError, match="--source messages needs --path: a local file or a hub id"):
        run_main("--source", "messages")


def test_a_judges_source_is_unknown_here(run_main, capsys):
    with pytest.raises(SystemExit):
        run_main("--source", "pointwise", "--path", "scores.parquet")
    assert "invalid choice: 'pointwise' (choose from" in capsys.readouterr().err


# ---- a judge's conversations, from the judges' own prepare_data.py


@pytest.mark.parametrize(
    ("source", "module", "make_rows", "kind"),
    [
        ("pointwise", generative_pointwise.prepare_data, pointwise_rows, "score"),
        ("pairwise", generative_pairwise.prepare_data, pairwise_rows, "preference"),
    ],
)
@pytest.mark.parametrize("reasoning", [True, False])
def test_a_judges_transcripts_are_read_and_their_verdicts_found(
    run_main, tmp_path, source, module, make_rows, kind, reasoning
):
    rows = make_rows("train", 60, seed=0)
    for row in [] if reasoning else rows:
        del row["reasoning"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labelled.parquet")
    options = ("--source", source, "--path", tmp_path / "labelled.parquet", "--transcripts", "--val-share", 0.1)
    run_main(*options, module=module)
    sides = []
    for split in SPLITS:
        conversations, bad = dataset.load_conversations(tmp_path / "transcripts" / f"{split}.parquet")
        labels = Counter(str(label) for label in pq.read_table(tmp_path / f"{split}.parquet")["label"].to_pylist())
        if kind == "preference" and not reasoning:  # also the other way round
            labels += Counter({"A": labels["B"], "B": labels["A"], "tie": labels["tie"]})
        found = evaluate.find_judgements(conversations)
        assert {name: Counter(verdict for _, verdict in rows) for name, rows in found.items()} == {kind: labels}
        assert len(conversations) == labels.total() and not bad
        sides.append({row["messages"][0]["content"].partition("</dialogue>")[0] for row in conversations})
    assert len(set().union(*sides)) == sum(map(len, sides))


# ---- real files


def test_a_real_file_is_converted_whole_and_its_verdicts_are_found(run_main, tmp_path, shared_data):
    printed = run_main("--source", "messages", "--path", shared_data / "sft_judge_train.parquet")
    splits = written(tmp_path)
    conversations = sum(splits.values(), [])
    repeated = sum(int(line.split()[2]) for line in printed.splitlines() if line.startswith("left out: "))
    assert 2000 <= len(conversations) == 2133 - repeated
    assert [len(splits[split]) / len(conversations) for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    asked = [prompts(splits[split]) for split in SPLITS]
    assert len(set().union(*asked)) == sum(map(len, asked))
    ends = Counter(messages[-1]["content"].rpartition("</think>")[2].strip() for messages in splits["train"])
    counts = ", ".join(f"{said}: {ends[f'<preference>{said}</preference>']}" for said in ("A", "B", "tie"))
    # a third of the rows; the others say [RESULT] 3 behind a reasoning that has no tags
    assert f"train.parquet: {len(splits['train'])} conversations; preference {counts}\n" in printed
