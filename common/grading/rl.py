"""Graders as the reward in an RL run: by verl, by TRL, or from a server that OpenRLHF and slime ask.

Each trainer asks in its own form. Here all forms become one question, `Rewarder.score`, which a method's rl_reward.py
answers with its grader: the prompt, the parser and the tokens are the grader's, so the reward is the grader's too.

What cannot be rewarded never becomes a silent 0, which a policy may like better than its honest rewards:

- An answer that the grader cannot score (too long, a judge's answer without a verdict, …) gets `stand_in`, and is
  counted as `unscored` in the trainer's metrics. Without a `stand_in` the run stops, and the message says why.
- If the prompt or the anchor is at fault, no answer is to blame: the run stops, also with a `stand_in`.
- A dead server is asked again (`retries` of the grader: six, about 20 seconds; more bridge a restart). Then the run
  stops. So it does if a reward is not a finite number.

"The run stops" holds for verl with the sampler of the READMEs, for TRL and for slime. OpenRLHF's client logs a failed
request and goes on with an empty reward, so watch its log.
"""

import argparse
import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from common.conversation import BadRow, Conversation, DataError, read_dialogue, read_response
from common.grading.contract import NoVerdict, all_or_none
from common.grading.endpoint import EndpointError

# "score", and "unscored": 1 if the score is the stand-in, else 0, or the share of the answer's comparisons without a
# verdict, if there are several
Reward = dict[str, float]


class RewardError(RuntimeError):
    """An answer has no reward, and the run must not go on. The text is for the user."""


class Rewarder:
    """Rewards answers by a grader; the reward function of TRL as it is, that of verl through `for_verl`.

    Args:
        stand_in: the reward of an answer that cannot be scored; None: the run stops.
        end: what a policy's text may end with and what is no part of the answer, such as `<|im_end|>`.
    """

    def __init__(self, stand_in: float | None, end: str | None = None):
        if stand_in is not None and not math.isfinite(stand_in):
            raise DataError(f"stand_in={stand_in}: expected a finite number, or None")
        self.stand_in, self.end = stand_in, end

    async def score(self, dialogue: Conversation, answer: str, anchor: str | None) -> float:
        """Return the reward of one answer; a method's grader gives it.

        Args:
            anchor: an answer to compare with, for graders that compare.

        Raises:
            BadRow, NoVerdict: it cannot be scored. EndpointError: the grader's server gives no answer.
        """
        raise NotImplementedError

    def check_question(self, dialogue: Conversation, anchor: str | None) -> None:
        """Raise `BadRow` if no answer could be scored, however short it is: the dialogue or the anchor is at fault."""
        raise NotImplementedError

    async def scores(
        self, dialogues: list[Conversation], answers: list[str], anchors: list[str | None]
    ) -> list[Reward | BadRow | NoVerdict]:
        """Return the rewards of many answers, asked for at once, or why one cannot be scored.

        Raises:
            EndpointError: one call has given up on the grader's server; the others are cancelled.
        """

        async def reward_or_fault(*asked: Any) -> Reward | BadRow | NoVerdict:
            try:
                return {"score": await self.score(*asked), "unscored": 0.0}
            except (BadRow, NoVerdict) as fault:
                return fault

        return await all_or_none(map(reward_or_fault, dialogues, answers, anchors))

    async def rewards(
        self, dialogues: Sequence, answers: Sequence[str], anchors: Sequence | None = None
    ) -> list[Reward]:
        """Return the reward of each answer: the grader's score, or the stand-in.

        Args:
            dialogues: messages, JSON text of them, or a query's text.

        Raises:
            RewardError: an answer cannot be scored and there is no stand-in; a prompt or an anchor to which no answer
                can be scored; no reply of the grader's server; a reward that is not finite.
        """
        try:
            read = [read_dialogue(dialogue, "prompt") for dialogue in dialogues]
            texts = [read_response(answer, "answer") for answer in answers]
            given = anchors or [None] * len(texts)
            known = [None if anchor is None else read_response(anchor, "anchor") for anchor in given]
        except BadRow as fault:
            raise RewardError(_told(fault)) from fault
        try:
            found = await self.scores(read, texts, known)
        except EndpointError as error:
            advice = "Start the server again, or raise `retries` so that the run waits longer"
            raise RewardError(f"no reward: {error}. {advice}") from error
        return [self._checked(*of_one) for of_one in zip(found, read, texts, known, strict=True)]

    def _checked(
        self, found: Reward | BadRow | NoVerdict, dialogue: Conversation, answer: str, anchor: str | None
    ) -> Reward:
        if isinstance(found, BadRow | NoVerdict):
            try:
                self.check_question(dialogue, anchor)
            except BadRow as fault:
                raise RewardError(f"no answer to this prompt can be scored: {_told(fault)}. Correct the row") from fault
            if self.stand_in is not None:
                return {"score": float(self.stand_in), "unscored": 1.0}
            advice = "Correct the cause, or set `stand_in` to a reward for such answers, below all others"
            raise RewardError(
                f"an answer cannot be scored: {_told(found)}. The answer: {answer[:200]!r}. {advice}"
            ) from found
        if not math.isfinite(found["score"]):
            raise RewardError(f"the reward is {found['score']}, not a finite number. The answer: {answer[:200]!r}")
        return {name: float(value) for name, value in found.items()}

    async def for_verl(self, solution_str: str, extra_info: dict | None) -> Reward:
        """Return the reward of one answer, asked for as verl's reward loop does.

        verl starts the calls for all answers that are finished, and the grader takes them as one batch.

        Args:
            extra_info: of the row: `prompt`, the dialogue (verl shows a reward function no other), and `anchor`.

        Raises:
            RewardError: see `rewards`; also if the row has no `prompt`.
        """
        known = extra_info or {}
        if known.get("prompt") is None:
            raise RewardError(
                "extra_info has no 'prompt', so the question is not known. Write it into the training rows: "
                f"extra_info={{'prompt': the same messages, …}} (found {sorted(known)})"
            )
        prompt = known["prompt"]
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        (reward,) = await self.rewards([prompt], [solution_str], [known.get("anchor")])
        return reward

    @property
    def __name__(self) -> str:
        """What TRL calls this reward in its metrics."""
        return type(self).__name__

    async def __call__(
        self,
        prompts: list[Conversation | str],
        completions: list[Conversation | str],
        anchor: list[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Return the rewards of a batch, as TRL's trainers ask for them; all answers are scored at once.

        Args:
            completions: texts, or for conversations lists of messages, the assistant's last. What stands before that
                (tool calls and their results) is read as part of the dialogue.
            anchor: that column of the dataset, if there is one.
            log_metric: of TRL; takes the share of answers that could not be scored.

        Raises:
            RewardError: see `rewards`.
        """
        dialogues, answers = zip(*map(split_completion, prompts, completions))
        found = await self.rewards(dialogues, answers, anchor)
        if log_metric:
            log_metric("unscored", sum(reward["unscored"] for reward in found) / len(found))
        return [reward["score"] for reward in found]


def _told(fault: BadRow | NoVerdict) -> str:
    return fault.told if isinstance(fault, BadRow) else str(fault)


def split_completion(prompt: Conversation | str, completion: Conversation | str) -> tuple[Conversation | str, str]:
    """Return the dialogue and the answer to it, from a prompt and a completion as TRL has them.

    Raises:
        RewardError: the completion's last message is not text of the assistant, as after a last call of a tool.
    """
    if isinstance(completion, str):
        return prompt, completion
    last = completion[-1] if completion else {}
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise RewardError(f"a completion must end with text of the assistant, which is scored. It ends with {last}")
    return [*prompt, *completion[:-1]], last["content"]


def remembered(kind: type[Rewarder]) -> Callable[..., Rewarder]:
    """Return a function that makes a rewarder once for the same settings: verl calls anew for each answer."""

    @functools.cache
    def made(settings: str) -> Rewarder:
        return kind(**json.loads(settings))

    return lambda **settings: made(json.dumps(settings, sort_keys=True, default=list))


# ---- a server for OpenRLHF and slime


class OpenRLHFRequest(BaseModel):
    """What OpenRLHF posts: `query` is the prompt as its template wrote it, and the answer behind it."""

    query: list[str]
    prompts: list[str]
    labels: list[Any] | None = None


class SlimeRequest(BaseModel):
    """What slime posts with `--rm-type remote_rm`, one answer at a time."""

    prompt: str | list[dict]
    response: str
    label: Any = None


def question_of(prompt: str | list[dict], label: Any, plain_text: bool) -> tuple[str | list[dict], str | None]:
    """Return the dialogue and the anchor, if any, that a request is about.

    These trainers send the prompt as the policy's chat template wrote it. A template cannot be undone, and not every
    template can be recognised. So the messages come in the label: `{"prompt": messages, "anchor": text}`, as JSON text
    or as an object.

    Args:
        plain_text: the prompts are questions as the user wrote them, no template's text.

    Raises:
        BadRow: the prompt is text that may be a template's, and the label does not hold the messages.
    """
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError:
            label = None  # some other label: the prompt decides
    known = label if isinstance(label, dict) else {}
    if "prompt" not in known and isinstance(prompt, str) and not plain_text:
        advice = 'Send the messages in the label: {"prompt": messages}. If no template was applied, use --plain-text'
        raise BadRow("prompt", f"text, which may be that of a chat template. {advice}", prompt)
    return known.get("prompt", prompt), known.get("anchor")


def make_app(rewarder: Rewarder, plain_text: bool = False) -> FastAPI:
    """Return the server: `/openrlhf` and `/slime` take a trainer's request, and reply in its form.

    503: the grader's own server gives no answer; 422: any other request that cannot be rewarded. The reason is under
    "detail", and in the log. Both trainers repeat a request that fails. Then slime's run stops, and OpenRLHF leaves the
    reward empty. Neither reads a 0.

    Args:
        plain_text: see `question_of`.
    """
    app = FastAPI(title="rewards")

    def cut(answer: str) -> str:
        ended = rewarder.end and answer.rstrip().endswith(rewarder.end)
        return answer.rstrip().removesuffix(rewarder.end) if ended else answer

    async def reward(prompts: list, answers: list[str], labels: list) -> list[Reward]:
        try:
            asked = [question_of(prompt, label, plain_text) for prompt, label in zip(prompts, labels, strict=True)]
            dialogues, anchors = zip(*asked) if asked else ((), ())
            return await rewarder.rewards(dialogues, answers, anchors)
        except BadRow as fault:
            raise HTTPException(422, _told(fault)) from fault
        except RewardError as error:
            logging.getLogger("uvicorn.error").error(str(error))
            raise HTTPException(503 if isinstance(error.__cause__, EndpointError) else 422, str(error)) from error

    @app.post("/openrlhf")
    async def openrlhf(request: OpenRLHFRequest) -> dict:
        labels = request.labels or [None] * len(request.query)
        if not len(request.query) == len(request.prompts) == len(labels):
            sizes = f"{len(request.query)} query, {len(request.prompts)} prompts, {len(labels)} labels"
            raise HTTPException(422, f"expected lists of one length, found {sizes}")
        for query, prompt in zip(request.query, request.prompts):
            if not query.startswith(prompt):
                raise HTTPException(422, f"the query does not start with its prompt: {query[:200]!r}")
        answers = [cut(query[len(prompt) :]) for query, prompt in zip(request.query, request.prompts)]
        found = await reward(request.prompts, answers, labels)
        scores = [one["score"] for one in found]
        return {"rewards": scores, "scores": scores, "extra_logs": {"unscored": [one["unscored"] for one in found]}}

    @app.post("/slime")
    async def slime(request: SlimeRequest) -> float:
        (found,) = await reward([request.prompt], [cut(request.response)], [request.label])
        return found["score"]

    return app


def make_parser(description: str, model_help: str) -> argparse.ArgumentParser:
    """Return the options of every method's server."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="outputs/checkpoint", help=model_help)
    parser.add_argument("--endpoint", help="of a server that holds the model; default: the model is loaded here")
    parser.add_argument("--retries", type=int, help="with --endpoint: how often a request is repeated; default: 6")
    parser.add_argument("--stand-in", type=float, help="reward of an answer that cannot be scored")
    plain_text = "prompts are the users' own words: no chat template was applied to them"
    parser.add_argument("--plain-text", action="store_true", help=plain_text)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    parser.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    return parser


def serve(kind: type[Rewarder], options: argparse.Namespace) -> None:
    """Serve rewards until stopped; what was not set has the rewarder's own default.

    Raises:
        DataError: see the rewarder; also if there is no endpoint, and an option is about one.
    """
    settings = {name: value for name, value in vars(options).items() if value is not None}
    for_endpoint = [name for name in ("retries", "served_name", "hidden_reasoning") if settings.get(name)]
    if for_endpoint and "endpoint" not in settings:
        raise DataError(f"{', '.join(for_endpoint)}: about a server, so give --endpoint")
    host, port, plain_text = settings.pop("host"), settings.pop("port"), settings.pop("plain_text")
    app = make_app(kind(**settings), plain_text)
    print(f"rewards for OpenRLHF at http://{host}:{port}/openrlhf, for slime at http://{host}:{port}/slime", flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("warning: whoever reaches this address can use the model, for there is no key", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")
