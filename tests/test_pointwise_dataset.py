"""Rows for the pointwise judge: read, refused, measured, and read back by verl's own dataset as they were written."""

import json
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest
import verl
from omegaconf import OmegaConf
from shapes import CHATML, NO_THINKING, QWEN3_THINKING, SHAPES, assistant, make_tokenizer, system, user
from verl.utils.dataset.rl_dataset import RLHFDataset

from common.conversation import DataError, prompt_of
from common.judge import write_score
from common.judging.prompts import digest, measure_rows
from common.labelled import RESPONSE_FORM
from common.parquet import write_rows
from generative_pointwise import dataset, prompt, reward

load_rows = dataset.load_rows

LONG = 10**6
CHATML_TOKENIZER = make_tokenizer(SHAPES["chatml"])
DIALOGUE = [system("Be brief."), assistant("Hi! 🙂"), user("Why?")]


def labelled(label: object = 3, response: str = "So.", **cells) -> dict:
    return {"input": DIALOGUE, "output": [{"answer": assistant(response)}], "label": label, **cells}


def as_json(row: dict) -> dict:
    return {name: json.dumps(cell) if name in ("input", "output", "prompt") else cell for name, cell in row.items()}


def shown(response: str = "So.") -> list[dict]:
    return prompt.render(labelled(response=response))[0]


def rendered(label: int, number: int, response: str = "So.", file: str = "a.parquet") -> dict:
    origin = {"data_source": "judge", "evidence": [], "source": f"{file} row {number}"}
    return {"prompt": shown(response), "label": label, **origin}


def refused(read, *arguments) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path):
    return lambda name, *rows: write_rows(tmp_path / name, list(rows))


# ---- reading


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
def test_labelled_rows_are_rendered_and_rendered_ones_kept_also_in_one_reading(write, form):
    first = write("a.parquet", form(labelled(0)), form(labelled(4, "")))
    named = {"prompt": shown("No."), "label": 2, "evidence": ["x", "y"], "data_source": "demo", "other": 7}
    second = write("b.parquet", form(named), form({**named, "evidence": None, "data_source": None}))
    kept = rendered(2, 0, "No.", "b.parquet") | {"evidence": ["x", "y"], "data_source": "demo"}
    rows = [rendered(0, 0), rendered(4, 1, ""), kept, rendered(2, 1, "No.", "b.parquet")]
    keys = [prompt_of({"input": turns}) for turns in (DIALOGUE, DIALOGUE, shown("No."), shown("No."))]
    for files, order in (([first, second], [0, 1, 2, 3]), (f"{second}, {first}", [2, 3, 0, 1])):
        read, dropped = load_rows(files)
        assert [prompt_of(row) for row in read] == [keys[number] for number in order]
        assert [{**rows[number], "input": row["input"]} for number, row in zip(order, read)] == read
        assert dropped == {}


# a label as a labelled file may write it, and as one of rendered rows may: what is read, or None where it is refused
LABELS = [(0.0, 0, 0), (4, 4, 4), ("3", 3, None), ("4.0", 4, None), (True, None, None), (None, None, None)]
LABELS += [(5, None, None), (3.7, None, None), (-1, None, None), ("three", None, None), (float("nan"), None, None)]


@pytest.mark.parametrize(("label", "read", "kept"), LABELS, ids=repr)
def test_a_label_is_a_whole_number_from_0_to_4_or_an_error_and_never_a_default(write, label, read, kept):
    """Trap 14."""
    for row, expected in ((labelled(label), read), ({"prompt": shown(), "label": label}, kept)):
        path = write("a.parquet", row)
        if expected is None:
            assert re.match(r"  a.parquet row 0, column 'label': expected .* \(found ", refused(load_rows, path)[1])
        else:
            assert repr(load_rows(path)[0][0]["label"]) == repr(expected)  # an int, not 3.0


BROKEN = {  # column and fault of labelled rows: cells that have it, in JSON text
    ("input", "empty text"): [" "],
    ("input", "expected a list of messages, JSON text of one, or plain text"): [None],
    ("input", "a message without role or content"): ['[{"role": "user"}]', '[{"role": "user", "content": null}]'],
    ("output", "JSON that does not parse"): ["x", "[", ""],
    ("output", f"expected a list of 1 response, each {RESPONSE_FORM}"): [None, "[]", "[{}, {}]"],
    ("output", f"expected each response as {RESPONSE_FORM}"): ['["x"]', '[{"answer": null}]'],
    ("label", "expected a whole number from 0 to 4"): [None, 5],
}
BROKEN_RENDERED = {
    ("prompt", "expected messages that end with the user's"): ["Score it.", json.dumps([user("x"), assistant("y")])],
    ("prompt", "expected a list of messages, JSON text of one, or plain text"): [None],
    ("prompt", "a message whose content is not text"): ['[{"role": "user", "content": 7}]'] * 2,
    ("label", "expected one of 0, 1, 2, 3, 4"): [None],
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


def test_a_missing_file_column_or_row_and_an_unknown_choice_are_errors(write, tmp_path):
    path = write("a.parquet", labelled(9))
    (tmp_path / "text.parquet").write_text("no")
    assert refused(load_rows, tmp_path / "text.parquet")[0].startswith(f"{tmp_path / 'text.parquet'}: not a Parquet")
    assert refused(load_rows, tmp_path / "b.parquet")[0].startswith(f"{tmp_path / 'b.parquet'}: no such file")
    assert "column 'output', 'label' is missing" in refused(load_rows, write("c.parquet", {"input": "x"}))[0]
    assert "no usable row: all were dropped (1 x column 'label'" in refused(load_rows, path, "drop")[0]
    assert "on_bad_row='skip'" in refused(load_rows, path, "skip")[0]


def test_files_are_read_as_read_rows_reads_several(write):
    first, second = write("a/x.parquet", labelled(9)), write("b/x.parquet", labelled(8), labelled(3))
    lines = refused(load_rows, [first, second])[1:3]
    assert [line.partition(" row ")[0].strip() for line in lines] == [str(first), str(second)]
    assert [row["source"] for row in load_rows([first, second], "drop")[0]] == [f"{second} row 1"]


@pytest.mark.parametrize("evidence", ["lamp", '["lamp"]', 7])
def test_evidence_that_is_no_list_is_refused_or_read_as_the_list_it_spells(write, evidence):
    rows, _ = load_rows(write("a.parquet", labelled(evidence=evidence), labelled(evidence=None)), "drop")
    assert [row["evidence"] for row in rows] in ([[]], [["lamp"], []])


# ---- measuring

BEGUN = {name: (shape, shape.template, "") for name, shape in SHAPES.items() if not shape.options}
BEGUN["a template that opens the reasoning"] = (SHAPES["qwen3"], QWEN3_THINKING, "<think>\n")
CLOSES = CHATML.replace("assistant\\n", "assistant\\n" + NO_THINKING)
BEGUN["a template that closes it"] = (SHAPES["chatml"], CLOSES, NO_THINKING)


@pytest.mark.parametrize(("shape", "template", "begun"), BEGUN.values(), ids=BEGUN)
def test_tokens_are_the_templates_and_an_answer_behind_what_it_began_is_right(shape, template, begun):
    """Traps 2, 18 and 23: also where the response ends as such a template would."""
    tokenizer = make_tokenizer(shape, chat_template=template)
    rows = [rendered(3, 0), rendered(0, 1, "<think>\n")]
    for row in measure_rows(rows, tokenizer, LONG, False)[0]:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert (row["tokens"], row["begun"]) == (len(ids), begun)
        answer = write_score(row["label"]).removeprefix(begun)
        assert reward.compute_score("judge", answer, row["label"], {"begun": begun})["score"] == 1


def test_a_prompt_too_long_is_an_error_with_the_remedy_or_left_out_and_counted():
    rows = [rendered(1, 0, "So. " * 50), rendered(2, 1), rendered(3, 2, "So. " * 99)]
    longer, short, longest = (row["tokens"] for row in measure_rows(rows, CHATML_TOKENIZER, LONG, False)[0])
    assert refused(measure_rows, rows, CHATML_TOKENIZER, short, False) == [
        f"2 of 3 prompts are longer than data.max_prompt_length={short} tokens:",
        f"  a.parquet row 2: {longest} tokens",
        f"  a.parquet row 0: {longer} tokens",
        "Raise data.max_prompt_length, or leave them out with data.filter_overlong_prompts=True.",
    ]
    kept, left_out = measure_rows(rows, CHATML_TOKENIZER, longer, True)
    assert kept == [{**rows[0], "tokens": longer, "begun": ""}, {**rows[1], "tokens": short, "begun": ""}]
    assert left_out == {f"prompt of more than {longer} tokens": 1}
    assert measure_rows(rows, CHATML_TOKENIZER, longest, False) == (
        measure_rows(rows, CHATML_TOKENIZER, LONG, True)[0],
        {},
    )
    assert refused(measure_rows, rows, CHATML_TOKENIZER, 9, True) == [
        "no row is left: 3 x prompt of more than 9 tokens"
    ]


def test_a_row_that_the_template_refuses_is_an_error_by_row_or_dropped_and_counted():
    gemma = make_tokenizer(SHAPES["gemma"])
    rows = [rendered(3, 0), {**rendered(3, 1), "prompt": [system("Judge."), user("Score it.")]}]
    fault = "the chat template refuses it: user and assistant take turns, there is no place for: system"
    assert refused(measure_rows, rows, gemma, LONG, False)[1] == f"  a.parquet row 1, column 'prompt': {fault}"
    kept, left_out = measure_rows(rows, gemma, LONG, False, "drop")
    assert [row["source"] for row in kept] == ["a.parquet row 0"]
    assert left_out == {f"column 'prompt': {fault}": 1}


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


def test_the_digest_tells_prompts_labels_and_order_apart_and_nothing_else():
    rows = [rendered(1, 0), rendered(2, 1, "No.")]
    others = [rows[::-1], rows[:1], [*rows, rows[1]], [rows[0], {**rows[1], "label": 3}], [], [rows[0], rendered(2, 1)]]
    assert digest(rows) == digest([{**row, "source": "b", "tokens": 9} for row in rows])
    assert len({digest(found) for found in [rows, *others]}) == 7
    assert digest([{"prompt": [user("x")], "label": 3}]) == "21ace57eb1f43f03"


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
