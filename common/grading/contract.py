"""What all graders share: OpenJudge's contract, calls gathered into batches, served models.

- A grader is called once per response, hundreds of calls at the same time. A model in this process takes whatever calls
  have gathered while it was busy as one batch; no call waits for others to come.
- What cannot be graded is a `GraderError` with its cause, never a number, and never ends the other calls. Only a fault
  of neither the input nor the endpoint (a missing argument, memory that runs out) is raised.
- OpenJudge's runner copies a grader for every call. A grader here keeps nothing of a call, so the copy is itself, and
  the model is loaded once.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
from openai import AsyncOpenAI

from common.conversation import BadRow, DataError, read_json, read_response
from common.grading.endpoint import EndpointError, connect

try:
    from openjudge.evaluation_strategy import BaseEvaluationStrategy  # noqa: F401
    from openjudge.graders.base_grader import BaseGrader
    from openjudge.graders.schema import GraderError, GraderMode, GraderRank, GraderResult, GraderScore  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}: graders need OpenJudge, `pip install -e '.[grader]'`") from error


class NoVerdict(ValueError):
    """A judge's answer without a well-formed verdict."""


class Grader(BaseGrader):
    """A grader whose `grade` returns a result or raises what becomes a `GraderError`."""

    async def _aevaluate(self, **evaluated: Any) -> GraderResult:
        try:
            return await self.grade(**evaluated)
        except BadRow as fault:
            return self._error(fault.told)
        except (NoVerdict, EndpointError) as fault:
            return self._error(str(fault))

    async def grade(self, **evaluated: Any) -> GraderResult:
        raise NotImplementedError

    def _error(self, error: str) -> GraderError:
        return GraderError(name=self.name, error=error, reason="not graded")

    def __deepcopy__(self, memo: dict) -> "Grader":
        return self


def read_several(responses: object) -> list[str]:
    """Return responses that can be ranked, also of JSON text; raise `BadRow` if they cannot."""
    responses = read_json("responses", responses)
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRow("responses", "expected a list of at least two texts", responses)
    return [read_response(response, "responses") for response in responses]


def rank_by(figures: list[float | None], what: str) -> tuple[list[int], str]:
    """Return each response's place by its figure, 1 the highest, and a sentence that says so.

    OpenJudge knows no shared places: equal figures stand in the given order, and the sentence says that.

    Raises:
        BadRow: a response has no figure, or all have the same, which is no order.
    """
    if None in figures:
        raise BadRow("responses", f"no {what} for response {figures.index(None) + 1}")
    if len(set(figures)) == 1:
        raise BadRow("responses", f"all have the same {what}, so there is no order", figures[0])
    order = sorted(range(len(figures)), key=lambda index: -figures[index])
    tied = len(set(figures)) < len(figures)
    note = "; of equal ones the first given comes first" * tied
    return [order.index(index) + 1 for index in range(len(figures))], f"by {what}{note}"


async def all_or_none(calls: Iterable[Awaitable]) -> list:
    """Return what all calls return; if one raises, the others are cancelled, because nobody would read them."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Batcher:
    """Gathers what is asked at the same time and passes it as one batch to a function, in its own thread."""

    def __init__(self, run: Callable[[list], list]):
        """`run` takes a list and returns a result for each of it."""
        self.run = run
        self.waiting: list[tuple[object, Future]] = []
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, "grader")

    async def submit(self, asked: object):
        """Return the result for what is asked, or raise what `run` raised; every call of its batch raises the same."""
        future: Future = Future()
        with self.lock:
            self.waiting.append((asked, future))
        # later: every call that is made at this moment asks first
        asyncio.get_running_loop().call_soon(self.thread.submit, self._run_waiting)
        return await asyncio.wrap_future(future)

    def _run_waiting(self) -> None:
        with self.lock:
            taken, self.waiting = self.waiting, []
        batch = [(asked, future) for asked, future in taken if future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            for (_, future), result in zip(batch, self.run([asked for asked, _ in batch]), strict=True):
                future.set_result(result)
        except Exception as error:  # every caller gets it; else they would wait for ever
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


class Endpoint:
    """A client per event loop, since connections belong to one, and a limit on requests at once."""

    def __init__(self, base_url: str, concurrency: int, **connection: float):
        """See `common.grading.endpoint.connect` for `connection`.

        Raises:
            DataError: with these settings no request would ever be made.
        """
        if concurrency < 1 or connection.get("retries", 0) < 0 or connection.get("timeout", 1) <= 0:
            found = f"concurrency={concurrency}, " + ", ".join(f"{name}={value}" for name, value in connection.items())
            raise DataError(f"{found}: expected at least 1, a timeout above 0, retries of at least 0")
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise DataError(f"endpoint {base_url!r}: expected http://host:port, or https://…")
        self.base_url, self.concurrency, self.connection = base_url, concurrency, connection
        self.clients: dict[asyncio.AbstractEventLoop, tuple[AsyncOpenAI, asyncio.Semaphore]] = {}

    async def call(self, request: Callable[[AsyncOpenAI], Awaitable]):
        """Return what `request` returns, made with this loop's client when it is its turn."""
        loop = asyncio.get_running_loop()
        if loop not in self.clients:
            for closed in [other for other in list(self.clients) if other.is_closed()]:
                self.clients.pop(closed, None)
            self.clients[loop] = connect(self.base_url, **self.connection), asyncio.Semaphore(self.concurrency)
        client, free = self.clients[loop]
        async with free:
            return await request(client)
