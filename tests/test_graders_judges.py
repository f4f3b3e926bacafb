"""Judges as graders in this process: their verdict, or an error that shows the answer, and never a guess."""

import asyncio
import re
import shutil

import pytest
from openjudge.runner.grading_runner import GradingRunner
from test_pairwise_reward import TEXTS as NO_PREFERENCES
from test_pointwise_reward import TEXTS as NO_SCORES

from common.conversation import DataError
from common.generation import Answer
from common.grading.contract import GraderError, GraderMode, GraderRank, GraderScore
from generative_pairwise.grader import PairwiseGrader
from generative_pairwise.prompt import write as preference
from generative_pointwise.grader import PointwiseGrader
from generative_pointwise.prompt import ask as ask_pointwise
from generative_pointwise.prompt import write as score

DIALOGUE = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def scripted(monkeypatch):
    """Let the local model answer each prompt by a function of it; return the prompts so far, batch by batch."""

    def answer_by(reply, clipped: bool = False) -> list[list[str]]:
        batches = []

        def answer(model, tokenizer, prompts, *_, **__):
            batches.append(prompts)
            return [[Answer(reply(prompt), clipped)] for prompt in prompts]

        monkeypatch.setattr("common.judging.grader.answer_prompts", answer)
        return batches

    return answer_by


def shown(prompt: str) -> list[str]:
    """The responses in a prompt, in their order."""
    return re.findall(r"<response(?:_[ab])?>\n(.*?)\n</response", prompt, re.DOTALL)


def grade(grader, *calls: dict) -> list:
    async def all_at_once() -> list:
        return await asyncio.gather(*(grader.aevaluate(query="How many?", **call) for call in calls))

    return asyncio.run(all_at_once())


# ---- pointwise


def test_a_verdict_is_the_score_and_what_stood_before_it_the_reason(tiny_model, scripted):
    batches = scripted(lambda prompt: score(int(shown(prompt)[0]), "counted"))
    graded = grade(PointwiseGrader(str(tiny_model)), *({"response": str(value)} for value in (3, 0, 4, 1, 2)))
    assert [result.score for result in graded] == [3, 0, 4, 1, 2]
    assert {(type(result), result.reason) for result in graded} == {(GraderScore, "counted")}
    assert graded[0].metadata["answer"] == score(3, "counted")
    assert [len(batch) for batch in batches] == [5]
    (asked,) = ask_pointwise(DIALOGUE, "3")
    assert batches[0][0] == f"<|im_start|>user\n{asked['content']}<|im_end|>\n<|im_start|>assistant\n"


def test_of_a_thousand_answers_without_a_verdict_none_becomes_a_number(tiny_model, scripted):
    """Trap 22."""
    scripted(lambda prompt: NO_SCORES[int(shown(prompt)[0])] if shown(prompt)[0] != "good" else score(4))
    calls = [{"response": text} for text in ("good", *map(str, range(len(NO_SCORES))))]
    good, *wrong = grade(PointwiseGrader(str(tiny_model)), *calls)
    assert good.score == 4 and len(wrong) >= 1000
    assert [text for text, result in zip(NO_SCORES, wrong) if type(result) is not GraderError] == []
    assert all(result.error.endswith(repr(text[-500:])) for text, result in zip(NO_SCORES, wrong))


@pytest.mark.parametrize("clipped", [True, False])
def test_an_answer_whose_tokens_ran_out_says_so(tiny_model, scripted, clipped):
    scripted(lambda _: "<think>\nHm", clipped)
    (graded,) = grade(PointwiseGrader(str(tiny_model)), {"response": "Four."})
    assert ("raise max_new_tokens" in graded.error) is clipped


def test_what_the_chat_template_began_belongs_to_the_answer(tiny_model, scripted):
    """Trap 23."""
    scripted(lambda _: "<score>3</score>")
    grader = PointwiseGrader(str(tiny_model))
    assert type(grade(grader, {"response": "Four."})[0]) is GraderError
    grader.tokenizer.chat_template = "{% set enable_thinking = false %}" + grader.tokenizer.chat_template
    assert grade(grader, {"response": "Four."})[0].score == 3


@pytest.mark.parametrize(
    "response, cause",
    [(None, "response: expected text"), ("\ud83d", "response: text that is not Unicode"), ("many " * 5000, "longer")],
)
def test_what_cannot_be_asked_is_an_error_beside_good_calls_also_in_the_runner(tiny_model, scripted, response, cause):
    scripted(lambda _: score(2))
    grader, rows = PointwiseGrader(str(tiny_model)), [{"response": text} for text in ("a", response, "")]
    runner = GradingRunner({"judge": (grader, lambda row: {**row, "query": DIALOGUE})}, show_progress=False)
    for first, wrong, empty in (grade(grader, *rows), asyncio.run(runner.arun(rows))["judge"]):
        assert (first.score, empty.score) == (2, 2)
        assert type(wrong) is GraderError and cause in wrong.error


def test_an_untrained_judge_has_no_verdict(tiny_model):
    (graded,) = grade(PointwiseGrader(str(tiny_model), max_new_tokens=4), {"response": "Four."})
    assert type(graded) is GraderError and "raise max_new_tokens" in graded.error


def test_a_judge_that_cannot_be_loaded_is_refused(tmp_path):
    for options in ({"model": str(tmp_path / "absent")}, {"model": "judge", "tokenizer": str(tmp_path / "absent")}):
        endpoint = "http://127.0.0.1:1/v1" if "tokenizer" in options else None
        with pytest.raises(DataError, match="absent: cannot be loaded .there is no folder of that name"):
            PointwiseGrader(**options, endpoint=endpoint)


def cut_weights(folder) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "settings", "cause"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), {}, "no chat template, and a judge is asked"),
        (cut_weights, {}, "judge: cannot be loaded"),
        (lambda _: None, {"max_new_tokens": 10**6}, "max_new_tokens=1000000 leaves no room for a prompt"),
        (lambda _: None, {"endpoint": "localhost:8000/v1"}, "expected http://host:port"),
        (lambda _: None, {"endpoint": "http://localhost:port/v1"}, "expected http://host:port"),
        (lambda _: None, {"endpoint": "http://localhost:1/v1", "concurrency": 0}, "concurrency=0, .*at least 1"),
        (lambda _: None, {"endpoint": "http://localhost:1/v1", "retries": -1}, "retries=-1: expected"),
    ],
)
def test_what_could_never_judge_is_refused_at_once(tiny_model, tmp_path, change, settings, cause):
    folder = shutil.copytree(tiny_model, tmp_path / "judge")
    change(folder)
    with pytest.raises(DataError, match=cause):
        PointwiseGrader(str(folder), **settings)


def test_a_reward_model_is_no_judge(reward_checkpoint):
    with pytest.raises(DataError, match="reward_model.*: it has a reward head, score.weight"):
        PointwiseGrader(str(reward_checkpoint))


def test_a_prompt_that_the_chat_template_refuses_is_an_error(tiny_model, tmp_path, scripted):
    folder = shutil.copytree(tiny_model, tmp_path / "judge")
    refusal = "{% if 'bad' in messages[-1].content %}{{ raise_exception('no such words') }}{% endif %}"
    template = folder / "chat_template.jinja"
    template.write_text(refusal + template.read_text())
    scripted(lambda _: score(2, "so"))
    bad, good = grade(PointwiseGrader(str(folder)), {"response": "bad"}, {"response": "good"})
    assert type(bad) is GraderError and "chat template refuses the conversation: no such words" in bad.error
    assert good.score == 2


# ---- pairwise


@pytest.mark.parametrize(
    "as_given, swapped, expected, verdicts",
    [
        ("A", "B", 1.0, ["A", "A"]),
        ("B", "A", 0.0, ["B", "B"]),
        ("A", "A", 0.5, ["A", "B"]),
        ("B", "B", 0.5, ["B", "A"]),
        ("tie", "tie", 0.5, ["tie", "tie"]),
        ("A", "tie", 0.75, ["A", "tie"]),
        ("tie", "B", 0.75, ["tie", "A"]),
        ("tie", "A", 0.25, ["tie", "B"]),
        ("B", "tie", 0.25, ["B", "tie"]),
    ],
)
def test_a_preference_is_the_mean_of_both_orders(tiny_model, scripted, as_given, swapped, expected, verdicts):
    """Trap 16."""
    said = {("x", "y"): as_given, ("y", "x"): swapped}
    scripted(lambda prompt: preference(said[tuple(shown(prompt))], as_given))
    pair = {"response_a": "x", "response_b": "y"}
    (both,) = grade(PairwiseGrader(str(tiny_model)), pair)
    assert (both.score, both.metadata["verdicts"], both.reason) == (expected, verdicts, as_given)
    assert both.metadata["consistent"] is (len(set(verdicts)) == 1)
    (once,) = grade(PairwiseGrader(str(tiny_model), both_orders=False), pair)
    assert (once.score, once.metadata["verdicts"]) == ({"A": 1.0, "tie": 0.5, "B": 0.0}[as_given], verdicts[:1])


def test_of_750_answers_without_a_preference_none_becomes_a_number_beside_a_good_one(tiny_model, scripted):
    """In the order as given or, of every second pair, in the other one; the answer to the other order is good."""

    def reply(prompt: str) -> str:
        first, second = shown(prompt)
        number = int(second if first == "other" else first)
        is_lost = (first == "other") == bool(number % 2)
        return NO_PREFERENCES[number] if is_lost else preference("A")

    scripted(reply)
    calls = [{"response_a": str(number), "response_b": "other"} for number in range(len(NO_PREFERENCES))]
    graded = grade(PairwiseGrader(str(tiny_model)), *calls)
    assert len(graded) >= 750
    assert [text for text, result in zip(NO_PREFERENCES, graded) if type(result) is not GraderError] == []


def by_number(prompt: str) -> str:
    first, second = map(int, shown(prompt))
    return preference("tie" if first == second else "A" if first > second else "B")


def test_several_responses_are_ranked_by_win_rate(tiny_model, scripted):
    batches = scripted(by_number)
    grader = PairwiseGrader(str(tiny_model), mode=GraderMode.LISTWISE)
    ordered, tied, equal = grade(grader, *({"responses": texts} for texts in (["2", "9", "4"], ["5", "7", "5"], "55")))
    assert type(ordered) is GraderRank and ordered.rank == [3, 1, 2]
    assert ordered.metadata["win_rates"] == [0.0, 1.0, 0.5]
    assert tied.rank == [2, 1, 3] and tied.metadata["win_rates"] == [0.25, 1.0, 0.25]
    assert "of equal ones the first given comes first" in tied.reason and "of equal ones" not in ordered.reason
    assert type(equal) is GraderError and "at least two texts" in equal.error
    assert sorted(map(len, batches)) == [12]
    (draw,) = grade(grader, {"responses": ["5", "5", "5"]})
    assert type(draw) is GraderError and "all have the same win rate, so there is no order" in draw.error


def test_a_rank_with_one_lost_verdict_is_an_error(tiny_model, scripted):
    scripted(lambda prompt: "A" if shown(prompt) == ["1", "3"] else by_number(prompt))
    grader = PairwiseGrader(str(tiny_model), mode=GraderMode.LISTWISE)
    good, lost = grade(grader, {"responses": ["1", "2"]}, {"responses": ["1", "2", "3"]})
    assert good.rank == [2, 1]
    assert type(lost) is GraderError and lost.error.startswith("no well-formed verdict in the answer")


# ---- as OpenJudge sees them


@pytest.mark.parametrize(
    "judge, scale, call, verdict, expected",
    [
        (PointwiseGrader, "a whole number from 0 to 4", {"response": "x"}, score(3), 3),
        (PairwiseGrader, "1 A, 0.5 a tie, 0 B", {"response_a": "x", "response_b": "y"}, preference("tie"), 0.5),
    ],
)
def test_metadata_says_the_scale_and_a_config_makes_a_grader(
    tiny_model, scripted, judge, scale, call, verdict, expected
):
    said = judge.get_metadata()
    assert scale in said["score"] and "{rubric}" in said["prompt"]
    assert "Then write only the " in said["prompt"] and "{verdict_form}" not in said["prompt"]
    batches = scripted(lambda _: verdict)
    grader = judge.from_config({"model": str(tiny_model), "mode": "pointwise", "rubric": "Count the words."})
    (graded,) = grade(grader, call)
    assert (graded.name, graded.score) == (judge.__name__, expected)
    assert "\n\nCount the words.\n\n" in batches[0][0]
