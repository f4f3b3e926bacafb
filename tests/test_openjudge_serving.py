"""OpenJudge's unmodified graders over our own trained judges, served: verdicts in nearly all rows, and the local ones.

The judges are tiny, and a grader's prompt is long. So its unchanging parts are a few tokens of the tiny tokenizer; the
text that is asked stays the grader's own, letter by letter. They are trained from right labels, a minute each.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import warm_start
from openjudge.graders.common.relevance import RelevanceGrader
from openjudge.graders.schema import GraderError, GraderRank, GraderScore
from openjudge.models.openai_chat_model import OpenAIChatModel
from openjudge.runner.grading_runner import GradingRunner
from sklearn.metrics import accuracy_score
from test_judge_serving import free_port
from test_openjudge_prompt import copy_of
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.demo.world import pairwise_rows, pointwise_rows
from common.generation import answer_prompts

pytestmark = pytest.mark.run
NEW = 96  # tokens of an answer


def parts_of(prompt, slots: list[str]) -> list[str]:
    """Return the unchanging parts of a grader's prompt, those between its slots."""
    parts = []
    for turn in prompt.ask([{"role": "user", "content": slots[0]}], *slots[1:]):
        text = turn["content"]
        for slot in slots:
            text = text.replace(slot, "\0")
        parts += [part for part in text.split("\0") if len(part) > 40]
    return parts


def tiny_judge(tiny_model: Path, prompt, rows: list[dict], folder: Path, responses: int) -> str:
    """Return a judge that has learned from right labels in a grader's form."""
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    parts = parts_of(prompt, [f"⁅slot {number}⁆" for number in range(responses + 1)])
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in parts])
    torch.manual_seed(0)
    model.resize_token_embeddings(-(-len(tokenizer) // 64) * 64, mean_resizing=False)
    start = folder / "start"
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    lessons = [messages for row in rows for messages in prompt.transcripts(prompt.read_row(row), prompt.RUBRIC)]
    return warm_start(start, lessons, folder / "judge")


def local_answers(judge: str, prompts: list) -> list[str]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(judge), AutoTokenizer.from_pretrained(judge)
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    return [text for (text,) in answer_prompts(model, tokenizer, texts, NEW, 16384)]


class Serving:
    """`transformers serve` on CPU, as the README starts it."""

    def __init__(self, judge: str, log: Path):
        self.port = free_port()
        program = Path(sys.executable).with_name("transformers")
        command = [program, "serve", judge, "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.model = OpenAIChatModel(
            model=judge, base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_tokens=NEW, temperature=0
        )

    def __enter__(self) -> OpenAIChatModel:
        import socket

        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        return self.model

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait(30)


def test_the_relevance_grader_gives_our_judges_verdicts(tiny_model, tmp_path):
    module = copy_of("generative_pointwise", tmp_path / "relevance_served")
    prompt = module("prompt")

    def rows(split: str, size: int, seed: int) -> list[dict]:
        return [row | {"label": row["label"] + 1} for row in pointwise_rows(split, size, seed)]

    judge = tiny_judge(tiny_model, prompt, rows("train", 2400, 1), tmp_path, responses=1)
    judged = [prompt.read_row(row) for row in rows("test", 200, 0)]
    labels = [row.label for row in judged]
    answers = local_answers(judge, [prompt.ask(row.dialogue, row.response, prompt.RUBRIC) for row in judged])
    local = [prompt.parse(answer) for answer in answers]
    called = [{"query": row.dialogue[0]["content"], "response": row.response} for row in judged]
    with Serving(judge, tmp_path / "log") as model:
        runner = GradingRunner({"relevance": RelevanceGrader(model=model)}, max_concurrency=8, show_progress=False)
        results = asyncio.run(runner.arun(called))["relevance"]
    scores = [result.score if isinstance(result, GraderScore) else None for result in results]
    right = sum(score == label for score, label in zip(scores, labels)) / len(labels)
    print(f"relevance: {sum(score is not None for score in scores)} of 200 verdicts, accuracy {right:.3f}")
    assert sum(score is not None for score in scores) >= 198
    assert scores == local
    assert right > 0.5  # the most frequent label has about 0.21


def test_a_grader_that_ranks_gives_our_judges_verdicts(tiny_model, tmp_path):
    """The judge writes its reason first, which the grader does not ask for, and reads."""
    reason_first = {"REASON_FIRST = False": "REASON_FIRST = True"}
    module = copy_of("generative_pairwise", tmp_path / "ranker_served", reason_first)
    prompt, made = module("prompt"), module("openjudge_prompt")

    def rows(split: str, size: int, seed: int) -> list[dict]:
        return [row for row in pairwise_rows(split, size, seed) if row["metadata"]["preferred"] != "tie"]

    judge = tiny_judge(tiny_model, prompt, rows("train", 2400, 1), tmp_path, responses=2)
    judged = [prompt.read_row(row) for row in rows("test", 150, 0)]
    asked = [prompt.ask(row.dialogue, row.response_a, row.response_b, prompt.RUBRIC) for row in judged]
    local = [prompt.parse(answer) for answer in local_answers(judge, asked)]
    with Serving(judge, tmp_path / "log") as model:
        grader = made.make_grader(model)

        async def ask(row) -> GraderRank | GraderError:
            return await grader.aevaluate(**made.call(row.dialogue, row.response_a, row.response_b))

        async def ask_all() -> list:
            return [await ask(row) for row in judged]

        results = asyncio.run(ask_all())
    verdicts = ["AB"[result.rank.index(1)] if isinstance(result, GraderRank) else None for result in results]
    found = [verdict for verdict in verdicts if verdict]
    right = accuracy_score([row.label for row, verdict in zip(judged, verdicts) if verdict], found)
    print(f"ranks: {len(found)} of {len(judged)} verdicts, accuracy {right:.3f}")
    assert len(found) >= 0.99 * len(judged) and verdicts == local
    assert right > 0.8  # with the ranks first, so small a judge is right by chance: 0.46
