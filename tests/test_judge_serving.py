"""A trained judge behind a real server, `transformers serve` on CPU: the verdicts are the local ones."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI
from openjudge.graders.common.relevance import RelevanceGrader
from openjudge.graders.schema import GraderError, GraderScore
from openjudge.models.openai_chat_model import OpenAIChatModel
from openjudge.runner.grading_runner import GradingRunner

from common.demo.world import SCORE_RUBRIC, pointwise_rows
from generative_pointwise.grader import PointwiseGrader
from generative_pointwise.prompt import ask, parse

pytestmark = pytest.mark.run
ROWS = [
    {"query": row["input"], "response": row["output"][0]["answer"]["content"]}
    for row in pointwise_rows("test", 24, seed=0)
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def judge(small_judge_run) -> str:
    return small_judge_run["MODEL_PATH"]


@pytest.fixture(scope="module")
def server(judge, tmp_path_factory):
    """The address of `transformers serve`, started as the README says."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", judge, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(30)


def grade_all(made) -> list[GraderScore | GraderError]:
    async def gather() -> list:
        return await asyncio.gather(*(made.aevaluate(**row) for row in ROWS))

    return asyncio.run(gather())


@pytest.fixture(scope="module")
def local(judge) -> list[float]:
    results = grade_all(PointwiseGrader(judge, rubric=SCORE_RUBRIC, max_new_tokens=256))
    scores = [result.score for result in results]
    assert len(set(scores)) > 2
    return scores


def served_grader(judge: str, server: str, **settings):
    return PointwiseGrader(judge, server, rubric=SCORE_RUBRIC, max_new_tokens=256, hidden_reasoning=True, **settings)


def test_the_openai_client_gets_the_local_verdicts(judge, server, local):
    """This server keeps the reasoning to itself, so what it returns is parsed behind an empty one."""
    with OpenAI(base_url=server, api_key="none") as client:
        verdicts = []
        for row in ROWS:
            messages = ask(row["query"], row["response"], SCORE_RUBRIC)
            reply = client.chat.completions.create(model=judge, messages=messages, max_tokens=256, temperature=0)
            verdicts.append(parse(f"<think></think>{reply.choices[0].message.content}"))
    assert verdicts == local


def test_the_grader_and_openjudges_runner_get_the_local_verdicts(judge, server, local):
    served = served_grader(judge, server)
    assert [result.score for result in grade_all(served)] == local
    runner = GradingRunner({"helpfulness": served}, show_progress=False)
    results = asyncio.run(runner.arun(ROWS))["helpfulness"]
    assert [result.score for result in results] == local


def test_reasoning_that_the_server_keeps_must_be_said_to_be_hidden(judge, server):
    unaware = PointwiseGrader(judge, server, rubric=SCORE_RUBRIC, max_new_tokens=256)
    results = grade_all(unaware)
    assert all(isinstance(result, GraderError) and "hidden_reasoning=True" in result.error for result in results)


def test_a_model_that_is_not_served_is_an_error_that_names_it(server):
    results = grade_all(served_grader("another-judge", server, retries=0))
    assert all(isinstance(result, GraderError) and "another-judge" in result.error for result in results)


def test_openjudges_own_grader_runs_but_a_judge_of_scores_speaks_no_json(judge, server):
    """Its prompt asks for JSON with a score of 1 to 5; this judge learned one prompt, and answers nothing else.

    Which judge does answer it: test_openjudge_serving.py.
    """
    model = OpenAIChatModel(model=judge, base_url=server, api_key="none", max_tokens=64)
    result = asyncio.run(RelevanceGrader(model=model).aevaluate(query="What is 2+2?", response="4"))
    assert isinstance(result, GraderError)
