"""The rubric that a judge was trained by: read from its prompts, left in its checkpoint, found by its grader."""

import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.judge import HELPFULNESS, MORE_HELPFUL, pairwise_prompt, pointwise_prompt, rubric_of
from common.judging.prompts import read_stored_rubric, store_rubric
from generative_pairwise import grader as PairwiseGrader
from generative_pointwise import grader as PointwiseGrader

GRADERS = {PointwiseGrader: HELPFULNESS, PairwiseGrader: MORE_HELPFUL}
DIALOGUE = [{"role": "user", "content": "How many?"}]


def rows(*rubrics: str) -> list[dict]:
    texts = [pointwise_prompt(DIALOGUE, "Four.", rubric) for rubric in rubrics]
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


def with_rubric(tiny_model, tmp_path, *rubrics: str):
    """A copy of the model, with what a run on prompts of those rubrics leaves in it."""
    folder = shutil.copytree(tiny_model, tmp_path / "trained")
    store_rubric(folder, rows(*rubrics))
    return folder


@given(rubric=st.text(), text=st.text())
@example(rubric="{dialogue} {} %s", text="{rubric}")
@example(rubric="<response>\n\n<rubric>", text="\n\n<dialogue>\n<dialogue>")
@example(rubric="Judge what stands in\n\n<dialogue>\nas a whole.", text="")
def test_a_prompt_gives_its_rubric_back(rubric, text):
    dialogue = [{"role": "user", "content": text}]
    assert rubric_of(pointwise_prompt(dialogue, text, rubric)) == rubric
    assert rubric_of(pairwise_prompt(dialogue, text, text, rubric)) == rubric


@given(st.text())
@example(pointwise_prompt(DIALOGUE, "Four.")[1:])
@example(pointwise_prompt(DIALOGUE, "Four.").replace("<dialogue>", "<talk>"))
@example("Score how well the response answers the dialogue.\n\n")
def test_any_other_text_has_no_rubric(text):
    assert rubric_of(text) is None


@pytest.mark.parametrize("rubric", ["Count the words.", "Zählt: {0}\n\n4: 三 🙂", "a\tb\n c", "Count.\n", " 4: all"])
def test_a_checkpoint_keeps_the_rubric_of_its_run(tiny_model, tmp_path, rubric):
    folder = with_rubric(tiny_model, tmp_path, rubric, rubric)
    assert read_stored_rubric(str(folder)) == rubric


@pytest.mark.parametrize("rubrics", [("Count the words.", "Count the letters."), ()])
def test_a_checkpoint_of_several_rubrics_keeps_none_and_its_run_says_so(tiny_model, tmp_path, rubrics, capsys):
    folder = with_rubric(tiny_model, tmp_path, *rubrics)
    assert read_stored_rubric(str(folder)) is None
    assert (
        f"the training prompts have {len(rubrics)} rubrics or forms, so trained holds none" in capsys.readouterr().out
    )


def test_a_checkpoint_of_other_prompts_keeps_none(tmp_path, capsys):
    other = {"prompt": [{"role": "user", "content": "How good is it?"}]}
    for prompts in ([other], [*rows("Count the words."), other]):
        store_rubric(tmp_path, prompts)
        assert list(tmp_path.iterdir()) == [] and "holds none" in capsys.readouterr().out


@pytest.mark.parametrize("place", [None, "", "Qwen/Qwen3-8B"])
def test_what_is_no_checkpoints_folder_holds_no_rubric(place):
    assert read_stored_rubric(place) is None


@pytest.mark.parametrize("grader, default", GRADERS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_rubric_given_goes_before_the_checkpoints_and_that_before_the_methods_own(
    tiny_model, tmp_path, grader, default
):
    trained = str(with_rubric(tiny_model, tmp_path, "Count the words."))
    assert grader(trained, rubric="Count the letters.").rubric == "Count the letters."
    assert grader(trained).rubric == "Count the words."
    assert grader(str(tiny_model)).rubric == default


@pytest.mark.parametrize("grader, default", GRADERS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_behind_an_endpoint_the_rubric_is_that_of_the_checkpoint_that_is_served(tiny_model, tmp_path, grader, default):
    trained, url = str(with_rubric(tiny_model, tmp_path, "Count the words.")), "http://127.0.0.1:1/v1"
    assert grader("judge", url, tokenizer=trained).rubric == "Count the words."
    assert grader("judge", url, tokenizer=trained, rubric="Count the letters.").rubric == "Count the letters."
    assert grader("judge", url).rubric == default
