"""Rows for the pairwise judge: every pair in both orders or not at all, and read back by verl as it was written."""

import json
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest
import verl
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from shapes import SHAPES, assistant, make_tokenizer, system, user
from verl.utils.dataset.rl_dataset import RLHFDataset

from common.conversation import RESPONSE_FORM, DataError
from common.judging.prompts import measure_rows
from common.parquet import split_by_prompt, write_rows
from generative_pairwise import dataset
from generative_pairwise.dataset import load_rows, prompt_of
from generative_pairwise.prompt import RUBRIC, ask

CHATML, GEMMA = (make_tokenizer(SHAPES[name]) for name in ("chatml", "gemma"))
DIALOGUE = [system("Be brief."), assistant("Hi! 🙂"), user("Why?")]
SWAPPED = {"A": "B", "B": "A", "tie": "tie", None: None}


def labelled(preferred: object = "A", texts=("So.", "No way."), dialogue=DIALOGUE, strength=None, **cells) -> dict:
    output = [{"answer": assistant(text)} for text in texts]
    metadata = {"preferred": preferred, "preference_strength": strength}
    return {"input": dialogue, "output": output, "metadata": metadata, **cells}


def rendered(label: object = "A", texts=("So.", "No way."), dialogue=DIALOGUE, **cells) -> dict:
    """A pair that has its prompts."""
    prompts = {"prompt": ask(dialogue, *texts), "prompt_swapped": ask(dialogue, *texts[::-1])}
    return {**prompts, "label": label, **cells}


def as_json(row: dict) -> dict:
    return {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}


def orders(label: str, texts, longer: str | None, source: str, **cells) -> list[dict]:
    """The two rows that a pair becomes, but for `input`."""
    pair = rendered(texts=texts)
    given = {"prompt": pair["prompt"], "label": label, "longer": longer, "order": "as given"}
    swapped = {"prompt": pair["prompt_swapped"], "label": SWAPPED[label], "longer": SWAPPED[longer], "order": "swapped"}
    given, swapped = given | {"responses": list(texts)}, swapped | {"responses": list(texts[::-1])}
    shared = {"rubric": RUBRIC, "strength": None, "data_source": "judge", "source": source, **cells}
    return [given | shared, swapped | shared]


def refused(read, *arguments) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path):
    return lambda name, *rows: write_rows(tmp_path / name, list(rows))


# ---- reading


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
def test_labelled_and_rendered_pairs_give_both_orders_one_below_the_other(write, form):
    """Trap 24. Label and longer response are turned round with the responses; ties have no strength."""
    texts, even = ("So.", "No way."), ("So.", "No.")
    first = write("a.parquet", form(labelled("A", texts, strength=2)), form(labelled("tie", even, strength=3)))
    named = rendered("B", texts, rubric="Brevity", longer="A", strength=0.5, input=DIALOGUE, data_source="demo")
    named = form({**named, "evidence": ["x"], "responses": list(texts)})
    optional = ("rubric", "longer", "strength", "input", "data_source", "responses")
    second = write("b.parquet", named, {**named, **dict.fromkeys(optional)})
    rows = [
        orders("A", texts, "B", "a.parquet row 0", strength=2.0),
        orders("tie", even, "tie", "a.parquet row 1"),
        orders("B", texts, "A", "b.parquet row 0", rubric="Brevity", strength=0.5, data_source="demo"),
        orders("B", texts, None, "b.parquet row 1", rubric=None, responses=None),
    ]
    read, dropped = load_rows([first, second])
    assert [{**row, "input": None} for row in read] == [{**row, "input": None} for both in rows for row in both]
    keys = [prompt_of(row) for row in read]
    assert keys == [prompt_of({"input": DIALOGUE})] * 6 + keys[-1:] * 2 and len(set(keys)) == 2 and dropped == {}


def marked(preferred: object, strength: str = "null") -> str:
    return f'{{"preferred": {json.dumps(preferred)}, "preference_strength": {strength}}}'


NOT_ABOVE_0 = "the strength of a preference is a number above 0; leave it out if unknown"
BROKEN = {  # column and fault of labelled rows: cells that have it, in JSON text
    ("input", "empty text"): [" "],
    ("output", f"expected a list of 2 responses, each {RESPONSE_FORM}"): [None, "[]", "[{}]", "[{}, {}, {}]"],
    ("output", "equal responses, one of them preferred"): [json.dumps([{"answer": assistant("So.")}] * 2)],
    ("metadata", "`preferred` is not one of A, B, tie"): [None, "{}", "[]", *map(marked, (None, "C", "Tie", "a"))],
    ("metadata", NOT_ABOVE_0): [marked("A", one) for one in ("0", "-1", '"3"', "true", "NaN", "1e999", "9" * 400)],
}
BROKEN_RENDERED = {
    ("prompt", "expected messages that end with the user's"): ["Compare.", json.dumps([user("x"), assistant("y")])],
    ("prompt_swapped", "expected messages that end with the user's"): ["Compare.", json.dumps([assistant("y")])],
    ("prompt_swapped", "expected a list of messages, JSON text of one, or plain text"): [None],
    ("label", "expected one of A, B, tie"): [None, "C", "a", "Tie", "TIE", "", " A", "AB"],
}


@pytest.mark.parametrize("broken", [BROKEN, BROKEN_RENDERED], ids=["labelled", "rendered"])
def test_bad_pairs_are_one_error_by_file_row_and_column_or_dropped_whole_and_counted(write, broken):
    """Traps 11 and 16: a missing label is never a tie."""
    good = as_json(labelled() if broken is BROKEN else rendered())
    faults = [(column, kind, cell) for (column, kind), cells in broken.items() for cell in cells]
    path = write("a.parquet", good, *({**good, column: cell} for column, _, cell in faults), good)
    lines = refused(load_rows, path)
    assert lines[0] == f"{len(faults)} of {len(faults) + 2} rows cannot be used:"
    named = [f"  a.parquet row {row}, column '{column}': {kind}" for row, (column, kind, _) in enumerate(faults, 1)]
    assert [line.partition(" (found ")[0] for line in lines[1:6]] == named[:5]
    assert lines[6] == f"  … and {len(faults) - 5} more" and "on_bad_row=drop" in lines[-1]
    rows, dropped = load_rows(path, "drop")
    assert [row["source"] for row in rows] == ["a.parquet row 0"] * 2 + [f"a.parquet row {len(faults) + 1}"] * 2
    assert dropped == {f"column '{column}': {kind}": len(cells) for (column, kind), cells in broken.items()}


OPTIONAL = [("input", 7, "expected a list of messages, JSON text of one, or plain text")]
OPTIONAL += [("data_source", 7, "expected text"), ("rubric", 7, "expected text")]
OPTIONAL += [("longer", "a", "expected one of A, B, tie, or nothing")]
OPTIONAL += [("strength", strength, NOT_ABOVE_0) for strength in (0.0, -1, float("nan"), float("inf"), "3", True)]


@pytest.mark.parametrize(("column", "cell", "fault"), OPTIONAL, ids=repr)
def test_a_bad_cell_of_an_optional_column_is_an_error_that_names_the_column(write, column, cell, fault):
    path = write("a.parquet", rendered(**{column: cell}))
    assert refused(load_rows, path)[1] == f"  a.parquet row 0, column '{column}': {fault} (found {cell!r})"


def test_rendered_rows_need_both_orders_and_where_these_are_alike_there_can_only_be_a_tie(write):
    """Trap 11."""
    assert "'prompt_swapped' is missing" in refused(load_rows, write("a.parquet", {"prompt": "x", "label": 3}))[0]
    alike = {"prompt_swapped": rendered()["prompt"]}
    assert len(load_rows(write("b.parquet", rendered("tie", **alike)))[0]) == 2
    assert "1 of 1 rows cannot be used:" in refused(load_rows, write("c.parquet", rendered("A", **alike)))


# ---- splitting, measuring, handing over

MIRRORED = [(label, texts, [user(f"{n}?")]) for label, texts in (("A", "xy"), ("B", "yx")) for n in range(20)]
DIFFERENT = MIRRORED[:20] + [("tie", "zw", dialogue) for _, _, dialogue in MIRRORED[:20]]
PAIRS = {
    "labelled": [labelled(*pair) for pair in DIFFERENT],
    "rendered": [rendered(*pair, input=pair[2]) for pair in DIFFERENT],
    "rendered, the dialogue unknown": [rendered(*pair) for pair in MIRRORED],
    "dialogues as messages and as text": [as_json(labelled(*pair)) for pair in DIFFERENT[:20]]
    + [as_json(labelled(*pair)) | {"input": pair[2][0]["content"]} for pair in DIFFERENT[20:]],
}


def dialogue_of(row: dict) -> str:
    return re.search("<dialogue>.*</dialogue>", row["prompt"][0]["content"], re.DOTALL)[0]


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
def test_a_split_parts_neither_a_pairs_orders_nor_the_pairs_of_a_dialogue(write, pairs):
    """Trap 21: two pairs of each dialogue make four prompts that stay together; if unknown, one is the other turned."""
    rows, _ = load_rows(write("a.parquet", *pairs))
    for seed in range(3):
        sides = split_by_prompt(rows, {"train": 0.7, "val": 0.3}, seed, prompt_of).values()
        assert [Counter(Counter(map(dialogue_of, side)).values()) for side in sides] == [{4: 14}, {4: 6}]


LENGTHS = {"fits": [user("x")], "too long": [user("x " * 50)], "refused": [system("x"), user("x")]}
TAKES_TURNS = (
    "the model's chat template refuses the conversation: user and assistant take turns, there is no place for: system"
)
KINDS = {"too long": "prompt of more than 40 tokens", "refused": f"column 'prompt': {TAKES_TURNS}"}


def of_kinds(kinds: list[tuple[str, str]]) -> list[dict]:
    pairs = [dict(zip(("prompt", "prompt_swapped"), map(LENGTHS.get, both))) for both in kinds]
    pairs = [{**pair, "label": "A", "longer": "A", "source": f"row {n}"} for n, pair in enumerate(pairs)]
    return [row for pair in pairs for row in dataset.both_orders(pair)]


@given(st.lists(st.tuples(*[st.sampled_from(list(LENGTHS))] * 2), max_size=6))
def test_a_pair_that_cannot_be_asked_in_one_order_is_left_out_in_both_and_all_is_counted(kinds):
    kinds = [("fits", "fits"), *kinds]
    kept, left_out = measure_rows(rows := of_kinds(kinds), GEMMA, 40, True, "drop")
    whole = [f"row {number}" for number, both in enumerate(kinds) if set(both) == {"fits"}]
    assert [row["source"] for row in kept] == [source for source in whole for _ in "AB"]
    assert [row["order"] for row in kept] == ["as given", "swapped"] * len(whole)
    expected = Counter(KINDS[kind] for both in kinds for kind in both if kind != "fits")
    others = sum(both.count("fits") == 1 for both in kinds)
    assert left_out == expected | ({"prompt left out with another of its row": others} if others else {})
    assert len(kept) + left_out.total() == len(rows)


def test_what_cannot_be_asked_is_an_error_unless_it_may_be_left_out():
    lines = refused(measure_rows, of_kinds([("fits", "too long"), ("too long", "fits")]), GEMMA, 40, False)
    assert lines[0] == "2 of 4 prompts are longer than data.max_prompt_length=40 tokens:"
    assert re.fullmatch(r"  row 0, swapped: \d+ tokens   row 1, as given: \d+ tokens", " ".join(lines[1:3]))
    fates = f"1 x {KINDS['too long']}; 1 x prompt left out with another of its row"
    assert refused(measure_rows, of_kinds([("too long", "fits")]), GEMMA, 40, True) == [f"no row is left: {fates}"]


def read_by_verl(path: Path, cache: Path, monkeypatch) -> list[dict]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    config = OmegaConf.load(Path(verl.__file__).parent / "trainer" / "config" / "data" / "legacy_data.yaml")
    return list(RLHFDataset(str(path), CHATML, config))


@pytest.mark.parametrize("strengths", [(None, None, None), (2, None, 3), (0.5, 3, None)], ids=str)
def test_verl_reads_back_every_prompt_label_and_note(write, tmp_path, monkeypatch, strengths):
    texts = "So. 🙂 \u200b<|im_end|>", "No."
    pairs = [labelled(label, texts, strength=strength) for label, strength in zip(("B", "A", "tie"), strengths)]
    rows = [{**row, "begun": n * "<"} for n, row in enumerate(load_rows(write("a.parquet", *pairs))[0])]
    read = read_by_verl(dataset.write_for_verl(rows, tmp_path / "train.parquet"), tmp_path, monkeypatch)
    assert [found["raw_prompt"] for found in read] == [row["prompt"] for row in rows]
    assert [found["reward_model"]["ground_truth"] for found in read] == ["B", "A", "A", "B", "tie", "tie"]
    sources = [f"a.parquet row {n}, {order}" for n in range(3) for order in ("as given", "swapped")]
    notes = zip(range(6), sources, map("<".__mul__, range(6)), [by for by in (*strengths[:2], None) for _ in "AB"])
    expected = [dict(zip(("index", "source", "begun", "strength"), note)) for note in notes]
    assert [(found["data_source"], found["extra_info"]) for found in read] == [("judge", note) for note in expected]


def test_the_report_says_how_many_how_long_how_spread_and_what_was_left_out(capsys):
    rows = [{"label": label, "tokens": tokens} for label, tokens in (("A", 10), ("B", 21), ("tie", 12), ("tie", 13))]
    dataset.report_rows("train", rows, Counter({"prompt of more than 99 tokens": 2}))
    dataset.report_rows("val", [], Counter())
    first, second = capsys.readouterr().out.splitlines()
    assert first == "train: 4 prompts of 14 tokens, the longest 21; A: 1, B: 1, tie: 2"
    assert second == "  left out: 2 x prompt of more than 99 tokens"


# ---- real rows

REAL = {"pairwise_train": [1148, 917, 243, 389], "pairwise_multiturn_train_json": [288, 298, 44, 42]}


@pytest.mark.parametrize("name", REAL)
def test_no_real_pair_is_dropped_parted_or_read_otherwise_by_verl(shared_data, tmp_path, monkeypatch, name):
    rows, dropped = load_rows(shared_data / f"{name}.parquet")
    a, b, ties, dialogues = REAL[name]
    for order, counts in ((rows[::2], [a, b, ties]), (rows[1::2], [b, a, ties])):
        assert [[row["label"] for row in order].count(label) for label in ("A", "B", "tie")] == counts
    assert all((row["strength"] is None) == (row["label"] == "tie") for row in rows)
    assert dropped == {} and [row["source"] for row in rows[::2]] == [row["source"] for row in rows[1::2]]
    splits = split_by_prompt(rows, {"train": 0.9, "val": 0.1}, 0, prompt_of)
    parts = [Counter(map(dialogue_of, side)) for side in splits.values()]
    assert len(parts[0]) + len(parts[1]) == len(parts[0] | parts[1]) == dialogues
    assert all(set(Counter(row["source"] for row in side).values()) == {2} for side in splits.values())
    path = dataset.write_for_verl([{**row, "begun": ""} for row in rows], tmp_path / "x.parquet")
    read = read_by_verl(path, tmp_path, monkeypatch)
    assert [found["raw_prompt"] for found in read] == [row["prompt"] for row in rows]
    assert [found["reward_model"]["ground_truth"] for found in read] == [row["label"] for row in rows]
