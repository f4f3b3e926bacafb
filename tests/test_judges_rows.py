"""Both judges' labelled rows, cell by cell: what is read, and each fault named with its column and what was found."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from shapes import SHAPES, make_tokenizer

from common.conversation import RESPONSE_FORM, BadRow
from common.parquet import write_rows
from generative_pairwise import prompt as pairwise
from generative_pairwise import train as pairwise_train
from generative_pointwise import prompt as pointwise
from generative_pointwise import train as pointwise_train

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Why? 🙂"},
]


def answers(*texts) -> list:
    return [{"answer": {"role": "assistant", "content": text}} for text in texts]


def scored(**cells) -> dict:
    return {"input": DIALOGUE, "output": answers("Because."), "label": 3, **cells}


def compared(**cells) -> dict:
    return {"input": DIALOGUE, "output": answers("Yes.", "No."), "metadata": {"preferred": "B"}, **cells}


def as_json(row: dict) -> dict:
    return {name: value if name == "label" else json.dumps(value) for name, value in row.items()}


def fault_of(read, row: dict) -> tuple[str, str, str]:
    with pytest.raises(BadRow) as caught:
        read(row)
    return caught.value.column, caught.value.kind, caught.value.found


def shorten(value) -> str:
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:80] + "…"


# ---- what is read


@pytest.mark.parametrize("form", [dict, as_json], ids=["native", "json"])
def test_native_cells_and_json_text_give_the_same(form):
    """Trap 24."""
    assert pointwise.read_row(form(scored())) == pointwise.Judged(DIALOGUE, "Because.", 3)
    assert pairwise.read_row(form(compared())) == pairwise.Judged(DIALOGUE, "Yes.", "No.", "B")


def test_other_keys_of_messages_answers_and_metadata_are_ignored():
    output = [{"answer": {"role": "assistant", "content": text, "label": {"helpfulness": 1}}} for text in "ab"]
    row = compared(input=[{"role": "user", "content": "x", "name": None}], output=output)
    row["metadata"] |= {"strength": 3}
    assert pairwise.read_row(row) == pairwise.Judged([{"role": "user", "content": "x"}], "a", "b", "B")


@pytest.mark.parametrize("query", ["Why?", '{"a": 1}', "[x]", "[1, 2]", " Why?\n"])
def test_plain_text_is_the_users_turn(query):
    assert pointwise.read_row(scored(input=query)).dialogue == [{"role": "user", "content": query}]


@pytest.mark.parametrize("label", [4, "4", 4.0, "4.0", " 4 ", "4.00"])
def test_a_whole_number_is_a_label_however_it_is_written(label):
    score = pointwise.read_row(scored(label=label)).label
    assert score == 4 and type(score) is int


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_response_is_a_response(text):
    assert pointwise.read_row(scored(output=answers(text))).response == text
    assert pairwise.read_row(compared(output=answers("a", text))).response_b == text


@pytest.mark.parametrize(("judge", "row"), [(pointwise, scored), (pairwise, compared)], ids=["pointwise", "pairwise"])
def test_reasoning_is_optional(judge, row):
    for cells, reasoning in (({}, ""), ({"reasoning": None}, ""), ({"reasoning": "It is so."}, "It is so.")):
        assert judge.read_row(row(**cells)).reasoning == reasoning


# ---- what is refused

LABELS = [5, -1, 2.5, True, False, None, "three", "", "4.5", "-0.5", "1e0", "٣", "４", "0x1", [3], 1e300, "9" * 400]
LABELS += [float("nan"), float("inf"), "nan"]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: repr(label)[:12])
def test_a_label_that_is_no_score_is_refused_and_shown(label):
    expected = "expected a whole number from 0 to 4, the scale that SCORES sets"
    assert fault_of(pointwise.read_row, scored(label=label)) == ("label", expected, f" (found {shorten(label)})")


METADATA = [
    *({"preferred": preferred} for preferred in ("C", "a", "b", "Tie", "TIE", "", " A", "AB", None, 0, 1, True, ["A"])),
    *({}, None, [], ["A"], {"Preferred": "A"}, 3),
]


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("metadata", METADATA, ids=repr)
def test_a_preference_that_is_missing_or_unknown_is_refused_and_never_a_tie(metadata, form):
    """Trap 16."""
    expected = ("metadata", "`preferred` is not one of A, B, tie", f" (found {metadata!r})")
    assert fault_of(pairwise.read_row, compared(metadata=form(metadata))) == expected


@pytest.mark.parametrize("metadata", ["A", "tie", "", '{"preferred": "A"'])
def test_metadata_that_is_text_but_no_json_is_refused_and_shown(metadata):
    column, kind, found = fault_of(pairwise.read_row, compared(metadata=metadata))
    assert (column, kind) == ("metadata", "JSON that cannot be parsed")
    assert metadata in found


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("output", [answers("a", "b"), [], {"answer": "a"}, 7, None, answers(*"abc")], ids=repr)
def test_another_number_of_responses_is_refused_and_shown(output, form):
    cell = form(output)
    shown = f" (found {shorten(cell)})"
    assert fault_of(pointwise.read_row, scored(output=cell)) == (
        "output",
        f"expected a list of 1 response, each {RESPONSE_FORM}",
        shown,
    )
    if output != answers("a", "b"):
        assert fault_of(pairwise.read_row, compared(output=cell)) == (
            "output",
            f"expected a list of 2 responses, each {RESPONSE_FORM}",
            shown,
        )


RESPONSES = [
    {"answer": {"role": "user", "content": "x"}},
    *({"answer": {"role": "assistant", "content": content}} for content in (None, 7, ["x"], {"text": "x"})),
    *({"answer": {"role": "assistant"}}, {"answer": {}}, {"answer": None}, {"answer": "x"}, {"answer": ["x"]}),
    *({}, {"content": "x"}, "x", None, 7),
]


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("response", RESPONSES, ids=repr)
def test_a_response_without_text_is_refused_and_shown(response, form):
    kind = f"expected each response as {RESPONSE_FORM}"
    good = answers("good")[0]
    for read, row in (
        (pointwise.read_row, scored(output=form([response]))),
        (pairwise.read_row, compared(output=form([good, response]))),
        (pairwise.read_row, compared(output=form([response, good]))),
    ):
        assert fault_of(read, row) == ("output", kind, f" (found {response!r})")


def test_equal_responses_can_only_be_a_tie():
    """Trap 11."""
    kind = "equal responses, one of them preferred"
    for preferred in "AB":
        row = compared(output=answers("Yes.", "Yes."), metadata={"preferred": preferred})
        assert fault_of(pairwise.read_row, row) == ("output", kind, " (found 'Yes.')")
    assert pairwise.read_row({**row, "metadata": {"preferred": "tie"}}).label == "tie"


def test_half_of_a_surrogate_pair_is_refused_in_responses_as_in_turns():
    """JSON can escape half an emoji. No tokenizer and no Parquet file takes it."""
    kind = "text that is not Unicode, half of a surrogate pair"
    half = '[{"answer": {"role": "assistant", "content": "\\ud83d"}}]'
    assert fault_of(pointwise.read_row, scored(output=half)) == ("output", kind, r" (found '\ud83d')")
    half = '[{"role": "user", "content": "\\ud83d"}]'
    assert fault_of(pointwise.read_row, scored(input=half)) == ("input", kind, r" (found '\ud83d')")
    whole = '[{"answer": {"role": "assistant", "content": "\\ud83d\\ude42"}}]'
    assert pointwise.read_row(scored(output=whole)).response == "🙂"


@pytest.mark.parametrize("cell", ["[{", '[{"answer": {"role"', "text", "", "[1, 2"])
def test_an_output_that_does_not_parse_is_refused_and_shown(cell):
    column, kind, found = fault_of(pointwise.read_row, scored(output=cell))
    assert (column, kind) == ("output", "JSON that cannot be parsed")
    assert cell in found


DIALOGUES = {
    "empty text": " ",
    "JSON that cannot be parsed": '[{"role": "user"',
    "expected a list of messages, JSON text of one, or plain text": [],
    "a message without role or content": [{"role": "user", "content": None}],
    "unknown role, expected one of system, user, assistant, tool": [{"role": "human", "content": "x"}],
    "a message whose content is not text": [{"role": "user", "content": 7}],
}


@pytest.mark.parametrize(("kind", "dialogue"), DIALOGUES.items(), ids=DIALOGUES)
def test_a_broken_dialogue_is_refused_in_the_input_column(kind, dialogue):
    for read, row in ((pointwise.read_row, scored(input=dialogue)), (pairwise.read_row, compared(input=dialogue))):
        assert fault_of(read, row)[:2] == ("input", kind)


def test_an_input_of_none_is_refused_and_shown():
    kind = "expected a list of messages, JSON text of one, or plain text"
    assert fault_of(pointwise.read_row, scored(input=None)) == ("input", kind, " (found None)")


@pytest.mark.parametrize("reasoning", [7, ["why"], {"why": 1}])
def test_reasoning_that_is_no_text_is_refused_and_shown(reasoning):
    expected = ("reasoning", "expected text", f" (found {reasoning!r})")
    assert fault_of(pointwise.read_row, scored(reasoning=reasoning)) == expected
    assert fault_of(pairwise.read_row, compared(reasoning=reasoning)) == expected


# ---- transcripts


def test_a_scored_row_becomes_the_judges_prompt_and_the_answer_with_its_label():
    judged = pointwise.read_row(scored(reasoning="No </think> gap."))
    ((prompt, answer),) = pointwise.transcripts(judged, "Brevity")
    assert [prompt] == pointwise.ask(DIALOGUE, "Because.", "Brevity")
    assert answer["role"] == "assistant"
    assert answer["content"] == "<think>\nNo < /think> gap.\n</think>\n\n<score>3</score>"
    assert pointwise.parse(answer["content"]) == 3


@pytest.mark.parametrize(("preferred", "mirrored"), [("A", "B"), ("B", "A"), ("tie", "tie")])
def test_a_comparison_without_reasoning_is_shown_in_both_orders(preferred, mirrored):
    judged = pairwise.read_row(compared(metadata={"preferred": preferred}))
    first, second = pairwise.transcripts(judged, "Brevity")
    assert first[:1] == pairwise.ask(DIALOGUE, "Yes.", "No.", "Brevity")
    assert second[:1] == pairwise.ask(DIALOGUE, "No.", "Yes.", "Brevity")
    assert [pairwise.parse(shown[1]["content"]) for shown in (first, second)] == [preferred, mirrored]
    assert [[turn["role"] for turn in shown] for shown in (first, second)] == [["user", "assistant"]] * 2


def test_a_comparison_with_reasoning_is_shown_as_it_stands_as_the_reasoning_names_a_and_b():
    (shown,) = pairwise.transcripts(pairwise.read_row(compared(reasoning="B says no.")))
    assert shown[:1] == pairwise.ask(DIALOGUE, "Yes.", "No.")
    assert shown[1]["content"] == "<think>\nB says no.\n</think>\n\n<preference>B</preference>"


# ---- files for training


def read_data(judge, train_files, val_files="", **limits) -> tuple[dict, dict]:
    usual = {"max_prompt_length": 10**6, "filter_overlong_prompts": False, "on_bad_row": "error"}
    data = {"train_files": str(train_files), "val_files": str(val_files), **usual, **limits}
    base = SimpleNamespace(tokenizer=make_tokenizer(SHAPES["chatml"]), embeddings=10**6)
    return judge.read_data(OmegaConf.create({"data": data, "trainer": {"seed": 0}}), base)


@pytest.fixture(params=[(pointwise_train, scored, 1), (pairwise_train, compared, 2)], ids=["pointwise", "pairwise"])
def judge(request) -> tuple:
    """A judge's train.py, what makes a labelled row of it, and how many prompts a row becomes."""
    return request.param


def dialogues(make, count: int) -> list[dict]:
    """Three rows of each dialogue."""
    return [make(input=f"Why {number % count}?") for number in range(3 * count)]


def test_without_val_files_a_tenth_of_the_training_dialogues_is_held_out(judge, tmp_path, capsys):
    """Trap 21."""
    train, make, prompts = judge
    rows, left_out = read_data(train, write_rows(tmp_path / "train.parquet", dialogues(make, 20)))
    assert (len(rows["train"]), len(rows["val"]), left_out) == (54 * prompts, 6 * prompts, {"train": {}, "val": {}})
    asked = [{json.dumps(row["input"]) for row in rows[name]} for name in ("train", "val")]
    assert (len(asked[0]), len(asked[1]), asked[0] & asked[1]) == (18, 2, set())
    printed = capsys.readouterr().out
    assert f"no VAL_FILES: {6 * prompts} training prompts are held out, to choose the best policy" in printed
    assert f"warning: {6 * prompts} validation prompts hardly tell one policy from another" in printed
    assert "no held-out prompts in train found" in printed.replace("no duplicates, ", "")


def test_held_out_rows_that_are_training_rows_too_are_warned_of(judge, tmp_path, capsys):
    train, make, prompts = judge
    rows = dialogues(make, 20)
    files = [write_rows(tmp_path / "train.parquet", rows), write_rows(tmp_path / "val.parquet", rows[:1] + rows[18:20])]
    read, _ = read_data(train, *files)
    assert (len(read["train"]), len(read["val"])) == (60 * prompts, 3 * prompts)
    assert "  prompts also in train: 3 x equal (train.parquet row 0 and val.parquet row 0)" in capsys.readouterr().out


def test_what_is_left_out_of_the_training_rows_is_counted_and_said(judge, tmp_path, capsys):
    train, make, prompts = judge
    bad, long = make(output=[]), make(input="Why? " * 500)
    good = write_rows(tmp_path / "val.parquet", dialogues(make, 20))
    files = write_rows(tmp_path / "train.parquet", [as_json(row) for row in [*dialogues(make, 20), bad, long]]), good
    limits = {"max_prompt_length": 600, "filter_overlong_prompts": True, "on_bad_row": "drop"}
    rows, left_out = read_data(train, *files, **limits)
    assert len(rows["train"]) == 60 * prompts
    assert left_out["val"] == {} and left_out["train"].pop("prompt of more than 600 tokens") == prompts
    ((kind, count),) = left_out["train"].items()
    assert kind.startswith("column 'output': expected a list of ") and count == 1
    assert f"  left out: {prompts} x prompt of more than 600 tokens" in capsys.readouterr().out
