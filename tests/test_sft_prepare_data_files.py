"""prepare_data.py of SFT on files that are broken, repetitive or real: nothing is lost or guessed in silence."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from common.conversation import DataError, prompt_of
from common.judge import parse_preference, parse_score
from common.labelled import RESPONSE_FORM
from sft import prepare_data

SPLITS = ("train", "val", "test")


def answers(*texts) -> list:
    return [{"answer": {"role": "assistant", "content": text}} for text in texts]


def scored(number: int, **cells) -> dict:
    return {"input": f"question {number}", "output": answers(f"answer {number}"), "label": number % 5, **cells}


def compared(number: int, **cells) -> dict:
    output = answers(f"first {number}", f"second {number}")
    return {"input": f"question {number}", "output": output, "metadata": {"preferred": "A"}, **cells}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Write the rows as JSON lines, convert them, and return what was written and what was printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(source: str, rows: list[dict], *options) -> tuple[dict[str, list], str]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return run_on(source, path, *options)

    def run_on(source: str, path, *options) -> tuple[dict[str, list], str]:
        arguments = ["--source", source, "--path", path, "--output", tmp_path, *options]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        prepare_data.main()
        splits = {split: pq.read_table(tmp_path / f"{split}.parquet")["messages"].to_pylist() for split in SPLITS}
        return splits, capsys.readouterr().out

    run.file = run_on
    return run


# ---- bad rows


def test_bad_rows_stop_the_conversion_and_are_shown_with_their_numbers(convert, tmp_path):
    rows = [scored(number) for number in range(60)]
    rows[7]["label"], rows[9]["label"], rows[40]["output"] = 5, None, answers("a", "b")
    with pytest.raises(DataError) as caught:
        convert("pointwise", rows)
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "3 of 60 rows cannot be used:",
        "  row 7, column 'label': expected a whole number from 0 to 4 (found 5)",
        "  row 9, column 'label': expected a whole number from 0 to 4 (found None)",
    ]
    assert lines[3].startswith(
        f"  row 40, column 'output': expected a list of 1 response, each {RESPONSE_FORM} (found [{{'answer'"
    )
    assert "--on-bad-row drop" in lines[-1]
    assert not list(tmp_path.glob("*.parquet"))


def test_bad_rows_are_dropped_and_counted_where_asked(convert):
    rows = [compared(number) for number in range(60)]
    for number, preferred in ((3, "C"), (4, "a"), (5, None)):
        rows[number]["metadata"] = {"preferred": preferred}
    rows[8]["input"] = " "
    splits, printed = convert("pairwise", rows, "--on-bad-row", "drop")
    conversations = sum(splits.values(), [])
    assert len(conversations) == 2 * 56
    assert "left out: 3 x column 'metadata': `preferred` is not one of A, B, tie\n" in printed
    assert "left out: 1 x column 'input': empty text\n" in printed
    assert not [row for row in conversations if parse_preference(row[1]["content"]) == "tie"]


def test_where_every_row_is_bad_the_reason_is_said(convert):
    with pytest.raises(DataError, match="no usable row: 9 x column 'label': expected a whole number from 0 to 4"):
        convert("pointwise", [scored(number, label=7) for number in range(9)], "--on-bad-row", "drop")


def test_equal_responses_of_which_one_is_preferred_are_a_fault_and_not_two_contrary_examples(convert):
    """Trap 11."""
    rows = [compared(number) for number in range(30)]
    rows[4]["output"] = answers("same", "same")
    with pytest.raises(DataError, match="row 4, column 'output': equal responses, one of them preferred .found 'same'"):
        convert("pairwise", rows)
    rows[4]["metadata"] = {"preferred": "tie"}
    splits, printed = convert("pairwise", rows)
    assert sum(map(len, splits.values())) == 2 * 29 + 1
    assert "left out: 1 x repeated conversations\n" in printed


def test_repeated_rows_are_written_once_also_where_a_pair_comes_again_the_other_way_round(convert):
    rows = [compared(number) for number in range(30)]
    rows.append(compared(5))
    rows.append(compared(6, output=answers("second 6", "first 6"), metadata={"preferred": "B"}))
    rows.append(compared(7, metadata={"preferred": "B"}))  # a second opinion
    splits, printed = convert("pairwise", rows)
    assert sum(map(len, splits.values())) == 2 * 31
    assert "left out: 4 x repeated conversations\n" in printed


# ---- prompts stay on one side


def test_answers_to_one_query_are_never_apart_however_they_are_written(convert):
    """The split is by the input as it came, not by the judge's prompt, which holds the answer too."""
    turns = [[{"role": "user", "content": f"question {number}"}] for number in range(20)]
    rows = [scored(number, input=turns[number % 20]) for number in range(80)]
    splits, _ = convert("pointwise", rows, "--val-share", 0.2)
    asked = [
        {row[0]["content"].partition("question ")[2].partition("\n")[0] for row in splits[name]} for name in SPLITS
    ]
    assert list(map(len, asked)) == [12, 4, 4]
    assert len(set().union(*asked)) == 20
    assert [len(splits[split]) for split in SPLITS] == [48, 16, 16]


def test_the_split_does_not_depend_on_the_rows_order_and_does_on_the_seed(convert):
    rows = [scored(number) for number in range(60)]
    splits, _ = convert("pointwise", rows, "--val-share", 0.2)
    again, _ = convert("pointwise", rows[::-1], "--val-share", 0.2)
    other, _ = convert("pointwise", rows, "--val-share", 0.2, "--seed", 1)
    held_out = [sorted(map(repr, found["test"])) for found in (splits, again, other)]
    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize("reasoning", ['[{"step": 1}, …', '{"role": unclear}'])
def test_reasoning_that_looks_like_json_is_text(convert, reasoning):
    splits, _ = convert("pointwise", [scored(number, reasoning=reasoning) for number in range(9)])
    assert f"<think>\n{reasoning}\n</think>" in splits["train"][0][1]["content"]
    assert prompt_of({"input": "Why?", "reasoning": reasoning}) == prompt_of({"input": "Why?"})


# ---- the call


def test_a_rubric_takes_the_place_of_helpfulness(convert, tmp_path):
    (tmp_path / "rubric.txt").write_text("\nBrevity: 4 is best. {0}\n", encoding="utf-8")
    for source, make in (("pointwise", scored), ("pairwise", compared)):
        rows = [make(number) for number in range(9)]
        splits, _ = convert(source, rows, "--rubric", tmp_path / "rubric.txt")
        for conversation in sum(splits.values(), []):
            assert conversation[0]["content"].split("\n\n")[1] == "Brevity: 4 is best. {0}"
        splits, _ = convert(source, rows)
        assert splits["train"][0][0]["content"].split("\n\n")[1].startswith("Helpfulness: ")


def test_a_missing_rubric_is_refused_by_its_path(convert, tmp_path):
    with pytest.raises(DataError, match=r"rubric\.txt: no such file"):
        convert("pointwise", [scored(0)], "--rubric", tmp_path / "rubric.txt")


@pytest.mark.parametrize(
    ("source", "row", "missing"),
    [
        ("pointwise", compared(0), "label"),
        ("pairwise", scored(0), "metadata"),
        ("messages", scored(0), "messages"),
        ("pointwise", {"messages": []}, "input, output, label"),
    ],
)
def test_rows_of_another_source_are_refused_with_their_columns(convert, source, row, missing):
    with pytest.raises(DataError, match=rf"row 0 has no column {missing}; it has \['.*Is --source right\?"):
        convert(source, [row])


@pytest.mark.parametrize("path", ["missing.jsonl", "./missing.parquet", "/no/such/folder/rows.json.gz"])
def test_a_missing_file_is_refused_without_asking_the_hub(convert, monkeypatch, path):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    with pytest.raises(DataError, match=f"{path}: no such file"):
        convert.file("pointwise", path)


def test_labelled_data_without_a_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "--source", "pairwise", "--output", str(tmp_path)])
    with pytest.raises(DataError, match="--source pairwise needs --path"):
        prepare_data.main()


def test_a_damaged_file_is_refused_by_its_name(convert, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"bad\.parquet"):
        convert.file("pointwise", tmp_path / "bad.parquet")


# ---- real files

REAL = {
    "pointwise_train": ("pointwise", parse_score, 760, 760),
    "pointwise_human_json": ("pointwise", parse_score, 2455, 2530),
    "pairwise_train": ("pairwise", parse_preference, 4200, 4616),
    "pairwise_multiturn_train_json": ("pairwise", parse_preference, 1250, 1260),
    "sft_judge_train": ("messages", None, 2000, 2133),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_converted_nearly_whole(convert, shared_data, name):
    source, parse, fewest, most = REAL[name]
    splits, printed = convert.file(source, shared_data / f"{name}.parquet", "--on-bad-row", "drop")
    conversations = sum(splits.values(), [])
    dropped = sum(int(line.split()[2]) for line in printed.splitlines() if line.startswith("left out: "))
    assert fewest <= len(conversations) == most - dropped
    assert [len(splits[split]) / len(conversations) for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    if parse:
        assert all(parse(conversation[1]["content"]) is not None for conversation in conversations)
        shown = [{row[0]["content"].partition("</dialogue>")[0] for row in splits[split]} for split in SPLITS]
        assert len(set().union(*shown)) == sum(map(len, shown))
