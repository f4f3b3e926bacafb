"""Both judges' answers read back, by one rule: what is no well-formed verdict is None, for either parser.

What each judge's parser makes of what its `write` wrote is in test_pointwise_prompt.py and test_pairwise_prompt.py, and
of more than a thousand traps in the tests of its reward.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise

TAGS = {pointwise: "score", pairwise: "preference"}
OTHER = {pointwise: pairwise, pairwise: pointwise}
each_judge = pytest.mark.parametrize("judge", TAGS, ids=["pointwise", "pairwise"])


def verdict(judge, value: object) -> str:
    return f"<{TAGS[judge]}>{value}</{TAGS[judge]}>"


# ---- what is written


def test_the_bytes_of_written_answers():
    assert pointwise.write(3) == "<think>\n\n</think>\n\n<score>3</score>"
    assert pointwise.write(0, " It says 4.\n") == "<think>\nIt says 4.\n</think>\n\n<score>0</score>"
    assert pairwise.write("tie", "a </think>") == "<think>\na < /think>\n</think>\n\n<preference>tie</preference>"


@pytest.mark.parametrize("score", [5, -1, "3", None])
def test_a_score_that_could_not_be_read_back_is_not_written(score):
    with pytest.raises(ValueError, match="score is"):
        pointwise.write(score)


@pytest.mark.parametrize("preference", ["C", "a", None])
def test_a_preference_that_could_not_be_read_back_is_not_written(preference):
    with pytest.raises(ValueError, match="preference is"):
        pairwise.write(preference)


@each_judge
def test_no_judge_reads_a_verdict_of_the_other(judge):
    for value in judge.VERDICTS:
        assert judge.parse(judge.write(value, "why")) == value
        assert OTHER[judge].parse(judge.write(value, "why")) is None


# ---- what is read

MUST_PARSE = {
    "as Qwen3 breaks the lines": "<think>\nwhy\n</think>\n\n{}",
    "no line breaks": "<think>why</think>{}",
    "<think> put into the prompt by the template": "why, at length\n\n</think>\n\n{}",
    "<think> and a line break in the prompt": "\nwhy\n</think>\n\n{}",
    "an empty think block": "<think>\n\n</think>\n\n{}",
    "an empty think block by the template, then the reasoning": "<think>\n\n</think>\n\n<think>\nwhy\n</think>\n\n{}",
    "its end alone, then the reasoning": "</think><think>why</think>{}",
    "two empty think blocks": "<think></think> <think></think> {}",
    "blanks around": " \n<think>\nwhy\n</think>\n{}\n ",
    "the reasoning quotes verdicts": "<think>not <score>0</score> nor <preference>tie</preference>: </score></think>{}",
    "other tags in the reasoning": "<think>< /think> <THINK> </thinks> <b>bold</b></think>{}",
    "a long reasoning": "<think>" + "yes or no? " * 9_000 + "</think>{}",
}


@each_judge
@pytest.mark.parametrize("answer", MUST_PARSE.values(), ids=MUST_PARSE)
def test_well_formed_answers_are_read(judge, answer):
    """Trap 23."""
    for value in judge.VERDICTS:
        assert judge.parse(answer.format(verdict(judge, value))) == value


MISPLACED = [
    *("{}", "why {}", "<think>{}", "<think>why\n{}", "<think>{}</think>", "<think>why {}</think>\n\n", "{{}}"),
    *("<think>why</think>{}{}", "<think>why</think>{} {}", "<think>why</think>\n{}\n<think>again</think>"),
    *("<think>why</think><think>again</think>{}", "<think><think>why</think>{}", "<think>why</think></think>{}"),
    *("<think>why</think>{}</think>", "{}<think>why</think>", "{}\n<think>why</think>\n{}"),
    *("Sure! <think>why</think>{}", "<think>why</think>{}.", "<think>why</think>{} because it is good"),
    *("<think>why</think>Score: {}", "<think>why</think>**{}**", "<think>why</think>`{}`"),
    *("<think>why</think>{}<|im_end|>", "<think>why</think>{}</s>", "<Think>why</Think>{}", "<THINK>why</THINK>{}"),
    *("<think>why</ think>{}", "<think>why<think>{}", "<think >why</think >{}", "<thinking>why</thinking>{}"),
    *('<think a="b">why</think>{}<score></score>', "< think>why< /think>{}", "<think>why</think><answer>{}</answer>"),
    *("<think></think><think>why{}", "<think></think>why<think>why</think>{}", "<think></think>{}<think>why</think>"),
    *("<think></think>why</think>{}", "<think></think><think></think><think>why</think>{}", "<think></think>why\n{}"),
    *("<think>.</think><think>why</think>{}", "<think></think><think>why</think>{}</think>", "<think></think>. {}"),
    *("<think></think><think>a<think>b</think>{}", "<think></think><think>a</think>b</think>{}", "a</think><think>{}"),
    *("<think>why</think>\u200b{}", "<think>why</think>\ufeff{}", "\ufeff<think>why</think>{}"),
]


@each_judge
@pytest.mark.parametrize("shape", MISPLACED)
def test_a_verdict_that_is_not_in_its_place_is_none(judge, shape):
    """Traps 14 to 16."""
    for value in judge.VERDICTS:
        assert judge.parse(shape.replace("{}", verdict(judge, value))) is None


@each_judge
def test_echoes_of_the_prompt_are_none_also_with_an_answer_behind_them(judge):
    """Trap 14."""
    responses = ["Yes.", "No."][: 2 if judge is pairwise else 1]
    (turn,) = judge.ask([{"role": "user", "content": "Why? Score from 0 to 4, or A."}], *responses)
    for echo in (turn["content"], turn["content"].splitlines()[-1]):
        for value in judge.VERDICTS:
            for text in (echo, f"{echo}\n{judge.write(value, 'why')}", f"{echo} {verdict(judge, value)}"):
                assert judge.parse(text) is None


def by_hand(judge, text: str) -> object:
    """The rule once more, from the end: one of the verdicts, one `</think>` before it, `<think>` first or nowhere.

    Not before the empty think block, or its end, that a template writes in front of another reasoning.
    """
    for empty in ("<think></think>", "</think>"):
        if "".join(text.split()).startswith(f"{empty}<think>"):
            text = text.partition("</think>")[2]
            break
    for value in judge.VERDICTS:
        before = text.rstrip().removesuffix(verdict(judge, value))
        reasoning = before.rstrip().removesuffix("</think>")
        if before != text.rstrip() and reasoning != before.rstrip() and "</think>" not in reasoning:
            opened = reasoning.count("<think>")
            if opened == 0 or (opened == 1 and reasoning.lstrip().startswith("<think>")):
                return value
    return None


FRAGMENTS = ["<think>", "</think>", "<score>", "</score>", "<score>4</score>", "<score>0</score>", "<preference>"]
FRAGMENTS += ["</preference>", "<preference>A</preference>", "<preference>tie</preference>", "<think>\n", "</s>"]
FRAGMENTS += ["\n</think>\n\n", "<|im_end|>", "[INST]", "3", "A", "tie", " ", "\n", "<", ">", "/", "think>", "score>"]
ANSWERS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=10).map("".join)
ALMOST = st.tuples(
    st.sampled_from(["", "<think>", " \n<think>\n", "x<think>"]),
    st.one_of(st.just("why"), ANSWERS),
    st.sampled_from(["</think>", "\n</think>\n\n", "</think> ", ""]),
    st.sampled_from(["<score>4</score>", "<score>5</score>", "<preference>B</preference>", "<preference>C", ""]),
    st.sampled_from(["", "\n", " <", "<score>4</score>"]),
).map("".join)


@each_judge
@settings(max_examples=500)
@given(st.one_of(ANSWERS, ALMOST))
def test_a_verdict_is_read_exactly_where_the_rule_says_so(judge, text):
    """Trap 14."""
    assert judge.parse(text) == by_hand(judge, text)
