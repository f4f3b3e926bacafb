"""What graders share: batches that form by themselves, and a client per event loop."""

import asyncio
import threading

import pytest

from common.grading.contract import Batcher, Endpoint


class Doubling:
    """Doubles numbers, notes each batch, and holds a batch back until it is released."""

    def __init__(self, held: bool = False):
        self.batches, self.running, self.released = [], threading.Event(), threading.Event()
        if not held:
            self.released.set()

    def __call__(self, asked: list) -> list:
        self.batches.append(list(asked))
        self.running.set()
        assert self.released.wait(10)
        if None in asked:
            raise RuntimeError("out of memory")
        return [2 * number for number in asked]

    async def until_running(self) -> None:
        while not self.running.is_set():
            await asyncio.sleep(0.001)


async def ask_all(batcher: Batcher, asked: list) -> list:
    return await asyncio.gather(*map(batcher.submit, asked), return_exceptions=True)


# ---- batches


def test_calls_of_one_moment_are_one_batch_and_get_their_own_results():
    run = Doubling()
    assert asyncio.run(ask_all(Batcher(run), list(range(200)))) == [2 * number for number in range(200)]
    assert run.batches == [list(range(200))]


def test_calls_that_come_while_a_batch_runs_are_the_next_one():
    run = Doubling(held=True)
    batcher = Batcher(run)

    async def in_three_waves() -> list:
        first = asyncio.ensure_future(batcher.submit(1))
        await run.until_running()
        second, third = (asyncio.ensure_future(ask_all(batcher, numbers)) for numbers in ([2, 3], [4]))
        await asyncio.sleep(0.02)
        run.released.set()
        return [await first, *await second, *await third]

    assert asyncio.run(in_three_waves()) == [2, 4, 6, 8]
    assert run.batches == [[1], [2, 3, 4]]


def test_a_lone_call_waits_for_nobody():
    run = Doubling()
    batcher = Batcher(run)

    async def one_by_one() -> list:
        return [await batcher.submit(number) for number in range(5)]

    assert asyncio.run(one_by_one()) == [0, 2, 4, 6, 8]
    assert run.batches == [[0], [1], [2], [3], [4]]


def test_an_exception_reaches_every_caller_of_its_batch_and_none_of_the_next():
    run = Doubling()
    batcher = Batcher(run)

    async def a_bad_batch_and_a_good_one() -> tuple[list, list]:
        return await ask_all(batcher, [1, None, 3]), await ask_all(batcher, [4, 5])

    bad, good = asyncio.run(a_bad_batch_and_a_good_one())
    assert [(type(error), str(error)) for error in bad] == [(RuntimeError, "out of memory")] * 3
    assert good == [8, 10] and run.batches == [[1, None, 3], [4, 5]]


def test_too_few_results_are_an_error_for_who_got_none_and_not_a_wait_for_ever():
    batcher = Batcher(lambda asked: asked[:1])
    first, *others = asyncio.run(asyncio.wait_for(ask_all(batcher, [1, 2, 3]), 10))
    assert first == 1 and [type(error) for error in others] == [ValueError] * 2


def test_a_call_that_is_cancelled_while_it_waits_is_not_run():
    run = Doubling(held=True)
    batcher = Batcher(run)

    async def cancel_one_of_three() -> list:
        first = asyncio.ensure_future(batcher.submit(1))
        await run.until_running()
        cancelled, last = (asyncio.ensure_future(batcher.submit(number)) for number in (2, 3))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        await asyncio.sleep(0)
        run.released.set()
        return await asyncio.gather(first, cancelled, last, return_exceptions=True)

    first, cancelled, last = asyncio.run(cancel_one_of_three())
    assert (first, type(cancelled), last) == (2, asyncio.CancelledError, 6)
    assert run.batches == [[1], [3]]


def test_a_call_that_is_cancelled_while_its_batch_runs_does_not_break_the_others():
    run = Doubling(held=True)
    batcher = Batcher(run)

    async def cancel_one_of_three() -> list:
        calls = [asyncio.ensure_future(batcher.submit(number)) for number in (1, 2, 3)]
        await run.until_running()
        calls[0].cancel()
        await asyncio.sleep(0)
        run.released.set()
        return [*await asyncio.gather(*calls, return_exceptions=True), await batcher.submit(4)]

    cancelled, *others = asyncio.run(cancel_one_of_three())
    assert type(cancelled) is asyncio.CancelledError and others == [4, 6, 8]


# ---- event loops


def test_event_loops_one_after_another_share_a_batcher():
    batcher = Batcher(Doubling())
    assert [asyncio.run(ask_all(batcher, [number, number + 1])) for number in range(3)] == [[0, 2], [2, 4], [4, 6]]


def test_event_loops_in_threads_get_their_own_results():
    batcher, found = Batcher(Doubling()), {}

    def ask_from(number: int) -> None:
        found[number] = [asyncio.run(ask_all(batcher, list(range(number, number + 20)))) for _ in range(5)]

    threads = [threading.Thread(target=ask_from, args=[100 * number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = {start: [[2 * number for number in range(start, start + 20)]] * 5 for start in (0, 100, 200, 300)}
    assert found == expected


@pytest.mark.parametrize("moment", ["asked for", "running"])
def test_a_loop_that_was_closed_with_calls_waiting_does_not_block_the_next(moment):
    run = Doubling(held=True)
    batcher, loop = Batcher(run), asyncio.new_event_loop()
    left = [loop.create_task(batcher.submit(number)) for number in (1, 2)]
    loop.run_until_complete(run.until_running() if moment == "running" else asyncio.sleep(0))
    loop.close()
    run.released.set()
    assert asyncio.run(asyncio.wait_for(ask_all(batcher, [3, 4]), 10)) == [6, 8]
    assert not any(task.done() for task in left)


def test_an_endpoint_has_a_client_per_loop_and_forgets_those_of_closed_ones():
    endpoint = Endpoint("http://127.0.0.1:1/v1", 2, timeout=3.0, retries=4)

    async def own_client(client):
        return client

    async def two_calls() -> list:
        return [await endpoint.call(own_client), *await asyncio.gather(endpoint.call(own_client))]

    clients = [asyncio.run(two_calls()) for _ in range(3)]
    assert all(first is second for first, second in clients)
    assert len({id(client) for client, _ in clients}) == 3
    assert [client for client, _ in endpoint.clients.values()] == [clients[-1][0]]
    client = clients[0][0]
    assert (str(client.base_url), client.timeout, client.max_retries) == ("http://127.0.0.1:1/v1/", 3.0, 4)
