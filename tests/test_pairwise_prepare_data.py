"""Compared responses turned into a judge's prompts: each public set in its real form, no label guessed or favoured."""

import json
from collections import Counter
from functools import partial
from itertools import permutations

import pytest
from shapes import assistant, user

from common.conversation import DataError
from common.demo.world import PREFERENCE_RUBRIC, pairwise_rows
from generative_pairwise import prepare_data
from generative_pairwise.prompt import RUBRIC, ask

NAN, INFINITE = float("nan"), float("inf")


TALK = [user("Hi"), assistant("Hello"), user("Why?")]


def helpsteer2(strength: object, question: str = "Hi\n\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?") -> dict:
    answers = {"prompt": question, "response_1": "first", "response_2": "the second"}
    stated = {"preference_statement": "@Response 2 is better.", "preference_elaboration": None}
    return {"split": "train", **answers, "preference_strength": strength, **stated}


def helpsteer3(preference: object, context: list[dict] = TALK) -> dict:
    answers = {"context": context, "response1": "first", "response2": "the second"}
    people = [{"score": preference, "reasoning": "…", "feedback1": "…", "feedback2": "…"}]
    return {**answers, "overall_preference": preference, "individual_preference": people, "language": "english"}


def sides(chosen: object, rejected: object) -> dict:
    return {"chosen": chosen, "rejected": rejected, "source": "magpie"}


def skywork(chosen: str = "good", rejected: str = "worse", question: str = "Why?") -> dict:
    return sides([user(question), assistant(chosen)], [user(question), assistant(rejected)])


def ultrafeedback(chosen: object, rejected: object, answer: str = "worse", question: str = "Why?") -> dict:
    pair = skywork("good", answer, question)
    more = {"prompt": question, "prompt_id": "0f3a", "messages": pair["chosen"]}
    return {**pair, **more, "score_chosen": chosen, "score_rejected": rejected}


def hh_rlhf(chosen: str = "good", rejected: str = "worse", question: str = "Why?") -> dict:
    talk = f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": f"{talk} {chosen}", "rejected": f"{talk} {rejected}"}


def pairwise(preferred: object = "B", first: str = "Yes.", second: str = "No, never.", **more) -> dict:
    output = [{"answer": {**assistant(text), "label": {"is_preferred": None}}} for text in (first, second)]
    return {"input": "Why?", "output": output, "metadata": {"preferred": preferred, **more}, "unique_id": "row"}


def convert(rows: list[dict], source: str, rubric: str | None = None, on_bad_row: str = "error"):
    return prepare_data.convert_comparisons(rows, source, rubric, on_bad_row)


def orders(row: dict) -> tuple[str, str]:
    """Return both prompts, after a look at their form."""
    assert all([turn["role"] for turn in row[name]] == ["user"] for name in ("prompt", "prompt_swapped"))
    return row["prompt"][0]["content"], row["prompt_swapped"][0]["content"]


def both(dialogue: list[dict], first: str, second: str, rubric: str = RUBRIC) -> tuple[str, str]:
    texts = (ask(dialogue, *shown, rubric)[0]["content"] for shown in ((first, second), (second, first)))
    return tuple(texts)


def labelled(row: dict) -> tuple:
    return row["label"], row["strength"], row["longer"]


# ---- one row of each source


@pytest.mark.parametrize(("source", "make"), [("helpsteer2", helpsteer2), ("helpsteer3", helpsteer3)])
@pytest.mark.parametrize(("strength", "label"), [(-3, "A"), (-1, "A"), (0, "tie"), (1, "B"), (3.0, "B")])
def test_helpsteer_prefers_the_second_response_where_the_strength_is_positive(source, make, strength, label):
    (row,), left_out = convert([make(strength)], source)
    assert orders(row) == both(TALK, "first", "the second") and row["input"] == TALK
    assert labelled(row) == (label, abs(strength) or None, "B") and row["data_source"] == source and left_out == {}


def test_ultrafeedbacks_strength_is_the_difference_of_the_scores_and_equal_ones_are_ties():
    rows = [ultrafeedback(8.5, 6.0), ultrafeedback(8.5, 6.0, question="How?"), ultrafeedback(7, 7.0, question="Who?")]
    rows, _ = convert(rows, "ultrafeedback")
    assert [labelled(row) for row in rows] == [("A", 2.5, "B"), ("B", 2.5, "A"), ("tie", None, "B")]
    assert orders(rows[0]) == both([user("Why?")], "good", "worse")
    assert orders(rows[1]) == both([user("How?")], "worse", "good")  # turned round, as every second pair


@pytest.mark.parametrize(("source", "make", "talk"), [("skywork", skywork, []), ("hh-rlhf", hh_rlhf, TALK[:2])])
def test_chosen_and_rejected_have_no_strength_and_every_second_pair_is_turned_round(source, make, talk):
    rows, _ = convert([make(question="Why\n\nthat?"), make(question="How?")], source)
    assert [labelled(row) for row in rows] == [("A", None, "B"), ("B", None, "A")]
    assert orders(rows[0]) == both([*talk, user("Why\n\nthat?")], "good", "worse")
    assert orders(rows[1]) == both([*talk, user("How?")], "worse", "good")


@pytest.mark.parametrize("form", [lambda cell: cell, json.dumps], ids=["native", "json"])
def test_labelled_rows_are_taken_as_they_are_their_strength_too(form):
    """Trap 24."""
    row = pairwise("B", preference_strength=2, judge="human")
    row |= {name: form(row[name]) for name in ("output", "metadata")}
    (made,), _ = convert([row], "pairwise")
    assert orders(made) == both([user("Why?")], "Yes.", "No, never.") and labelled(made) == ("B", 2.0, "B")
    (made,), _ = convert([pairwise("tie", "Equal.", "Equal.")], "pairwise")
    assert labelled(made) == ("tie", None, "tie")


def test_the_demo_has_its_own_rubric():
    made = pairwise_rows("train", 40, 3)
    for made_row, row in zip(made, convert(made, "demo")[0], strict=True):
        texts = [answer["answer"]["content"] for answer in made_row["output"]]
        assert orders(row) == both(made_row["input"], *texts, PREFERENCE_RUBRIC)
        assert row["label"] == made_row["metadata"]["preferred"] and row["strength"] is None


def test_a_rubric_of_ones_own_takes_the_place_of_the_sources():
    for source, row in {"skywork": skywork(), "demo": pairwise_rows("val", 1, 0)[0]}.items():
        (made,), _ = convert([row], source, "Which is shorter?")
        assert all("\n\nWhich is shorter?\n\n<dialogue>" in text for text in orders(made))


# ---- either letter is right equally often

CHOSEN_FIRST = {"skywork": skywork, "hh-rlhf": hh_rlhf, "ultrafeedback": partial(ultrafeedback, 8, 6)}


@pytest.mark.parametrize("source", CHOSEN_FIRST)
@pytest.mark.parametrize("between", ["nothing", "a repetition", "a bad row"])
def test_a_is_as_often_right_as_b_whatever_is_left_out_between(source, between):
    rows = []
    for number in range(20):
        row = CHOSEN_FIRST[source](question=f"question {number}")
        bad = {**row, "rejected": CHOSEN_FIRST[source](question="another")["rejected"]}
        rows += {"nothing": [row], "a repetition": [row, row], "a bad row": [row, bad]}[between]
    made, left_out = convert(rows, source, None, "drop")
    assert Counter(row["label"] for row in made) == {"A": 10, "B": 10} and left_out.total() == len(rows) - 20


# ---- what is no label, and what is no pair

NO_NUMBERS = (None, NAN, INFINITE, -INFINITE, "2", "", "tie", True, False)
FAULTS = {
    ("helpsteer2", "preference_strength"): [helpsteer2(value) for value in (*NO_NUMBERS, 4, -3.5)],
    ("helpsteer3", "overall_preference"): [helpsteer3(value) for value in (*NO_NUMBERS, -4, 3.5)],
    ("ultrafeedback", "score_chosen"): [ultrafeedback(value, other) for value in NO_NUMBERS for other in (8, None)],
    ("ultrafeedback", "score_rejected"): [ultrafeedback(8, value) for value in NO_NUMBERS],
    ("pairwise", "metadata"): [
        *(pairwise(value) for value in (None, "C", "a", "Tie", "", 0, ["A"])),
        *(pairwise("A", preference_strength=value) for value in (NAN, -1, True, "2")),
        *({**pairwise(), "metadata": value} for value in (None, {}, [], '{"preference_strength": 2}')),
    ],
}
GOOD = {"helpsteer2": helpsteer2(1, "How?"), "helpsteer3": helpsteer3(-2), "pairwise": pairwise("A")}
GOOD["ultrafeedback"] = ultrafeedback(8, 6)


@pytest.mark.parametrize(("source", "column", "bad"), [(*where, bad) for where, rows in FAULTS.items() for bad in rows])
def test_a_label_that_is_missing_or_unknown_is_a_fault_of_its_row_and_never_a_tie(source, column, bad):
    """Trap 16."""
    with pytest.raises(DataError, match=rf"1 of 2 rows cannot be used:\n  row 1, column '{column}': .*\(found "):
        convert([GOOD[source], bad], source)
    (kept,), left_out = convert([GOOD[source], bad], source, None, "drop")
    assert kept["label"] in "AB" and left_out.total() == 1


NO_PAIRS = {
    "another history": ("skywork", sides([*TALK, assistant("good")], [user("How?"), assistant("worse")])),
    "another history in a transcript": ("hh-rlhf", {**hh_rlhf(), "rejected": hh_rlhf(question="How?")["rejected"]}),
    "no dialogue": ("skywork", sides([assistant("good")], [assistant("worse")])),
    "no dialogue in a transcript": ("hh-rlhf", sides("\n\nAssistant: good", "\n\nAssistant: worse")),
    "no turn in a transcript": ("hh-rlhf", sides("good", "worse")),
    "no context": ("helpsteer3", helpsteer3(2, [])),
    "two questions, no answer": ("skywork", sides([*TALK, user("good")], [*TALK, user("worse")])),
    "an answer beside a question": ("skywork", sides([*TALK, assistant("good")], [*TALK, user("worse")])),
    "a transcript that ends with the human": ("hh-rlhf", hh_rlhf("good\n\nHuman: Why?", "good\n\nHuman: How?")),
    "equal responses": ("ultrafeedback", ultrafeedback(8, 6, "good")),
    "no prompt": ("helpsteer2", helpsteer2(1, None)),
    "a prompt that is no text": ("helpsteer2", helpsteer2(1, TALK)),
    "no transcript": ("hh-rlhf", {**hh_rlhf(), "chosen": None}),
    "a transcript that is no text": ("hh-rlhf", {**hh_rlhf(), "rejected": TALK}),
}


@pytest.mark.parametrize("kind", NO_PAIRS)
def test_what_is_no_pair_of_responses_to_one_dialogue_is_refused(kind):
    """Trap 11."""
    source, bad = NO_PAIRS[kind]
    good = {**GOOD, "skywork": skywork(), "hh-rlhf": hh_rlhf()}[source]
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used:\n  row 1, column '\w+': "):
        convert([good, bad], source)
    made, left_out = convert([good, bad], source, None, "drop")
    assert len(made) == 1 and left_out.total() == 1


def test_without_a_usable_row_all_that_was_left_out_is_said():
    faults = "2 x column 'preference_strength': expected a number; 1 x .*': expected a strength from -3 to 3"
    with pytest.raises(DataError, match=f"no usable row: {faults}"):
        convert([helpsteer2(None), helpsteer2(NAN), helpsteer2(4)], "helpsteer2", None, "drop")


def test_rows_of_another_source_are_refused_with_their_columns():
    message = r"row 0 has no column 'overall_preference'; it has \['chosen', .*Is --source right\?"
    with pytest.raises(DataError, match=message):
        convert([ultrafeedback(8, 7)], "helpsteer3", None, "drop")
    rows = {**GOOD, "skywork": skywork(), "hh-rlhf": hh_rlhf()}
    for source, other in permutations(rows, 2):
        if (source, other) != ("skywork", "ultrafeedback"):  # chosen and rejected, and more
            with pytest.raises(DataError, match="^(row 0 has no|1 of 1 rows cannot be used:\n  row 0,) column '"):
                convert([rows[other]], source)


# ---- repetitions and disagreement


def test_the_first_of_a_pair_stays_in_whichever_order_it_is_repeated():
    turned = pairwise("B", "No, never.", "Yes.", preference_strength=3)
    rows = [pairwise("A", preference_strength=1), turned, pairwise("A"), pairwise("A", "Yes.", "Maybe.")]
    made, left_out = convert(rows, "pairwise")
    assert left_out == {"repeated pairs with the same label": 2} and len(made) == 2
    assert orders(made[0]) == both([user("Why?")], "Yes.", "No, never.") and labelled(made[0]) == ("A", 1.0, "B")
    made, left_out = convert([skywork(), skywork()], "skywork")  # the second would be turned round
    assert left_out == {"repeated pairs with the same label": 1} and len(made) == 1


def test_labels_that_contradict_each_other_are_kept_and_said():
    rows = [pairwise("A"), pairwise("A", "No, never.", "Yes."), pairwise("tie"), pairwise("A", "Yes.", "Maybe.")]
    made, left_out = convert(rows, "pairwise")
    assert [row["label"] for row in made] == ["A", "A", "tie", "A"] and left_out == {}
    assert prepare_data.describe(made).splitlines()[-1] == (
        "  annotators disagree on 1 of the pairs: each of their labels is a row"
    )
    assert "disagree" not in prepare_data.describe(made[2:])


def test_the_description_says_how_labels_are_spread_and_what_a_judge_gets_without_reading():
    answers = [("A", "longer", "short"), ("B", "one", "three"), ("A", "two", "seven")]  # right, right, wrong
    answers += [("B", "equal", "sized"), ("tie", "equal", "sizes")]  # wrong, right
    rows, _ = convert([pairwise(*answer) for answer in answers], "pairwise")
    assert prepare_data.describe(rows).splitlines() == [
        "5 pairs, each in both orders; labels A: 2, B: 2, tie: 1",
        "  always tie: 20.0% right in both orders",
        "  always the longer response: 60.0% right in both orders",
    ]
