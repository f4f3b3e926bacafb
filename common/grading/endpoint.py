"""Answers of a served model: any OpenAI-compatible endpoint (vLLM, SGLang, a provider), many requests at once.

- The chat template is the server's, so conversations go out as messages and not as rendered prompts.
- A server behind a reasoning parser returns the reasoning apart from the rest. The two are put together again, so that
  one parser reads an answer in the same way, however its server was started. Some servers keep the reasoning to
  themselves; that must be said (`hidden_reasoning`), or an answer without any would pass for one.
- What may pass is asked for again after growing pauses: no connection, a timeout, 408, 409, 429, 5xx, a reply that is
  none. What still fails then is an error: an empty text in its place would count as the judge's own answer. The client
  would repeat some of these by itself; here one count holds for all.
- vLLM lets a checkpoint's generation_config.json (a repetition penalty, top-k) bend even greedy answers, unless it is
  started with `--generation-config vllm`.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import httpx
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from tqdm import tqdm

from common.conversation import Conversation
from common.generation import Answer


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
) -> Answer:
    """Return one answer, whole; temperature 0 is greedy. Raise `EndpointError` where none comes.

    Args:
        begun, hidden_reasoning: see `whole_answer`.
    """
    asked = {"model": model, "messages": conversation, "max_tokens": max_new_tokens, "temperature": temperature}
    drawn = {"top_p": 1.0, "seed": seed} if temperature > 0 else {}
    reply = await _send(client, model, lambda once: once.chat.completions.create(**asked, **drawn), _read_message)
    return Answer(whole_answer(reply.message, begun, hidden_reasoning), clipped=reply.finish_reason == "length")


async def _send(client: AsyncOpenAI, model: str, request: Callable[[AsyncOpenAI], Awaitable], read: Callable):
    """Return what `read` makes of the reply to a request; None is no reply, so the request is repeated.

    Raises:
        EndpointError: no reply came, or none that can be read, however often it was asked for.
    """
    place, once = f"{client.base_url} (model {model})", client.with_options(max_retries=0)
    for pause in [*(min(0.5 * 2**retry, 8) for retry in range(client.max_retries)), None]:
        try:
            # the client's own limit is for each piece of a reply, so that a trickle would go on for ever
            reply = await asyncio.wait_for(request(once), client.timeout)
        except asyncio.TimeoutError:
            found = f"timed out: no whole reply in {client.timeout:g} s"
        except OpenAIError as error:
            # the client says "Connection error." or "Error code: 500"; the cause has the rest
            cause = error.response.text[:500] if isinstance(error, APIStatusError) else error.__cause__ or ""
            found = f"{type(error).__name__}: {error} {cause}".strip()
            if not _may_pass(error):
                raise EndpointError(f"{place}: {found}") from error
            pause = pause and (_pause_asked_for(error) or pause)
        except (ValueError, RecursionError) as error:  # a body that is no JSON, or none that can be read
            found = f"{type(error).__name__}: {error}"
        else:
            if (known := read(reply)) is not None:
                return known
            found = f"the reply is not what was asked for: {str(reply)[:200]!r}"
        if pause is not None:
            await asyncio.sleep(pause)
    raise EndpointError(f"{place}: {found}")


def _may_pass(error: OpenAIError) -> bool:
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, APIConnectionError)


def _pause_asked_for(error: OpenAIError) -> float | None:
    """Return the seconds that a server asks to wait for; None where it names none, a date, or more than a minute."""
    headers = error.response.headers if isinstance(error, APIStatusError) else {}
    milliseconds = headers.get("retry-after-ms")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(headers.get("retry-after", 0))
    except ValueError:
        return None
    return seconds if 0 < seconds <= 60 else None


def _read_message(reply: object) -> Choice | None:
    """Return the first choice of a chat completion; the client builds its objects without checking what they hold."""
    choices = reply.choices if isinstance(reply, ChatCompletion) and isinstance(reply.choices, list) else []
    message = getattr(choices[0], "message", None) if choices else None
    if isinstance(message, ChatCompletionMessage) and isinstance(message.content, str | None):
        return choices[0]
    return None


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
    """Return the one number of a classifier's reply; None where it is none, or a classifier of several labels."""
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
    **connection: float,
) -> list[list[Answer]]:
    """Return `votes` answers to each conversation, with `concurrency` requests at once and a progress bar.

    Args:
        begun: for each conversation; see `whole_answer`.
        hidden_reasoning: see `whole_answer`.
        connection: see `connect`.
    """
    starts = begun or [""] * len(conversations)

    async def ask_all() -> list[Answer]:
        free = asyncio.Semaphore(concurrency)

        async def ask_one(conversation: Conversation, start: str, vote: int) -> Answer:
            async with free:  # each vote has a seed of its own: by the same one a server draws the same answer
                own = seed * votes + vote
                given = await one(
                    client, model, conversation, max_new_tokens, temperature, own, start, hidden_reasoning
                )
            progress.update()
            return given

        with tqdm(total=len(conversations) * votes, desc="judge", unit="answer", delay=1) as progress:
            async with connect(base_url, **connection) as client:
                asked = zip(conversations, starts)
                return await asyncio.gather(*(ask_one(*pair, vote) for pair in asked for vote in range(votes)))

    answers = asyncio.run(ask_all())
    return [answers[start : start + votes] for start in range(0, len(answers), votes)]
