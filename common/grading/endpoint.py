"""Answers of a served model: any OpenAI-compatible endpoint (vLLM, SGLang, a provider), many requests at once.

- The chat template is the server's, so conversations go out as messages and not as rendered prompts.
- A server behind a reasoning parser returns the reasoning apart from the rest. The two are put together again, so that
  one parser reads an answer in the same way, however its server was started. Some servers do not return the reasoning
  at all. The caller must say so (`hidden_reasoning`), or an answer without reasoning would pass for one with it.
- Some failures may pass: no connection, a timeout, 408, 409, 429, 5xx, a reply that cannot be read. Then the request is
  repeated after growing pauses. What still fails is an error: an empty text in its place would count as the judge's own
  answer. The client would repeat some of these by itself; here one count holds for all.
- vLLM lets a checkpoint's generation_config.json (a repetition penalty, top-k) change even greedy answers, unless it is
  started with `--generation-config vllm`.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping

import httpx
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.completion_usage import CompletionUsage
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tqdm import tqdm

from common.conversation import Conversation
from common.generation import Answer

TOP = 20  # tokens at a place whose log-probabilities are asked for; OpenAI and, by default, vLLM give no more


class EndpointError(RuntimeError):
    """An endpoint gave no answer. The text is for the user: which endpoint, which model, why."""


def connect(base_url: str, timeout: float = 600.0, retries: int = 6) -> AsyncOpenAI:
    """Return a client whose key is OPENAI_API_KEY's; a server that asks for none gets a dummy.

    Args:
        timeout: seconds for one request, waiting in the server's queue included.
        retries: of one request. Pauses grow from half a second to eight, or are as long as the server asks for; six
            bridge about 20 seconds.
    """
    api_key = os.environ.get("OPENAI_API_KEY") or "none"
    # no connection is kept: one that outlives its event loop, as after each asyncio.run, can never be closed
    http_client = DefaultAsyncHttpxClient(limits=httpx.Limits(max_keepalive_connections=0))
    return AsyncOpenAI(
        base_url=base_url, api_key=api_key, timeout=timeout, max_retries=retries, http_client=http_client
    )


def whole_answer(message: ChatCompletionMessage, begun: str = "", hidden_reasoning: bool = False) -> str:
    """Return reasoning and content as one text, as the model wrote it.

    Args:
        begun: what the chat template wrote of the answer into the prompt; a server's content does not hold it.
        hidden_reasoning: the server returns only what follows the reasoning, which then stands for an empty one.
    """
    # two names, as vLLM renamed the field; neither is OpenAI's own
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    content = message.content or ""
    if reasoning:
        return f"<think>{reasoning}</think>{content}"
    return f"<think></think>{content}" if hidden_reasoning and "</think>" not in content else begun + content


async def one(
    client: AsyncOpenAI,
    model: str,
    conversation: Conversation,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    begun: str = "",
    hidden_reasoning: bool = False,
    with_tokens: bool = False,
) -> Answer:
    """Return one answer, whole; temperature 0 is greedy. Raise `EndpointError` if none comes.

    Args:
        begun, hidden_reasoning: see `whole_answer`.
        with_tokens: with the log-probabilities of the likeliest tokens at each place; an error if there are none.
    """
    asked = {"model": model, "messages": conversation, "max_tokens": max_new_tokens, "temperature": temperature}
    drawn = {"top_p": 1.0, "seed": seed} if temperature > 0 else {}
    drawn |= {"logprobs": True, "top_logprobs": TOP} if with_tokens else {}
    found = await _send(client, model, lambda once: once.chat.completions.create(**asked, **drawn), _read_completion)
    reply = found.choices[0]
    answer = Answer(whole_answer(reply.message, begun, hidden_reasoning), clipped=reply.finish_reason == "length")
    answer.usage = _read_usage(found)
    if with_tokens:
        answer.tokens = _read_tokens(reply, f"{client.base_url} (model {model})")
    return answer


async def _send(client: AsyncOpenAI, model: str, request: Callable[[AsyncOpenAI], Awaitable], read: Callable):
    """Return what `read` makes of the reply to a request. If it makes None of it, the request is repeated.

    Raises:
        EndpointError: no reply came, or none that can be read, however often it was asked for.
    """
    retrying = AsyncRetrying(
        stop=stop_after_attempt(client.max_retries + 1),
        retry=retry_if_exception_type(_MayPass),
        wait=_pause,
        reraise=True,
    )
    place = f"{client.base_url} (model {model})"
    return await retrying(_send_once, client.with_options(max_retries=0), request, read, place)


async def _send_once(client: AsyncOpenAI, request: Callable, read: Callable, place: str):
    try:
        # the client's own limit is for each piece of a reply, so a reply that trickles would go on for ever
        reply = await asyncio.wait_for(request(client), client.timeout)
    except asyncio.TimeoutError:
        raise _MayPass(f"{place}: timed out: no whole reply in {client.timeout:g} s") from None
    except OpenAIError as error:
        # the client says "Connection error." or "Error code: 500"; the cause has the rest
        cause = error.response.text[:500] if isinstance(error, APIStatusError) else error.__cause__ or ""
        found = f"{place}: {type(error).__name__}: {error} {cause}".strip()
        if _is_final(error):
            raise EndpointError(found) from error
        raise _MayPass(found, _pause_asked_for(error)) from error
    except (ValueError, RecursionError) as error:  # a body that is not JSON, or cannot be read
        raise _MayPass(f"{place}: {type(error).__name__}: {error}") from error
    if (known := read(reply)) is None:
        raise _MayPass(f"{place}: the reply is not what was asked for: {str(reply)[:200]!r}")
    return known


class _MayPass(EndpointError):
    """What may be better at the next try, after `pause` seconds if the server asks for that."""

    def __init__(self, text: str, pause: float | None = None):
        super().__init__(text)
        self.pause = pause


def _pause(tried: RetryCallState) -> float:
    return tried.outcome.exception().pause or min(0.5 * 2 ** (tried.attempt_number - 1), 8)


def _is_final(error: OpenAIError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status_code < 500 and error.status_code not in (408, 409, 429)
    return not isinstance(error, APIConnectionError)


def _pause_asked_for(error: OpenAIError) -> float | None:
    """Return the seconds that a server asks to wait for; None if it names none, a date, or more than a minute."""
    headers = error.response.headers if isinstance(error, APIStatusError) else {}
    milliseconds = headers.get("retry-after-ms")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(headers.get("retry-after", 0))
    except ValueError:
        return None
    return seconds if 0 < seconds <= 60 else None


def _read_completion(reply: object) -> ChatCompletion | None:
    """Return a chat completion that has a message; the client builds its objects without checking what they hold."""
    choices = reply.choices if isinstance(reply, ChatCompletion) and isinstance(reply.choices, list) else []
    message = getattr(choices[0], "message", None) if choices else None
    if isinstance(message, ChatCompletionMessage) and isinstance(message.content, str | None):
        return reply
    return None


def _read_usage(reply: ChatCompletion) -> tuple[int, int] | None:
    """Return how many tokens of prompt and answer the server counted; None if it does not say so."""
    usage = reply.usage
    counted = (usage.prompt_tokens, usage.completion_tokens) if isinstance(usage, CompletionUsage) else ()
    return counted if counted and all(type(count) is int and count >= 0 for count in counted) else None


def _read_tokens(reply: Choice, place: str) -> list[tuple[str, dict[str, float]]]:
    """Return each token of a reply with the likeliest ones at its place; raise `EndpointError` if it has none."""
    tokens = getattr(reply.logprobs, "content", None)
    if not tokens and reply.message.content:
        raise EndpointError(f"{place}: the endpoint gives no log-probabilities, which soft verdicts are made of")
    return [
        (token.token, {token.token: token.logprob} | {one.token: one.logprob for one in token.top_logprobs or []})
        for token in tokens or []
    ]


async def classify(client: AsyncOpenAI, model: str, ids: list[int]) -> float:
    """Return the raw reward of a tokenised text, from the `/classify` of vLLM or SGLang.

    Token ids go out, not text: a server would put its special tokens in front of a text that has them already.

    Raises:
        EndpointError: no reward came.
    """
    # vLLM reads "input" and would put a sigmoid on a checkpoint without problem_type; SGLang reads "input_ids"
    body = {"model": model, "input": ids, "input_ids": ids, "use_activation": False}
    return await _send(client, model, lambda once: once.post("/classify", cast_to=object, body=body), _read_reward)


def _read_reward(reply: object) -> float | None:
    """Return the one number of a classifier's reply; None if there is not one, as of a classifier of several labels."""
    found = reply if isinstance(reply, dict) else {}
    if isinstance(found.get("data"), list) and len(found["data"]) == 1 and isinstance(found["data"][0], dict):
        found = found["data"][0]
    values = found.get("probs", found.get("embedding"))
    known = isinstance(values, list) and len(values) == 1 and type(values[0]) in (int, float)
    return float(values[0]) if known and abs(values[0]) <= sys.float_info.max else None


def ask(
    base_url: str,
    model: str,
    conversations: list[Conversation],
    max_new_tokens: int,
    temperature: float = 0.0,
    votes: int = 1,
    seed: int = 0,
    begun: list[str] | None = None,
    concurrency: int = 16,
    hidden_reasoning: bool = False,
    with_tokens: bool = False,
    known: Mapping[int, Answer] | None = None,
    keep: Callable[[int, Answer], None] = lambda number, answer: None,
    **connection: float,
) -> list[list[Answer]]:
    """Return `votes` answers to each conversation, with `concurrency` requests at once and a progress bar.

    Args:
        begun: for each conversation; see `whole_answer`.
        hidden_reasoning: see `whole_answer`.
        with_tokens: see `one`.
        known, keep: see `common.generation.answer_prompts`.
        connection: see `connect`.
    """
    starts = begun or [""] * len(conversations)
    answers = dict(known or {})
    left = [number for number in range(len(conversations) * votes) if number not in answers]

    async def ask_all() -> None:
        free = asyncio.Semaphore(concurrency)

        async def ask_one(number: int) -> None:
            asked, vote = divmod(number, votes)
            async with free:  # each vote has its own seed: by the same seed a server draws the same answer
                drawn = (temperature, seed * votes + vote)
                conversation, start = conversations[asked], starts[asked]
                how = (*drawn, start, hidden_reasoning, with_tokens)
                given = await one(client, model, conversation, max_new_tokens, *how)
            answers[number] = given
            keep(number, given)
            progress.update()

        total = len(conversations) * votes
        with tqdm(total=total, initial=len(answers), desc="judge", unit="answer", delay=1) as progress:
            async with connect(base_url, **connection) as client:
                await asyncio.gather(*map(ask_one, left))

    asyncio.run(ask_all())
    return [[answers[first + vote] for vote in range(votes)] for first in range(0, len(answers), votes)]
