"""Between which tags a judge thinks: vocabularies and prompts of other families, and what an unread answer is told."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from shapes import SHAPES, make_tokenizer, user
from tokenizers import normalizers
from transformers import AutoTokenizer

from common.conversation import DataError
from common.generation import Answer
from common.grpo.preflight import check_vocabulary
from common.judging.grader import reasoning_of
from common.judging.votes import fault_of
from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise

each_judge = pytest.mark.parametrize("judge", [pointwise, pairwise], ids=["pointwise", "pairwise"])


# ---- vocabularies


def test_a_vocabulary_that_calls_think_special_is_refused_with_a_remedy_that_works(tmp_path):
    right = pointwise.write(3, "because")
    check_vocabulary(make_tokenizer(SHAPES["chatml"]), right, pointwise.parse)
    tokenizer = make_tokenizer(SHAPES["chatml"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False)
    with pytest.raises(DataError, match=r"It calls </think>, <think> special.*In a copy of the model, set"):
        check_vocabulary(tokenizer, right, pointwise.parse)

    tokenizer.save_pretrained(tmp_path)
    for name, change in {"tokenizer.json": not_special, "tokenizer_config.json": not_listed}.items():
        settings = json.loads((tmp_path / name).read_text())
        change(settings)
        (tmp_path / name).write_text(json.dumps(settings))
    check_vocabulary(AutoTokenizer.from_pretrained(tmp_path), right, pointwise.parse)


def not_special(settings: dict) -> None:
    for token in settings["added_tokens"]:
        token["special"] &= "think" not in token["content"]


def not_listed(settings: dict) -> None:
    settings["extra_special_tokens"] = []


def test_a_vocabulary_that_loses_other_letters_is_refused():
    tokenizer = make_tokenizer(SHAPES["chatml"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    check_vocabulary(tokenizer, pointwise.write(3, "because"), pointwise.parse)
    with pytest.raises(DataError, match="<preference>a</preference>'. Choose another model"):
        check_vocabulary(tokenizer, pairwise.write("A", "because"), pairwise.parse)


# ---- an answer without a verdict


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("<score>3</score>", "no reasoning came"),
        ("", "no reasoning came"),
        ("<think>why</think>", "no verdict was written"),
        ("<think>why</think>\nIn short: good.\n<score>3</score>", "other text than one verdict stands behind"),
        ("<think>why</think><score>3</score><score>4</score>", "other text than one verdict stands behind"),
        ("[THINK]why[/THINK]<score>3</score>", "other text than one verdict stands behind"),
        ("<think>a<think>b</think><score>3</score>", "more than once"),
        ("<think>a</think>b</think><score>3</score>", "more than once"),
        ("So <think>a</think><score>3</score>", "more than once"),
        ("<think>a</think>\n<think>", "more than once"),
    ],
)
def test_an_answer_without_a_verdict_says_why(answer, fault):
    assert pointwise.parse(answer) is None
    assert fault in fault_of(Answer(answer, False))
    assert fault_of(Answer(answer, True)) == "its tokens ran out: raise max_new_tokens (data.max_response_length)"


@pytest.mark.parametrize(
    ("answer", "reasoning"),
    [
        ("<think>\nwhy\n</think>\n\n<score>3</score>", "why"),
        (" why </think><score>3</score>", "why"),
        ("<think>\n\n</think>\n\n<score>3</score>", ""),
        ("<think>\n\n</think>\n\n<think>why</think>\n<score>3</score>", "why"),
        ("</think><think>why</think>\n<score>3</score>", "why"),
        ("<think>it says < think> and <b></think><score>3</score>", "it says < think> and <b>"),
        ("[THINK]why[/THINK]<score>3</score>", "why"),
        ("<|channel>thought\nwhy<channel|><score>3</score>", "why"),
        ("<score>3</score>", ""),
    ],
)
def test_the_reasoning_of_an_answer_is_what_stands_before_its_verdict(answer, reasoning):
    assert reasoning_of(Answer(answer, False)) == reasoning


# ---- edits of prompt.py that the READMEs offer


def edited(judge, tmp_path, monkeypatch, *changes: tuple[str, str]):
    """The judge's prompt.py with each text replaced by another wherever it stands."""
    text = Path(judge.__file__).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "prompt.py").write_text(text)
    spec = importlib.util.spec_from_file_location("own_prompt", tmp_path / "prompt.py")
    own = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_prompt", own)  # a dataclass looks its names up there
    spec.loader.exec_module(own)
    return own


def tag_of(judge) -> str:
    return "score" if judge is pointwise else "preference"


@each_judge
def test_a_judge_of_another_family_thinks_between_its_own_tags(judge, tmp_path, monkeypatch):
    """Replace <think> and </think> everywhere in prompt.py."""
    own = edited(judge, tmp_path, monkeypatch, ("<think>", "[THINK]"), ("</think>", "[/THINK]"))
    responses = ["[THINK] [/think]"] * (1 if judge is pointwise else 2)
    (turn,) = own.ask([user("[/THINK]<think>")], *responses)
    assert turn["content"].count("[THINK]") == turn["content"].count("[/THINK]") == 1
    assert turn["content"].count("[ THINK] [ /think]") == len(responses) and "[ /THINK]< think>" in turn["content"]
    for value in own.VERDICTS:
        answer = own.write(value, "why [/THINK]")
        assert answer.startswith("[THINK]\nwhy [ /THINK]\n[/THINK]\n\n")
        assert own.parse(answer) == own.parse("[THINK]\n[/THINK]\n" + answer) == value
        assert own.parse(judge.write(value, "why")) is None


@each_judge
def test_a_judge_may_be_let_write_a_summary_before_its_verdict(judge, tmp_path, monkeypatch):
    """One edit of parse. A tag in the summary, as of a quoted verdict, makes it unreadable still."""
    tag, other = tag_of(judge), judge.VERDICTS[-1]
    own = edited(judge, tmp_path, monkeypatch, (f'rf"<{tag}>(', f'rf"(?:[^<>]*\\n)?<{tag}>('))
    for value in judge.VERDICTS:
        verdict = f"<{tag}>{value}</{tag}>"
        for between in ("In short: good.\n", "\n\n1. a\n2. b\n\n", ""):
            assert own.parse(f"<think>why</think>{between}{verdict}") == value
            assert judge.parse(f"<think>why</think>{between}{verdict}") == (None if between.strip() else value)
        quoted = f"<{tag}>{other}</{tag}>"
        for between in (f"It says {quoted}.\n", f"{quoted}\n", "<b>\n", "a > b\n", "</think>\n", "<think>\n", "So "):
            assert own.parse(f"<think>why</think>{between}{verdict}") is None
        for text in (f"In short.\n{verdict}", f"<think>why\n{verdict}", f"<think>why</think>\n{verdict}\nIn short."):
            assert own.parse(text) is None


@each_judge
def test_a_judge_that_is_not_asked_to_reason_reads_a_bare_verdict_behind_a_closed_think_block(
    judge, tmp_path, monkeypatch
):
    """Trap 37: prompt and template agree."""
    own = edited(
        judge, tmp_path, monkeypatch, ("Reason between <think> and </think>. Then {verdict_form}", "Now {verdict_form}")
    )
    (turn,) = own.ask([user("Why? <think>")], *["So."] * (1 if judge is pointwise else 2))
    assert "<think>" not in turn["content"] and "\n\nNow write only " in turn["content"]
    for value in own.VERDICTS:
        assert own.parse(f"<think>\n\n</think>\n\n<{tag_of(judge)}>{value}</{tag_of(judge)}>") == value
