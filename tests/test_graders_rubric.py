"""The rubric that a judge was trained by: left in its checkpoint, and found there by its grader."""

import shutil

import pytest

from common.judging.rubric import RUBRIC_FILE, read_stored_rubric, store_rubric
from generative_pairwise import prompt as pairwise
from generative_pairwise.grader import PairwiseGrader
from generative_pointwise import prompt as pointwise
from generative_pointwise.grader import PointwiseGrader

GRADERS = {PointwiseGrader: pointwise.RUBRIC, PairwiseGrader: pairwise.RUBRIC}


def with_rubric(tiny_model, tmp_path, *rubrics: str | None):
    """A copy of the model, with what a run on prompts of those rubrics leaves in it."""
    folder = shutil.copytree(tiny_model, tmp_path / "trained")
    store_rubric([folder], [{"rubric": rubric} for rubric in rubrics])
    return folder


@pytest.mark.parametrize(
    "rubric", ["Count the words.", "Zählt: {0}\n\n4: 三 🙂", "a\tb\n c", "Count.\n", " 4: all", "Count.\r\nThen add."]
)
def test_a_checkpoint_keeps_the_rubric_of_its_run(tiny_model, tmp_path, rubric, capsys):
    folder = with_rubric(tiny_model, tmp_path, rubric, rubric)
    assert read_stored_rubric(str(folder)) == rubric
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "rubrics, why",
    [
        (("Count the words.", "Count the letters."), "are of several rubrics"),
        (("Count the words.", None), "are of several rubrics"),
        ((None, None), "do not say by which rubric they were written"),
    ],
)
def test_a_checkpoint_of_several_or_unknown_rubrics_keeps_none_and_its_run_says_so(
    tiny_model, tmp_path, rubrics, why, capsys
):
    folder = with_rubric(tiny_model, tmp_path, *rubrics)
    assert read_stored_rubric(str(folder)) is None and not (folder / RUBRIC_FILE).exists()
    assert f"the training prompts {why}, so trained holds no rubric for graders" in capsys.readouterr().out


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
