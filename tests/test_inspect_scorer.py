"""A grader as the scorer of a real evaluation by inspect_ai: its scores, and what cannot be graded left out."""

import asyncio
import math

import pytest
from test_graders_judges import scripted, shown  # noqa: F401

from bradley_terry.grader import BradleyTerryGrader
from generative_pairwise.grader import PairwiseGrader
from generative_pairwise.prompt import write

pytest.importorskip("inspect_ai", reason="needs inspect_ai, `pip install inspect-ai`")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    ModelOutput,
)
from inspect_ai.solver import solver
from inspect_ai.tool import ToolCall

from common.grading.inspect_scorer import graded_by


@solver
def say(answers: list[str]):
    """Answer the n-th sample by the n-th text, without a model: inspect_ai's own mock wants the network."""

    async def solve(state, generate):
        state.output = ModelOutput.from_content("none", answers[state.sample_id - 1])
        state.messages.append(state.output.message)
        return state

    return solve


def evaluate(tmp_path, samples: list[Sample], answers: list[str], scorer) -> tuple[dict, list]:
    """Return the metrics, and each sample's score in their order."""
    task = Task(samples, solver=say(answers), scorer=scorer)
    (log,) = eval(task, model=None, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    return metrics, [sample.scores["graded_by"] for sample in log.samples]


def test_a_reward_model_scores_each_answer_in_its_dialogue(tmp_path, reward_checkpoint):
    grader = BradleyTerryGrader(str(reward_checkpoint))
    dialogue = [ChatMessageSystem(content="Be short."), ChatMessageUser(content="Name two tools.")]
    samples, answers = [Sample("How many?"), Sample(dialogue), Sample("And now?")], ["Three.", "rake, spade", ""]
    metrics, scores = evaluate(tmp_path, samples, answers, graded_by(grader))
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Name two tools."}]
    expected = [
        asyncio.run(grader.aevaluate(query=query, response=answer)).score
        for query, answer in (("How many?", "Three."), (messages, "rake, spade"))
    ]
    assert [score.value for score in scores[:2]] == pytest.approx(expected, abs=1e-6)
    assert math.isnan(scores[2].value) and "response" in scores[2].explanation
    assert metrics["mean"] == pytest.approx(sum(expected) / 2)


def test_a_judge_compares_each_answer_with_the_target(tmp_path, tiny_model, scripted):  # noqa: F811
    """In both orders; "no" has no verdict."""

    def prefer(prompt: str) -> str:
        first, second = shown(prompt)
        return "no" if "no" in (first, second) else write("A" if first > second else "B")

    scripted(prefer)
    samples = [Sample("How many?", target="m") for _ in range(3)]
    grader = PairwiseGrader(str(tiny_model))
    metrics, scores = evaluate(tmp_path, samples, ["z", "a", "no"], graded_by(grader, against_target=True))
    assert [score.value for score in scores[:2]] == [1, 0] and math.isnan(scores[2].value)
    assert metrics["mean"] == 0.5


def test_what_a_grader_cannot_see_whole_is_unscored_with_the_reason(tmp_path, tiny_model, scripted):  # noqa: F811
    scripted(lambda prompt: write("A"))
    call = ToolCall(id="1", function="search", arguments={})
    dialogues = [
        "Why?",
        [ChatMessageUser(content=[ContentText(text="What is it?"), ContentImage(image="data:image/png;base64,AA==")])],
        [ChatMessageUser(content="Look."), ChatMessageAssistant(content="", tool_calls=[call])],
        "And now?",
        "How many?",
    ]
    targets = ["Because.", "m", "m", "", ["Paris", "France"]]
    samples = [Sample(dialogue, target=target) for dialogue, target in zip(dialogues, targets)]
    grader = PairwiseGrader(str(tiny_model), both_orders=False)
    _, scores = evaluate(tmp_path, samples, ["z"] * 5, graded_by(grader, against_target=True))
    assert [score.explanation for score in scores[1:]] == [
        *["the dialogue has messages that are not text alone: images, tools, …"] * 2,
        "an answer is compared with one target, and this sample has 0",
        "an answer is compared with one target, and this sample has 2",
    ]
    assert scores[0].value == 1 and all(math.isnan(score.value) for score in scores[1:])
