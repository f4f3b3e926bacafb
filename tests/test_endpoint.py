"""A served model's answers, from a real HTTP server in this process: whole, in order, and never an empty stand-in."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import AtOnce

from common.grading.endpoint import EndpointError, ask, connect, one
from generative_pointwise.prompt import parse, write

SCORE_3 = write(3, "all but one")


@contextmanager
def serve(reply):
    """Answer each request with `reply(request, number)`: a message or text, or (status, body), a body of text as is.

    Yields:
        The base URL, and the requests so far, each with its "path" and "key".
    """
    requests, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # a connection stays open for as long as its client wants

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append({**request, "key": self.headers["Authorization"], "path": self.path})
                number = len(requests)
            answer = reply(request, number)
            status, body = answer if isinstance(answer, tuple) else (200, completion(answer))
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if text.startswith("<") else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.send_header("retry-after-ms", "1")  # or the client would pause for half a second and longer
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def completion(message: dict | str, finish_reason: str = "stop") -> dict:
    """The body in which an OpenAI-compatible server answers."""
    message = message if isinstance(message, dict) else {"content": message}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def ask_once(url: str, **options) -> str:
    ((given,),) = ask(url, "judge", [user("Hi")], 8, **options)
    return given


# ---- what is asked, and in which order it comes back


def test_greedy_questions_hold_what_was_asked_and_no_seed(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(lambda request, _: request["messages"][-1]["content"] + "!") as (url, requests):
        dialogue = [{"role": "system", "content": "Be kind"}, *user("Hi")]
        assert ask(url, "judge", [dialogue], 17) == [["Hi!"]]
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        ask(url, "judge", [dialogue], 17)
    first, second = requests
    assert first.pop("path") == "/v1/chat/completions"
    assert first.pop("key") == "Bearer none"
    assert second["key"] == "Bearer secret"
    assert first == {"model": "judge", "messages": dialogue, "max_tokens": 17, "temperature": 0.0}


def test_answers_keep_the_order_of_the_questions_and_no_more_run_at_once_than_allowed():
    at_once = AtOnce()

    def reply(request, number):
        at_once.take(0.05 if number % 2 else 0.01)
        return f"{request['messages'][0]['content']}, {request['seed']}"

    with serve(reply) as (url, _):
        given = ask(url, "judge", [user(str(n)) for n in range(6)], 8, temperature=1.0, votes=2, seed=5, concurrency=3)
    assert given == [[f"{number}, 10", f"{number}, 11"] for number in range(6)]  # each vote with a seed of its own
    assert at_once.most == 3


def test_a_single_question_can_be_awaited():
    async def grade(url):
        async with connect(url) as client:
            return await one(client, "judge", user("Hi"), 8)

    with serve(lambda *_: SCORE_3) as (url, _):
        assert parse(asyncio.run(grade(url))) == 3


# ---- one text, however the server was started


@pytest.mark.parametrize(
    "message, begun",
    [
        ({"content": SCORE_3}, ""),
        ({"content": "all but one</think><score>3</score>"}, ""),  # the template put <think> into the prompt
        ({"content": "all but one</think><score>3</score>"}, "<think>\n"),
        ({"content": "<score>3</score>"}, "<think>\n\n</think>\n\n"),
        ({"content": "\n\n<score>3</score>", "reasoning_content": "\nall but one\n"}, ""),
        ({"content": "\n\n<score>3</score>", "reasoning": "\nall but one\n"}, ""),
        ({"content": "<score>3</score>", "reasoning": None, "reasoning_content": "all but one"}, "<think>\n"),
        ({"content": "<score>3</score>", "reasoning": ""}, "<think></think>"),
    ],
)
def test_a_verdict_is_read_alike_from_a_whole_and_from_a_split_answer(message, begun):
    """Traps 23 and 28."""
    with serve(lambda *_: message) as (url, _):
        assert parse(ask_once(url, begun=[begun])) == 3


def test_a_split_answer_is_the_whole_one():
    with serve(lambda *_: {"content": "\n\n<score>3</score>", "reasoning": "\nall but one\n"}) as (url, _):
        assert ask_once(url) == SCORE_3


@pytest.mark.parametrize(
    "message, text",
    [
        ({"content": None}, ""),
        ({"content": None, "reasoning": "I think so"}, "<think>I think so</think>"),
        ({"content": "<score>3</score>"}, "<score>3</score>"),  # no reasoning that anyone closed
        ({"content": "4", "reasoning": "<score>4</score>"}, "<think><score>4</score></think>4"),
    ],
)
def test_joining_invents_no_verdict(message, text):
    with serve(lambda *_: message) as (url, _):
        given = ask_once(url)
    assert given == text and parse(given) is None


@pytest.mark.parametrize("reason, clipped", [("length", True), ("stop", False)])
def test_an_answer_knows_whether_it_was_clipped(reason, clipped):
    with serve(lambda *_: (200, completion("<think>Hm", reason))) as (url, _):
        assert ask_once(url).clipped is clipped


# ---- failures


BUSY = {"error": "overloaded"}


@pytest.mark.parametrize(
    "failure",
    [(408, BUSY), (409, BUSY), (429, BUSY), (500, BUSY), (503, BUSY), (200, "<html>Bad gateway</html>"), (200, "null")],
    ids=str,
)
def test_what_passes_is_asked_again(failure):
    with serve(lambda _, number: SCORE_3 if number > 2 else failure) as (url, requests):
        assert ask_once(url, retries=2) == SCORE_3
    assert len(requests) == 3


def test_all_kinds_of_failure_count_together():
    failed, broken = (500, "restarting"), (200, "null")
    with serve(lambda _, number: failed if number % 3 else broken) as (url, requests), pytest.raises(EndpointError):
        ask_once(url, retries=4)
    assert len(requests) == 5


def test_what_does_not_pass_ends_everything_and_is_named():
    def reply(request, _):
        return (500, {"error": "out of memory"}) if request["messages"][0]["content"] == "7" else SCORE_3

    with serve(reply) as (url, requests), pytest.raises(EndpointError) as caught:
        ask(url, "judge", [user(str(number)) for number in range(20)], 8, concurrency=4, retries=2)
    assert [request["messages"][0]["content"] for request in requests].count("7") == 3
    assert url in str(caught.value) and "model judge" in str(caught.value) and "out of memory" in str(caught.value)


@pytest.mark.parametrize(
    "status, message, cause",
    [
        (400, "maximum context length is 4096", "BadRequestError.*length is 4096"),
        (401, "no key", "AuthenticationError.*no key"),
        (404, "no such model", "NotFoundError.*no such model"),
    ],
)
def test_what_asking_again_cannot_mend_is_not_asked_again(status, message, cause):
    error = (status, {"error": {"message": message}})
    with serve(lambda *_: error) as (url, requests), pytest.raises(EndpointError, match=cause):
        ask_once(url)
    assert len(requests) == 1


def test_a_refused_connection_is_named():
    with serve(lambda *_: "") as (url, _):
        pass
    with pytest.raises(EndpointError, match=rf"{url}/ .*APIConnectionError: .*attempts failed"):
        ask_once(url, retries=0)


def test_a_server_that_hangs_is_asked_again_and_then_named():
    with serve(lambda *_: time.sleep(1.5) or "") as (url, requests), pytest.raises(EndpointError, match="timed out"):
        ask_once(url, timeout=0.5, retries=1)  # on a busy machine a request alone may take 0.1 s
    assert len(requests) == 2


def test_a_reply_that_trickles_ends_at_the_timeout():
    async def trickle(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.05)

    async def grade():
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        await asyncio.wait_for(one(connect(url, timeout=0.3, retries=1), "judge", user("Hi"), 8), 20)

    with pytest.raises(EndpointError, match="no whole reply in 0.3 s"):
        asyncio.run(grade())


@pytest.mark.parametrize(
    "body",
    [
        "<html>Welcome to the proxy</html>",
        "not JSON",
        "",
        "null",
        "\0\0{}}",
        "[" * 100_000,
        '{"choices": ' + "1" * 5000 + "}",
        "[]",
        "{}",
        {"error": "no such model", "choices": None},
        {"choices": []},
        {"choices": {"0": "a"}},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": "<score>4</score>"}]},
        {"choices": [{"message": {"content": 4}}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": "<score>4</score>"}]}}]},
    ],
    ids=lambda body: str(body)[:60],
)
def test_a_reply_that_is_no_completion_is_no_answer(body):
    with serve(lambda *_: (200, body)) as (url, requests), pytest.raises(EndpointError, match=f"{url}/ .model judge"):
        ask_once(url, retries=1)
    assert len(requests) == 2
