"""Answers of a served model: any OpenAI-compatible endpoint (vLLM, SGLang, a provider), many requests at once.

- The chat template is the server's, so conversations go out as messages and not as rendered prompts.
- A server behind a reasoning parser returns the reasoning apart from the rest. The two are put together again, so that
  one parser reads an answer in the same way, however its server was started.
- The client repeats what may pass (no connection, a timeout, 408, 409, 429, 5xx) after growing pauses. What still fails
  then ends everything: an empty text in its place would count as the judge's own answer.
- vLLM lets a checkpoint's generation_config.json (a repetition penalty, top-k) bend even greedy answers, unless it is
  started with `--generation-config vllm`.
"""

import asyncio
import json
import os

from openai import APIStatusError, AsyncOpenAI, OpenAIError
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from tqdm import tqdm

from common.conversation import Conversation
from common.generation import Answer


class EndpointError(RuntimeError):
    """An endpoint gave no answer. The text is for the user: which endpoint, which model, why."""


def connect(base_url: str, timeout: float = 600.0, retries: int = 6) -> AsyncOpenAI:
    """Return a client whose key is OPENAI_API_KEY's; a server that asks for none gets a dummy.

    Args:
        timeout: seconds for one request, waiting in the server's queue included.
        retries: of one request. Pauses grow from half a second to eight; six bridge about 20 seconds.
    """
    api_key = os.environ.get("OPENAI_API_KEY") or "none"
    return AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=retries)


def whole_answer(message: ChatCompletionMessage, begun: str = "") -> str:
    """Return reasoning and content as one text, as the model wrote it.

    Args:
        begun: what the chat template wrote of the answer into the prompt; a server's content does not hold it.
    """
    # two names, as vLLM renamed the field; neither is OpenAI's own
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    content = message.content or ""
    return f"<think>{reasoning}</think>{content}" if reasoning else begun + content


async def one(
    client: AsyncOpenAI,
    model: str,
    conversation: Conversation,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    begun: str = "",
) -> Answer:
    """Return one answer, whole; temperature 0 is greedy. Raise `EndpointError` where none comes."""
    asked = {"model": model, "messages": conversation, "max_tokens": max_new_tokens, "temperature": temperature}
    drawn = {"top_p": 1.0, "seed": seed} if temperature > 0 else {}
    place = f"{client.base_url} (model {model})"
    try:
        reply = await client.chat.completions.create(**asked, **drawn)
    except (OpenAIError, json.JSONDecodeError) as error:
        # the client says "Connection error." or "Error code: 500"; the cause has the rest
        cause = error.response.text[:500] if isinstance(error, APIStatusError) else error.__cause__ or ""
        raise EndpointError(f"{place}: {type(error).__name__}: {error} {cause}".strip()) from error
    # the client builds its objects without checking what they hold
    choices = reply.choices if isinstance(reply, ChatCompletion) and isinstance(reply.choices, list) else []
    message = getattr(choices[0], "message", None) if choices else None
    if not isinstance(message, ChatCompletionMessage) or not isinstance(message.content, str | None):
        raise EndpointError(f"{place}: expected a chat completion, found {str(reply)[:200]!r}")
    return Answer(whole_answer(message, begun), clipped=choices[0].finish_reason == "length")


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
    **connection: float,
) -> list[list[Answer]]:
    """Return `votes` answers to each conversation, with `concurrency` requests at once and a progress bar.

    Args:
        begun: for each conversation; see `whole_answer`.
        connection: see `connect`.
    """
    starts = begun or [""] * len(conversations)

    async def ask_all() -> list[Answer]:
        free = asyncio.Semaphore(concurrency)

        async def ask_one(conversation: Conversation, start: str, vote: int) -> Answer:
            async with free:  # each vote has a seed of its own: by the same one a server draws the same answer
                own = seed * votes + vote
                given = await one(client, model, conversation, max_new_tokens, temperature, own, start)
            progress.update()
            return given

        with tqdm(total=len(conversations) * votes, desc="judge", unit="answer", delay=1) as progress:
            async with connect(base_url, **connection) as client:
                asked = zip(conversations, starts)
                return await asyncio.gather(*(ask_one(*pair, vote) for pair in asked for vote in range(votes)))

    answers = asyncio.run(ask_all())
    return [answers[start : start + votes] for start in range(0, len(answers), votes)]
