"""A judge's prompts once they are written: measured by the tokenizer, told apart by a digest; a rubric from a file."""

import re

import pytest
from shapes import CHATML, NO_THINKING, QWEN3_THINKING, SHAPES, make_tokenizer, system, user

from common.conversation import DataError
from common.judging.prompts import digest_prompts, measure_rows
from common.judging.rubric import read_rubric

LONG = 10**6
CHATML_TOKENIZER = make_tokenizer(SHAPES["chatml"])


def written(number: int, text: str = "Score it.", **cells) -> dict:
    return {"prompt": [user(text)], "label": number % 5, "source": f"a.parquet row {number}", **cells}


def refused(*arguments) -> list[str]:
    with pytest.raises(DataError) as caught:
        measure_rows(*arguments)
    return str(caught.value).splitlines()


# ---- measuring

BEGUN = {name: (shape, shape.template, "") for name, shape in SHAPES.items() if not shape.options}
BEGUN["a template that opens the reasoning"] = (SHAPES["qwen3"], QWEN3_THINKING, "<think>\n")
CLOSES = CHATML.replace("assistant\\n", "assistant\\n" + NO_THINKING)
BEGUN["a template that closes it"] = (SHAPES["chatml"], CLOSES, NO_THINKING)


@pytest.mark.parametrize(("shape", "template", "begun"), BEGUN.values(), ids=BEGUN)
def test_tokens_are_the_templates_and_what_it_began_of_the_answer_is_noted(shape, template, begun):
    """Traps 2, 18 and 23: also where the prompt's own text ends as such a template would."""
    tokenizer = make_tokenizer(shape, chat_template=template)
    rows = [written(3), written(0, "Score it.<think>\n")]
    measured, left_out = measure_rows(rows, tokenizer, LONG, False)
    for row, found in zip(rows, measured, strict=True):
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert found == {**row, "tokens": len(ids), "begun": begun}
    assert left_out == {}


def test_a_prompt_too_long_is_an_error_with_the_remedy_or_left_out_and_counted():
    rows = [written(1, "So. " * 50), written(2), written(3, "So. " * 99)]
    measured, _ = measure_rows(rows, CHATML_TOKENIZER, LONG, False)
    longer, short, longest = (row["tokens"] for row in measured)
    assert refused(rows, CHATML_TOKENIZER, short, False) == [
        f"2 of 3 prompts are longer than data.max_prompt_length={short} tokens:",
        f"  a.parquet row 3: {longest} tokens",
        f"  a.parquet row 1: {longer} tokens",
        "Raise data.max_prompt_length (--max-prompt-length) if the model can take more, or leave them out:",
        "data.filter_overlong_prompts=True (--filter-overlong-prompts).",
    ]
    assert measure_rows(rows, CHATML_TOKENIZER, longer, True) == (
        measured[:2],
        {f"prompt of more than {longer} tokens": 1},
    )
    assert measure_rows(rows, CHATML_TOKENIZER, longest, False) == (measured, {})
    assert refused(rows, CHATML_TOKENIZER, 9, True) == ["no row is left: 3 x prompt of more than 9 tokens"]


def test_a_row_that_the_template_refuses_is_an_error_by_row_or_dropped_and_counted():
    gemma = make_tokenizer(SHAPES["gemma"])
    rows = [written(3), written(4, prompt=[system("Judge."), user("Score it.")])]
    fault = "the model's chat template refuses the conversation: user and assistant take turns, there is no place"
    fault += " for: system"
    assert refused(rows, gemma, LONG, False)[1] == f"  a.parquet row 4, column 'prompt': {fault}"
    kept, left_out = measure_rows(rows, gemma, LONG, False, "drop")
    assert [row["source"] for row in kept] == ["a.parquet row 3"]
    assert left_out == {f"column 'prompt': {fault}": 1}


# ---- told apart


def test_the_digest_tells_prompts_labels_strengths_and_order_apart_and_nothing_else():
    rows = [written(1), written(2, "Score that.")]
    others = [rows[::-1], rows[:1], [*rows, rows[1]], [rows[0], {**rows[1], "label": 3}], [], [rows[0], written(2)]]
    others.append([rows[0], {**rows[1], "strength": 2.0}])
    assert digest_prompts(rows) == digest_prompts(
        [{**row, "source": "b", "tokens": 9, "strength": None} for row in rows]
    )
    assert len({digest_prompts(found) for found in [rows, *others]}) == 8
    assert digest_prompts([{"prompt": [user("x")], "label": 3}]) == "21ace57eb1f43f03"


# ---- a rubric in a file


def test_a_rubric_is_the_text_of_its_file(tmp_path):
    (tmp_path / "mine.txt").write_text("\n Is it short? 🙂\n4: yes\n\n", encoding="utf-8")
    assert read_rubric(tmp_path / "mine.txt") == "Is it short? 🙂\n4: yes"
    assert read_rubric(None) is None


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_rubric_that_is_missing_or_empty_is_an_error(tmp_path, text):
    path = tmp_path / "mine.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: no such file, or nothing in it"):
        read_rubric(path)
