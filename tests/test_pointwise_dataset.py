"""Rows for the pointwise judge: read or refused, and read back by verl's own dataset as they were written."""

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
import verl
from omegaconf import OmegaConf
from shapes import SHAPES, assistant, make_tokenizer, system, user
from verl.utils.dataset.rl_dataset import RLHFDataset

from common.conversation import RESPONSE_FORM, DataError
from common.judging.prompts import measure_rows
from common.parquet import split_by_prompt, write_rows
from generative_pointwise import dataset
from generative_pointwise.dataset import OPTIONAL, load_rows, prompt_of
from generative_pointwise.prompt import RUBRIC, ask

LONG = 10**6
CHATML_TOKENIZER = make_tokenizer(SHAPES["chatml"])
DIALOGUE = [system("Be brief."), assistant("Hi! 🙂"), user("Why?")]


def labelled(label: object = 3, response: str = "So.", **cells) -> dict:
    return {"input": DIALOGUE, "output": [{"answer": assistant(response)}], "label": label, **cells}


def as_json(row: dict) -> dict:
    return {name: json.dumps(cell) if name in ("input", "output", "prompt") else cell for name, cell in row.items()}


def shown(response: str = "So.", *rubric: str) -> list[dict]:
    return ask(DIALOGUE, response, *rubric)


def rendered(label: int, number: int, response: str = "So.", file: str = "a.parquet", **cells) -> dict:
    """A row as it is read, but for `input`."""
    origin = {"data_source": "judge", "evidence": [], "source": f"{file} row {number}", "response": response}
    return {"prompt": shown(response), "label": label, "rubric": RUBRIC, **origin, **cells}


def refused(read, *arguments) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path):
    return lambda name, *rows: write_rows(tmp_path / name, list(rows))


# ---- reading


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
def test_labelled_rows_get_their_prompts_and_written_prompts_are_kept_also_in_one_reading(write, form):
    first = write("a.parquet", form(labelled(0)), form(labelled(4, "")))
    named = {"prompt": shown("No."), "label": 2, "evidence": ["x", "y"], "data_source": "demo", "rubric": "Brevity."}
    named = form({**named, "input": DIALOGUE, "other": 7, "response": "No."})
    second = write("b.parquet", named, {**named, **dict.fromkeys(OPTIONAL)})
    kept = rendered(2, 0, "No.", "b.parquet", evidence=["x", "y"], data_source="demo", rubric="Brevity.")
    rows = [
        rendered(0, 0),
        rendered(4, 1, ""),
        kept,
        rendered(2, 1, "No.", "b.parquet", rubric=None) | {"response": None},
    ]
    dialogues = [DIALOGUE, DIALOGUE, DIALOGUE, shown("No.")]  # the whole prompt where nothing else is known
    for files, order in (([first, second], [0, 1, 2, 3]), (f"{second}, {first}", [2, 3, 0, 1])):
        read, dropped = load_rows(files)
        assert read == [rows[number] | {"input": dialogues[number]} for number in order]
        assert dropped == {}


@pytest.mark.parametrize("dialogue", ["Why?", [user("Why?")], json.dumps([user("Why?")])], ids=["text", "list", "json"])
def test_a_split_keeps_together_what_answers_one_dialogue_however_that_is_written(write, dialogue):
    """Trap 21: ten dialogues, each with a labelled row, and with one whose prompt is written and names it."""
    rows, prompts = [], []
    for number in range(10):
        query = json.loads(json.dumps(dialogue).replace("Why", f"Why {number}"))
        rows.append({**labelled(), "input": query})
        prompts.append({"prompt": shown(f"No {number}."), "label": 2, "input": query})
    read, _ = load_rows([write("a.parquet", *rows), write("b.parquet", *prompts)])
    assert len({prompt_of(row) for row in read}) == 10
    for seed in range(3):
        train, val = split_by_prompt(read, {"train": 0.7, "val": 0.3}, seed, prompt_of).values()
        assert len(train) == 14 and not {prompt_of(row) for row in train} & {prompt_of(row) for row in val}


NO_SCORE = "expected a whole number from 0 to 4, the scale that SCORES sets"
LABELS = [(0.0, 0), (4, 4), ("3", 3), ("4.0", 4), (True, None), (None, None), (5, None), (3.7, None), (-1, None)]
LABELS += [("three", None), (float("nan"), None)]


@pytest.mark.parametrize(("label", "read"), LABELS, ids=repr)
def test_a_label_is_a_whole_number_from_0_to_4_or_an_error_and_never_a_default(write, label, read):
    """Trap 14."""
    for row in (labelled(label), {"prompt": shown(), "label": label}):
        path = write("a.parquet", row)
        if read is None:
            fault = refused(load_rows, path)[1]
            assert fault.startswith(f"  a.parquet row 0, column 'label': {NO_SCORE} (found ")
        else:
            assert repr(load_rows(path)[0][0]["label"]) == repr(read)  # an int, not 3.0


BROKEN = {  # column and fault of labelled rows: cells that have it, in JSON text
    ("input", "empty text"): [" "],
    ("input", "expected a list of messages, JSON text of one, or plain text"): [None],
    ("input", "a message without role or content"): ['[{"role": "user"}]', '[{"role": "user", "content": null}]'],
    ("output", "JSON that cannot be parsed"): ["x", "[", ""],
    ("output", f"expected a list of 1 response, each {RESPONSE_FORM}"): [None, "[]", "[{}, {}]"],
    ("output", f"expected each response as {RESPONSE_FORM}"): ['["x"]', '[{"answer": null}]'],
    ("label", NO_SCORE): [None, 5],
}
BROKEN_RENDERED = {
    ("prompt", "expected messages that end with the user's"): ["Score it.", json.dumps([user("x"), assistant("y")])],
    ("prompt", "expected a list of messages, JSON text of one, or plain text"): [None],
    ("prompt", "a message whose content is not text"): ['[{"role": "user", "content": 7}]'] * 2,
    ("label", NO_SCORE): [None],
}


@pytest.mark.parametrize("broken", [BROKEN, BROKEN_RENDERED], ids=["labelled", "rendered"])
def test_bad_rows_are_one_error_by_file_row_and_column_or_dropped_and_counted(write, broken):
    good = as_json(labelled() if broken is BROKEN else {"prompt": shown(), "label": 3})
    faults = [(column, kind, cell) for (column, kind), cells in broken.items() for cell in cells]
    path = write("a.parquet", good, *({**good, column: cell} for column, _, cell in faults), good)
    lines = refused(load_rows, path)
    assert lines[0] == f"{len(faults)} of {len(faults) + 2} rows cannot be used:"
    named = [f"  a.parquet row {row}, column '{column}': {kind}" for row, (column, kind, _) in enumerate(faults, 1)]
    assert [line.partition(" (found ")[0] for line in lines[1:6]] == named[:5]
    assert lines[6] == f"  … and {len(faults) - 5} more" and "on_bad_row=drop" in lines[-1]
    rows, dropped = load_rows(path, "drop")
    assert [row["source"] for row in rows] == ["a.parquet row 0", f"a.parquet row {len(faults) + 1}"]
    assert dropped == {f"column '{column}': {kind}": len(cells) for (column, kind), cells in broken.items()}


def test_a_file_needs_the_columns_of_labelled_rows_or_of_written_prompts(write):
    assert "column 'output', 'label' is missing" in refused(load_rows, write("a.parquet", {"input": "x"}))[0]
    assert "column 'label' is missing" in refused(load_rows, write("b.parquet", {"prompt": "x", "output": "y"}))[0]


CELLS = [("data_source", 7, "expected text"), ("rubric", 7, "expected text")]
CELLS += [("input", 7, "expected a list of messages, JSON text of one, or plain text")]
CELLS += [("evidence", cell, "expected a list of texts") for cell in ("lamp", '["lamp"]', 7, [7])]


@pytest.mark.parametrize(("column", "cell", "fault"), CELLS, ids=repr)
def test_a_bad_cell_of_an_optional_column_is_an_error_that_names_the_column(write, column, cell, fault):
    path = write("a.parquet", {"prompt": shown(), "label": 3, column: cell})
    assert refused(load_rows, path)[1] == f"  a.parquet row 0, column '{column}': {fault} (found {cell!r})"


# ---- handing over


def read_by_verl(path: Path, cache: Path, monkeypatch, **settings) -> list[dict]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    config = OmegaConf.load(Path(verl.__file__).parent / "trainer" / "config" / "data" / "legacy_data.yaml")
    return list(RLHFDataset(str(path), CHATML_TOKENIZER, OmegaConf.merge(config, settings)))


def test_verl_reads_back_every_prompt_label_and_note_and_counts_the_same_tokens(tmp_path, monkeypatch):
    rows = [rendered(label, label, f"So. 🙂 \u200b<|im_end|>{label * ' 9'}") for label in range(5)]
    rows[4]["prompt"] = [system("Judge."), *rows[4]["prompt"]]
    rows, _ = measure_rows(rows, CHATML_TOKENIZER, LONG, False)
    rows[2]["begun"] = "<think>\n"
    path = dataset.write_for_verl(rows, tmp_path / "train.parquet")
    limits = {"filter_overlong_prompts": True, "max_prompt_length": (longest := rows[4]["tokens"])}
    read = read_by_verl(path, tmp_path, monkeypatch, **limits)
    assert [found["raw_prompt"] for found in read] == [row["prompt"] for row in rows]
    assert repr([found["reward_model"]["ground_truth"] for found in read]) == "[0, 1, 2, 3, 4]"
    notes = [{"index": n, "source": f"a.parquet row {n}", "begun": "<think>\n" if n == 2 else ""} for n in range(5)]
    assert [(found["data_source"], found["extra_info"]) for found in read] == [("judge", note) for note in notes]
    shorter = read_by_verl(path, tmp_path, monkeypatch, **limits | {"max_prompt_length": longest - 1})
    assert [found["index"] for found in shorter] == [0, 1, 2, 3]  # the longest is gone: verl counts as we do


def test_the_report_says_how_many_how_long_how_spread_and_what_was_left_out(capsys):
    rows = [{"label": label, "tokens": tokens} for label, tokens in ((0, 10), (3, 21), (3, 12))]
    dataset.report_rows("train", rows, Counter({"prompt of more than 99 tokens": 2}))
    dataset.report_rows("val", [], Counter())
    first, second = capsys.readouterr().out.splitlines()
    assert first == "train: 3 prompts of 14 tokens, the longest 21; 0: 1, 1: 0, 2: 0, 3: 2, 4: 0"
    assert second == "  left out: 2 x prompt of more than 99 tokens"


# ---- real rows

REAL = {"pointwise_train": [60, 109, 105, 278, 208], "pointwise_human_json": [187, 144, 645, 770, 784]}


@pytest.mark.parametrize("name", REAL)
def test_no_real_row_is_dropped_and_verl_reads_all_of_them_as_they_were(shared_data, tmp_path, monkeypatch, name):
    rows, dropped = load_rows(shared_data / f"{name}.parquet")
    assert ([Counter(row["label"] for row in rows)[label] for label in range(5)], dropped) == (REAL[name], {})
    rows, _ = measure_rows(rows, CHATML_TOKENIZER, LONG, False)
    read = read_by_verl(dataset.write_for_verl(rows, tmp_path / "x.parquet"), tmp_path, monkeypatch)
    assert [found["raw_prompt"] for found in read] == [row["prompt"] for row in rows]
    assert [found["reward_model"]["ground_truth"] for found in read] == [row["label"] for row in rows]
