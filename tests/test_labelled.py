"""Labelled judgements read cell by cell: what is read, and each fault named with its column and what was found."""

import json

import pytest

from common.conversation import BadRow
from common.judge import Comparison, pairwise_prompt, parse_preference, parse_score, pointwise_prompt
from common.labelled import (
    RESPONSE_FORM,
    pairwise_transcripts,
    pointwise_transcript,
    read_comparison,
    read_reasoning,
    read_scored,
)

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
    assert read_scored(form(scored())) == (DIALOGUE, "Because.", 3)
    assert read_comparison(form(compared())) == Comparison(DIALOGUE, "Yes.", "No.", "B")


def test_other_keys_of_messages_answers_and_metadata_are_ignored():
    output = [{"answer": {"role": "assistant", "content": text, "label": {"helpfulness": 1}}} for text in "ab"]
    row = compared(input=[{"role": "user", "content": "x", "name": None}], output=output)
    row["metadata"] |= {"strength": 3}
    assert read_comparison(row) == Comparison([{"role": "user", "content": "x"}], "a", "b", "B")


@pytest.mark.parametrize("query", ["Why?", '{"a": 1}', "[x]", "[1, 2]", " Why?\n"])
def test_plain_text_is_the_users_turn(query):
    assert read_scored(scored(input=query))[0] == [{"role": "user", "content": query}]


@pytest.mark.parametrize("label", [4, "4", 4.0, "4.0", " 4 ", "4.00"])
def test_a_whole_number_is_a_label_however_it_is_written(label):
    score = read_scored(scored(label=label))[2]
    assert score == 4 and type(score) is int


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_response_is_a_response(text):
    assert read_scored(scored(output=answers(text)))[1] == text
    assert read_comparison(compared(output=answers("a", text))).response_b == text


def test_reasoning_is_optional():
    assert read_reasoning({}) == read_reasoning({"reasoning": None}) == read_reasoning({"reasoning": ""}) == ""
    assert read_reasoning({"reasoning": "It is so."}) == "It is so."


# ---- what is refused

LABELS = [5, -1, 2.5, True, False, None, "three", "", "4.5", "-0.5", "1e0", "٣", "４", "0x1", [3], 1e300, "9" * 400]
LABELS += [float("nan"), float("inf"), "nan"]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: repr(label)[:12])
def test_a_label_that_is_no_score_is_refused_and_shown(label):
    expected = ("label", "expected a whole number from 0 to 4", f" (found {shorten(label)})")
    assert fault_of(read_scored, scored(label=label)) == expected


METADATA = [
    *({"preferred": preferred} for preferred in ("C", "a", "b", "Tie", "TIE", "", " A", "AB", None, 0, 1, True, ["A"])),
    *({}, None, [], ["A"], {"Preferred": "A"}, 3),
]


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("metadata", METADATA, ids=repr)
def test_a_preference_that_is_missing_or_unknown_is_refused_and_never_a_tie(metadata, form):
    """Trap 16."""
    expected = ("metadata", "`preferred` is not one of A, B, tie", f" (found {metadata!r})")
    assert fault_of(read_comparison, compared(metadata=form(metadata))) == expected


@pytest.mark.parametrize("metadata", ["A", "tie", "", '{"preferred": "A"'])
def test_metadata_that_is_text_but_no_json_is_refused_and_shown(metadata):
    column, kind, found = fault_of(read_comparison, compared(metadata=metadata))
    assert (column, kind) == ("metadata", "JSON that does not parse")
    assert metadata in found


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("output", [answers("a", "b"), [], {"answer": "a"}, 7, None, answers(*"abc")], ids=repr)
def test_another_number_of_responses_is_refused_and_shown(output, form):
    cell = form(output)
    shown = f" (found {shorten(cell)})"
    assert fault_of(read_scored, scored(output=cell)) == (
        "output",
        f"expected a list of 1 response, each {RESPONSE_FORM}",
        shown,
    )
    if output != answers("a", "b"):
        assert fault_of(read_comparison, compared(output=cell)) == (
            "output",
            f"expected a list of 2 responses, each {RESPONSE_FORM}",
            shown,
        )


RESPONSES = [
    *({"answer": {"role": "assistant", "content": content}} for content in (None, 7, ["x"], {"text": "x"})),
    *({"answer": {"role": "assistant"}}, {"answer": {}}, {"answer": None}, {"answer": "x"}, {"answer": ["x"]}),
    *({}, {"content": "x"}, "x", None, 7),
]


@pytest.mark.parametrize("form", [lambda value: value, json.dumps], ids=["native", "json"])
@pytest.mark.parametrize("response", RESPONSES, ids=repr)
def test_a_response_without_text_is_refused_and_shown(response, form):
    kind = 'expected each response as {"answer": {"role": "assistant", "content": text}}'
    good = answers("good")[0]
    for read, row in (
        (read_scored, scored(output=form([response]))),
        (read_comparison, compared(output=form([good, response]))),
        (read_comparison, compared(output=form([response, good]))),
    ):
        assert fault_of(read, row) == ("output", kind, f" (found {response!r})")


def test_equal_responses_can_only_be_a_tie():
    """Trap 11."""
    kind = "equal responses, one of them preferred"
    for preferred in "AB":
        row = compared(output=answers("Yes.", "Yes."), metadata={"preferred": preferred})
        assert fault_of(read_comparison, row) == ("output", kind, " (found 'Yes.')")
    assert read_comparison({**row, "metadata": {"preferred": "tie"}}).preferred == "tie"


def test_half_of_a_surrogate_pair_is_refused_in_responses_as_in_turns():
    """JSON can escape half an emoji. No tokenizer and no Parquet file takes it."""
    kind = "text that is not Unicode, half of a surrogate pair"
    half = '[{"answer": {"role": "assistant", "content": "\\ud83d"}}]'
    assert fault_of(read_scored, scored(output=half)) == ("output", kind, r" (found '\ud83d')")
    half = '[{"role": "user", "content": "\\ud83d"}]'
    assert fault_of(read_scored, scored(input=half)) == ("input", kind, r" (found '\ud83d')")
    whole = '[{"answer": {"role": "assistant", "content": "\\ud83d\\ude42"}}]'
    assert read_scored(scored(output=whole))[1] == "🙂"


@pytest.mark.parametrize("cell", ["[{", '[{"answer": {"role"', "text", "", "[1, 2"])
def test_an_output_that_does_not_parse_is_refused_and_shown(cell):
    column, kind, found = fault_of(read_scored, scored(output=cell))
    assert (column, kind) == ("output", "JSON that does not parse")
    assert cell in found


DIALOGUES = {
    "empty text": " ",
    "JSON that does not parse": '[{"role": "user"',
    "expected a list of messages, JSON text of one, or plain text": [],
    "a message without role or content": [{"role": "user", "content": None}],
    "unknown role, expected one of system, user, assistant, tool": [{"role": "human", "content": "x"}],
    "a message whose content is not text": [{"role": "user", "content": 7}],
}


@pytest.mark.parametrize(("kind", "dialogue"), DIALOGUES.items(), ids=DIALOGUES)
def test_a_broken_dialogue_is_refused_in_the_input_column(kind, dialogue):
    for read, row in ((read_scored, scored(input=dialogue)), (read_comparison, compared(input=dialogue))):
        assert fault_of(read, row)[:2] == ("input", kind)


def test_an_input_of_none_is_refused_and_shown():
    kind = "expected a list of messages, JSON text of one, or plain text"
    assert fault_of(read_scored, scored(input=None)) == ("input", kind, " (found None)")


@pytest.mark.parametrize("reasoning", [7, ["why"], {"why": 1}])
def test_reasoning_that_is_no_text_is_refused_and_shown(reasoning):
    expected = ("reasoning", "expected text", f" (found {reasoning!r})")
    assert fault_of(pointwise_transcript, scored(reasoning=reasoning)) == expected
    assert fault_of(pairwise_transcripts, compared(reasoning=reasoning)) == expected


# ---- transcripts


def test_a_scored_row_becomes_the_judges_prompt_and_the_answer_with_its_label():
    prompt, answer = pointwise_transcript(scored(reasoning="No </think> gap."), "Brevity")
    assert prompt == {"role": "user", "content": pointwise_prompt(DIALOGUE, "Because.", "Brevity")}
    assert answer["role"] == "assistant"
    assert answer["content"] == "<think>\nNo < /think> gap.\n</think>\n\n<score>3</score>"
    assert parse_score(answer["content"]) == 3


@pytest.mark.parametrize(("preferred", "mirrored"), [("A", "B"), ("B", "A"), ("tie", "tie")])
def test_a_comparison_without_reasoning_is_shown_in_both_orders(preferred, mirrored):
    first, second = pairwise_transcripts(compared(metadata={"preferred": preferred}), "Brevity")
    assert first[0]["content"] == pairwise_prompt(DIALOGUE, "Yes.", "No.", "Brevity")
    assert second[0]["content"] == pairwise_prompt(DIALOGUE, "No.", "Yes.", "Brevity")
    assert [parse_preference(shown[1]["content"]) for shown in (first, second)] == [preferred, mirrored]
    assert [[turn["role"] for turn in shown] for shown in (first, second)] == [["user", "assistant"]] * 2


def test_a_comparison_with_reasoning_is_shown_as_it_stands_as_the_reasoning_names_a_and_b():
    (shown,) = pairwise_transcripts(compared(reasoning="B says no."))
    assert shown[0]["content"] == pairwise_prompt(DIALOGUE, "Yes.", "No.")
    assert shown[1]["content"] == "<think>\nB says no.\n</think>\n\n<preference>B</preference>"
