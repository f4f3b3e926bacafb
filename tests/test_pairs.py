"""Pairs in whatever columns: each part of the prompt is read, found again, or named as a fault."""

import itertools
import json

import pyarrow.parquet as pq
import pytest
from shapes import assistant, system, user

from common.conversation import BadRow
from common.pairs import PART_OF_PROMPT, optional_columns, read_pair, split_texts

ASK, YES, NO = user("Name a tool."), assistant("A rake."), assistant("No.")
BETTER, WORSE = [ASK, YES], [ASK, NO]
FRENCH = system("Answer in French.")


def pair(prompt=None, chosen=None, rejected=None, **columns) -> dict:
    row = {"chosen": BETTER if chosen is None else chosen, "rejected": WORSE if rejected is None else rejected}
    return row | ({} if prompt is None else {"prompt": prompt}) | columns


def fault_of(row: dict, **options) -> BadRow:
    with pytest.raises(BadRow) as caught:
        read_pair(row, **options)
    return caught.value


# ---- the prompt in a column of its own

WHOLE = (BETTER, WORSE)
MARKED = "\n\nHuman: Name a tool.\n\nAssistant:"
TALK = [ASK, YES, user("Another?")]
READ = [
    (pair(), WHOLE),
    (pair("Name a tool.", "A rake.", "No."), WHOLE),
    (pair("Name a tool.", [YES], [NO]), WHOLE),
    (pair([ASK], [YES], [NO]), WHOLE),
    (pair([ASK], "A rake.", "No."), WHOLE),
    (pair([ASK], BETTER, WORSE), WHOLE),
    (pair("Name a tool."), WHOLE),
    (pair(" Name a tool.\n"), WHOLE),
    (pair([FRENCH]), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair([FRENCH, ASK]), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair([FRENCH, ASK], [FRENCH, *BETTER], [FRENCH, *WORSE]), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair(TALK, [assistant("A saw.")], [NO]), ([*TALK, assistant("A saw.")], [*TALK, NO])),
    (pair(TALK[:2], [TALK[2], YES], [TALK[2], NO]), ([*TALK, YES], [*TALK, NO])),
    (pair(system="Answer in French."), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair(system=[FRENCH]), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (
        pair(None, [FRENCH, *BETTER], [FRENCH, *WORSE], system="Answer in French."),
        ([FRENCH, *BETTER], [FRENCH, *WORSE]),
    ),
    (pair("Name a tool.", "A rake.", "No.", system="Answer in French."), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair("Q: why?\nA:", "Q: why?\nA: so", "Q: why?\nA: no"), ("Q: why?\nA: so", "Q: why?\nA: no")),
    (pair(MARKED, " A rake.", " No."), (MARKED + " A rake.", MARKED + " No.")),
    (pair("", system=None), WHOLE),
    (pair("Hi", "Hi there!", "Hi."), ([user("Hi"), assistant("Hi there!")], [user("Hi"), assistant("Hi.")])),
    (pair("Hi", "Hi there!", "No."), ([user("Hi"), assistant("Hi there!")], [user("Hi"), assistant("No.")])),
    (pair("The sky is", "The sky is blue.", "The sky is red."), ("The sky is blue.", "The sky is red.")),
    (pair([ASK], [FRENCH, *BETTER], [FRENCH, *WORSE]), ([FRENCH, *BETTER], [FRENCH, *WORSE])),
    (pair("Q: 2+2?\nA:", "4", "5"), ([user("Q: 2+2?\nA:"), assistant("4")], [user("Q: 2+2?\nA:"), assistant("5")])),
    (pair(context=7, query=True, problem=[]), WHOLE),
    (pair([], question="Name a tool.", prompt_id="7f", context="tool"), WHOLE),
]


@pytest.mark.parametrize(("row", "sides"), READ, ids=range(len(READ)))
def test_both_sides_are_whole_whatever_the_columns(row, sides):
    assert read_pair(row) == sides
    encoded = {name: json.dumps(value) if isinstance(value, list) and value else value for name, value in row.items()}
    assert read_pair(encoded) == sides


LACKS = "does not hold the text of the column 'prompt'"
LOOKS = "looks like a part of the prompt, and the conversations do not hold it"
REFUSED = [
    (pair("Another question"), "chosen", LACKS),
    (pair("Name", [FRENCH, YES], [FRENCH, NO]), "chosen", LACKS),
    (pair([user("Another question")]), "chosen", "neither holds nor follows the messages of the column 'prompt'"),
    (pair([FRENCH, user("Another?")]), "chosen", "neither holds nor follows"),
    (pair("Context: rock.\nName a tool."), "chosen", LACKS),  # the conversation holds a part of it alone
    (pair("rake"), "chosen", LACKS),  # the assistant's words are no prompt
    (pair([ASK, YES], "A saw.", "No."), "prompt", "ends with the assistant's turn"),
    (pair(None, [FRENCH, *BETTER], [FRENCH, *WORSE], system="Answer in French. Be kind."), "chosen", "has another"),
    (pair(None, "x", "y", conversations=[{"from": "human", "value": "Name a tool."}]), "conversations", LOOKS),
    (pair(context={"title": ["a"], "sentences": ["b"]}), "context", LOOKS),
    (pair(context=[{"type": "text", "text": "a document"}]), "context", LOOKS),
    (pair(None, [YES], [NO]), "chosen", "no turn of a user: the question is missing"),
    (pair(None, [FRENCH, YES], [FRENCH, NO]), "chosen", "no turn of a user: the question is missing"),
    (pair(None, [system("x"), *BETTER], [system("x"), *WORSE], system="y"), "chosen", "has another system message"),
    (pair(None, "Q: 1", "Q: 2", system="Be kind."), "system", LOOKS),
    *(
        (pair(None, "A rake.", "A saw.", **{name: "Name a tool."}), name, LOOKS)
        for name in ("question", "instruction", "query", "input", "user_prompt", "problem", "Question", "context")
    ),
    (pair(history=[ASK, assistant("Something else.")]), "history", LOOKS),
    (pair("Name a tool.", "A rake.", "\u200b"), "rejected", "empty text"),
    (pair("Name a tool.", [YES], [assistant("\u2060 \ufe0f")]), "rejected", "empty response"),
    (pair(None, "Q: 1", WORSE), "rejected", "one side is plain text and the other a conversation"),
    (pair(None, BETTER, [*BETTER]), "rejected", "chosen and rejected are equal"),
]


@pytest.mark.parametrize(("row", "column", "kind"), REFUSED, ids=range(len(REFUSED)))
def test_what_may_be_of_the_prompt_and_cannot_be_read_is_named(row, column, kind):
    fault = fault_of(row)
    assert fault.column == column and fault.kind.startswith(kind), (fault.column, fault.kind)


def test_columns_that_may_be_of_the_prompt_are_known_by_name():
    may_be = [
        "prompt",
        "Prompt",
        "prompts",
        "system",
        "system_prompt",
        "question",
        "query",
        "instruction_text",
        "input",
    ]
    may_be += ["conversation", "full_prompt", "user", "context", "dialogue", "problem"]
    are_not = ["prompt_id", "question_id", "source", "score_chosen", "num_turns", "query_type", "language", "model"]
    assert [name for name in may_be + are_not if PART_OF_PROMPT.fullmatch(name)] == may_be
    assert optional_columns(["chosen", "prompt", "id"]) == ("margin", "prompt")


# ---- different prompts, and empty answers, in plain text

HH = "\n\nHuman: {}\n\nAssistant: {}"
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
LINES = "{}\n{}"
CUSTOM = "Question: {}\nAnswer: {}"
FORMS = {"hh": HH, "chatml": CHATML, "lines": LINES, "marks": CUSTOM}
QUESTIONS = ["Name a tool.", "Name a fruit please.", "What is the capital of France?", "Nothing"]
DIFFERENT = "chosen and rejected answer different prompts"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("answers", [("A rake.", "No."), ("A rake.", "A saw."), ("A rake\nor\na saw", "A rake")])
def test_texts_of_one_prompt_are_a_pair(form, answers):
    texts = [form.format(QUESTIONS[0], answer) for answer in answers]
    assert read_pair(dict(zip(("chosen", "rejected"), texts))) == tuple(texts)
    prompt, *found = split_texts(*texts)
    assert QUESTIONS[0] in prompt
    assert [text.replace("<|im_end|>", "").strip() for text in found] == list(answers)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(QUESTIONS, 2)))
def test_texts_of_different_prompts_are_no_pair_unless_asked_for(form, one, other):
    row = {"chosen": form.format(one, "A rake\nis one."), "rejected": form.format(other, "No\nidea.")}
    fault = fault_of(row)
    assert (fault.column, fault.kind.startswith(DIFFERENT)) == ("rejected", True)
    assert read_pair(row, "keep") == (row["chosen"], row["rejected"])


def test_dialogues_that_part_before_the_last_question_are_no_pair():
    start = HH.format("Hi", "Hello.")
    row = {"chosen": start + HH.format("Name a tool.", "x"), "rejected": start + HH.format("Name a fruit.", "y")}
    assert fault_of(row).kind.startswith(DIFFERENT)
    talks = [[ASK, YES, user(question), NO] for question in ("Why?", "How?")]
    fault = fault_of(dict(zip(("chosen", "rejected"), talks)))
    assert fault.kind.startswith(DIFFERENT) and "data.different_prompts=keep" in fault.kind
    assert read_pair(dict(zip(("chosen", "rejected"), talks)), "keep") == tuple(talks)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("empty", ["", " ", "\u200b", "\n"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_text_without_an_answer_is_found_on_either_side(form, empty, side):
    texts = {"chosen": form.format(QUESTIONS[0], "A rake."), "rejected": form.format(QUESTIONS[0], "No.")}
    fault = fault_of(texts | {side: form.format(QUESTIONS[0], empty)})
    assert (fault.column, fault.kind) == (side, "empty response")


def test_an_answer_that_the_other_repeats_and_continues_is_an_answer():
    for row in (("Q: why?\nYes.", "Q: why?\nYes. Because."), (HH.format("Q", "Yes"), HH.format("Q", "Yes, so"))):
        assert read_pair(dict(zip(("chosen", "rejected"), row))) == row


# ---- real data


def test_real_pairs_as_text_of_every_form_are_pairs_and_with_others_prompts_are_not(shared_data):
    rows = pq.read_table(shared_data / "bt_train.parquet").to_pylist()
    good = []
    for row in rows:
        try:
            read_pair({name: row[name] for name in ("chosen", "rejected")})
            good.append(row)
        except BadRow as fault:
            assert fault.kind == "empty response"
    assert len(rows) - len(good) == 46
    single = [row for row in good if len(row["chosen"]) == 2][:400]
    for form in FORMS.values():
        wrong = 0
        for row, next_row in zip(single, single[1:]):
            asked, other = row["chosen"][0]["content"], next_row["chosen"][0]["content"]
            sides = [form.format(asked, row[side][-1]["content"]) for side in ("chosen", "rejected")]
            try:
                read_pair(dict(zip(("chosen", "rejected"), sides)))
            except BadRow:
                wrong += 1
            if asked != other:
                sides[1] = form.format(other, row["rejected"][-1]["content"])
                assert fault_of(dict(zip(("chosen", "rejected"), sides))).kind.startswith(DIFFERENT)
        assert wrong <= len(single) // 100, (form, wrong)
