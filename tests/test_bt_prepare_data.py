"""Each public preference set read row by row in its real format; ties, repetitions and noise left out and counted."""

import pytest

from bradley_terry import prepare_data
from common.conversation import DataError

SOURCES = prepare_data.SOURCES


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def helpsteer2(strength: int, prompt: str = "Why?", number: int = 0) -> dict:
    return {
        "split": "train",
        "prompt": prompt,
        "response_1": f"first {number}",
        "response_2": f"second {number}",
        "preference_strength": strength,
        "preference_statement": "@Response 2 is better.",
        "preference_elaboration": None,
    }


def helpsteer3(preference: int) -> dict:
    return {
        "domain": "general",
        "language": "english",
        "context": [user("Hi"), assistant("Hello"), user("Why?")],
        "response1": "first",
        "response2": "second",
        "overall_preference": preference,
        "individual_preference": [{"score": preference, "reasoning": "…", "feedback1": "…", "feedback2": "…"}],
    }


def ultrafeedback(score_chosen: float, score_rejected: float) -> dict:
    return {
        "prompt": "Why?",
        "prompt_id": "0f3a",
        "chosen": [{"content": "Why?", "role": "user"}, {"content": "good", "role": "assistant"}],
        "rejected": [{"content": "Why?", "role": "user"}, {"content": "bad", "role": "assistant"}],
        "messages": [],
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
    }


def hh_rlhf(number: int) -> dict:
    talk = f"\n\nHuman: Name {number} gifts.\n\nAssistant: For whom?\n\nHuman: For Ann: she\n\nlikes tea.\n\nAssistant:"
    return {"chosen": f"{talk} A kettle {number}.", "rejected": f"{talk} No."}


# ---- one row of each source


@pytest.mark.parametrize(("strength", "order"), [(-3, ("first 0", "second 0")), (2, ("second 0", "first 0"))])
def test_helpsteer2_prefers_the_second_response_where_the_strength_is_positive(strength, order):
    preference = prepare_data.from_helpsteer2(helpsteer2(strength))
    assert preference.chosen == [user("Why?"), assistant(order[0])]
    assert preference.rejected == [user("Why?"), assistant(order[1])]
    assert preference.margin == abs(strength)


def test_helpsteer2_prompts_of_several_turns_are_taken_apart_at_their_marks():
    prompt = "Hi\n\nthere\n<extra_id_1>Assistant\nHello\n1. x\n\n<extra_id_1>User\nWhy?"
    preference = prepare_data.from_helpsteer2(helpsteer2(1, prompt))
    assert preference.chosen == [user("Hi\n\nthere"), assistant("Hello\n1. x"), user("Why?"), assistant("second 0")]


@pytest.mark.parametrize(("strength", "order"), [(-1, ("first", "second")), (3, ("second", "first"))])
def test_helpsteer3_prefers_the_second_response_where_the_preference_is_positive(strength, order):
    preference = prepare_data.from_helpsteer3(helpsteer3(strength))
    context = [user("Hi"), assistant("Hello"), user("Why?")]
    assert preference == ([*context, assistant(order[0])], [*context, assistant(order[1])], abs(strength))


def test_ultrafeedbacks_margin_is_the_difference_of_the_scores():
    row = ultrafeedback(8.5, 6.0)
    assert prepare_data.from_ultrafeedback(row) == (row["chosen"], row["rejected"], 2.5)


def test_skywork_pairs_are_taken_as_they_are_and_have_no_margin():
    row = {"chosen": [user("Why?"), assistant("good")], "rejected": [user("Why?"), assistant("bad")], "source": "x"}
    assert prepare_data.from_skywork(row) == (row["chosen"], row["rejected"], None)


def test_hh_rlhf_transcripts_become_turns():
    talk = [user("Name 2 gifts."), assistant("For whom?"), user("For Ann: she\n\nlikes tea.")]
    preference = prepare_data.from_hh_rlhf(hh_rlhf(2))
    assert preference == ([*talk, assistant("A kettle 2.")], [*talk, assistant("No.")], None)


TIES = {"helpsteer2": helpsteer2(0), "helpsteer3": helpsteer3(0), "ultrafeedback": ultrafeedback(7, 7)}


@pytest.mark.parametrize(("source", "row"), TIES.items(), ids=TIES)
def test_a_tie_is_counted_and_never_written_as_a_pair(source, row):
    """Trap 11."""
    assert SOURCES[source].convert(row) is None
    assert prepare_data.convert_rows([row, row], SOURCES[source].convert) == ([], {"ties": 2})


def test_repeated_equal_and_empty_pairs_are_left_out_and_counted():
    def skywork(chosen, rejected):
        return {"chosen": [user("Why?"), assistant(chosen)], "rejected": [user("Why?"), assistant(rejected)]}

    answers = [("good", "bad"), ("same", "same"), ("good", "bad"), ("good", " "), ("a", "b")]
    rows = [skywork(*pair) for pair in answers]
    pairs, left_out = prepare_data.convert_rows(rows, prepare_data.from_skywork)
    assert pairs == [{**rows[0], "margin": 0.0}, {**rows[4], "margin": 0.0}]
    assert left_out == {
        "repeated pairs": 1,
        "column 'rejected': chosen and rejected are equal": 1,
        "column 'rejected': empty response": 1,
    }


def test_rows_of_another_source_are_refused_with_their_columns():
    with pytest.raises(DataError, match=r"row 0 has no column 'context'; it has \['chosen', .*Is --source right\?"):
        prepare_data.convert_rows([ultrafeedback(8, 7)], prepare_data.from_helpsteer3)


def test_hh_rlhf_reading_conversations_is_refused_and_does_not_break_off():
    with pytest.raises(DataError, match="Is --source right"):
        prepare_data.convert_rows([ultrafeedback(8, 7)], prepare_data.from_hh_rlhf)


def test_longer_wins_counts_characters_of_the_answers_and_equal_lengths_one_half():
    answers = [("long", "no"), ("no", "long"), ("same", "size"), ("longer", "no")]
    rows = [{"chosen": [user("x" * 99), assistant(left)], "rejected": [assistant(right)]} for left, right in answers]
    assert prepare_data.longer_wins(rows) == (1 + 0 + 0.5 + 1) / 4
    assert prepare_data.longer_wins([{"chosen": "Q: longer", "rejected": "Q: no"}]) == 1.0
