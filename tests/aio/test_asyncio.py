# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""AsyncMessaging: handlers, inboxes, requests and surveys in an event loop, cancelled at any point, in any loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from msgd import Config, Message, Messaging, NoHandler, NoSuchProcess, QueueFull, ReplyTimeout
from msgd.aio import AsyncMessaging
from tests.backends.conftest import MakeConfig, StartPeer
from tests.messaging.test_requests import ANSWER, ASK, echo, hold_back
from tests.support.harness import PATIENCE, TEXT, Peer, Session, open_fds, send_many, serve

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def uvloop_run(main: Coroutine[Any, Any, Any]) -> Any:
    import uvloop

    return uvloop.run(main)


@pytest.fixture(params=[asyncio.run, uvloop_run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, variant: object) -> Run:
    """Plain asyncio and uvloop run the same tests."""
    chosen: Run = request.param
    return lambda main: chosen(within_patience(main))


async def within_patience(awaited: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await awaited


def test_async_handler_is_refused_where_it_would_never_run(messaging: Messaging) -> None:
    async def handler(message: Message) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=r"msgd\.aio"):
        messaging.register(TEXT, handler)


def test_handlers(config: Config, peer: Peer, run: Run) -> None:
    """Plain and async handlers get every message, in order."""
    texts = [b"%d" % number for number in range(500)]

    async def main() -> None:
        plain: list[bytes] = []
        awaited: list[bytes] = []

        async def handler(message: Message) -> None:
            await asyncio.sleep(0)
            awaited.append(message.data)

        async with AsyncMessaging(config) as messaging:
            messaging.register(TEXT, lambda message: plain.append(message.data))
            messaging.register(TEXT, handler, concurrency=1)
            peer.begin(send_many, messaging.server_id, texts)
            while len(awaited) < len(texts):
                await asyncio.sleep(0.001)
        assert plain == texts
        assert awaited == texts

    run(main())


def test_concurrency_is_bounded(config: Config, peer: Peer, run: Run) -> None:
    running, most = 0, 0

    async def main() -> None:
        done = 0

        async def handler(message: Message) -> None:
            nonlocal running, most, done
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            done += 1

        async with AsyncMessaging(config) as messaging:
            messaging.register(TEXT, handler, concurrency=5)
            peer.begin(send_many, messaging.server_id, [b"x"] * 200)
            while done < 200:
                await asyncio.sleep(0.001)

    run(main())
    assert most == 5


def test_raising_handlers_are_counted(config: Config, run: Run) -> None:
    async def main() -> None:
        async def handler(message: Message) -> None:
            raise LookupError("no")

        async with AsyncMessaging(config) as messaging:
            messaging.register(TEXT, handler)
            await messaging.send(messaging.server_id, TEXT)
            while messaging.statistics().handler_errors < 1:
                await asyncio.sleep(0.001)

    run(main())


def test_inbox(config: Config, peer: Peer, run: Run) -> None:
    """A slow reader makes senders wait; nothing is lost, and no more than its size is kept here."""
    texts = [b"%d" % number for number in range(3000)]

    async def main() -> None:
        got: list[bytes] = []
        async with AsyncMessaging(config) as messaging, messaging.messages(TEXT, maxsize=100) as inbox:
            peer.begin(send_many, messaging.server_id, texts)
            async for message in inbox:
                got.append(message.data)
                assert len(inbox) < 3000
                if len(got) == len(texts):
                    break
        assert got == texts

    run(main())


def test_concurrent_requests_get_their_own_answers(config: Config, peer: Peer, run: Run) -> None:
    peer.begin(hold_back, 2)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            answers = await asyncio.gather(
                *(messaging.request(peer.server_id, ASK, text, ANSWER, PATIENCE) for text in (b"one", b"two"))
            )
            assert [answer.data for answer in answers] == [b"one", b"two"]

    run(main())


def test_a_thousand_requests(config: Config, peer: Peer, run: Run) -> None:
    peer.begin(echo)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            texts = [b"%d" % number for number in range(1000)]
            asked = (messaging.request(peer.server_id, ASK, text, ANSWER, PATIENCE) for text in texts)
            assert [answer.data for answer in await asyncio.gather(*asked)] == texts

    run(main())


def test_request_that_cannot_be_answered(config: Config, start: StartPeer, run: Run) -> None:
    dying, serving = start(), start()
    serving.begin(serve)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            with pytest.raises(NoHandler):
                await messaging.request(serving.server_id, ASK, b"", ANSWER, None)
            with pytest.raises(ReplyTimeout):
                await messaging.request(dying.server_id, ASK, b"", ANSWER, 0.01)
            asking = asyncio.create_task(messaging.request(dying.server_id, ASK, b"", ANSWER, None))
            await asyncio.sleep(0)
            dying.kill()
            with pytest.raises(NoSuchProcess):
                await asking
            with pytest.raises(NoSuchProcess):
                await messaging.request(dying.server_id, ASK, b"", ANSWER, None)

    run(main())


def test_survey(config: Config, start: StartPeer, run: Run) -> None:
    answering, silent = [start() for _ in range(3)], start()
    for one in answering:
        one.begin(echo)
    silent.begin(serve)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            result = await messaging.survey(ASK, b"?", ANSWER, PATIENCE)
        assert set(result.answers) == {one.pid for one in answering}
        assert [type(error) for error in result.failures.values()] == [NoHandler]

    run(main())


def test_send_waits_for_room(make_config: MakeConfig, start: StartPeer, run: Run) -> None:
    config = make_config(send_queue_messages=10)
    peer = start(config)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            with contextlib.suppress(QueueFull):
                while True:
                    await messaging.send(peer.server_id, TEXT, b"x")
            with pytest.raises(QueueFull):
                await messaging.send(peer.server_id, TEXT, b"x", timeout=0.01)
            peer.begin(serve)
            await messaging.send(peer.server_id, TEXT, b"x", timeout=None)

    run(main())


def test_cancelling_leaves_nothing(config: Config, peer: Peer, run: Run) -> None:
    """A request, a send that waits, an inbox, a watch and aclose(), each cancelled after any number of steps."""

    async def cancelled(work: Coroutine[Any, Any, Any], steps: int) -> None:
        task = asyncio.create_task(work)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def read(messaging: AsyncMessaging) -> None:
        async with messaging.messages(TEXT) as inbox:
            async for _ in inbox:
                raise AssertionError

    async def open_and_close() -> None:
        async with AsyncMessaging(config) as other:
            await other.send(peer.server_id, TEXT, b"x")

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            await messaging.send(peer.server_id, TEXT)
            before = open_fds()
            for steps in range(8):
                await cancelled(messaging.request(peer.server_id, ASK, b"", ANSWER), steps)
                await cancelled(messaging.watch(peer.server_id), steps)
                await cancelled(read(messaging), steps)
                await cancelled(open_and_close(), steps)
                await cancelled(messaging.survey(ASK, b"", ANSWER), steps)
            assert open_fds() == before
            assert not len(messaging.messaging._endpoint.requests)
            assert not messaging.messaging.handlers.registered
            assert not messaging.messaging.handlers.expected
            assert not messaging._progress
            assert list(messaging.messaging._endpoint.contexts) == [0]

    run(main())
    assert not os.path.exists(f"{config.lock_directory}/msg.lock/{os.getpid()}")
    gc.collect()


def test_several_contexts_in_one_loop(config: Config, scratch_config: Config, run: Run) -> None:
    """Of one directory, and of two (tdb can be opened in one only)."""

    async def main() -> None:
        got: list[bytes] = []
        async with AsyncMessaging(config) as one, AsyncMessaging(config) as two:
            two.register(TEXT, lambda message: got.append(message.data))
            await one.send(two.server_id, TEXT, b"near")
            while not got:
                await asyncio.sleep(0.001)
            if config.messaging_type != "tdb":
                async with AsyncMessaging(scratch_config) as far:
                    far.register(TEXT, lambda message: got.append(message.data))
                    await far.send(far.server_id, TEXT, b"far")
                    while len(got) < 2:
                        await asyncio.sleep(0.001)

    run(main())


def test_loops_of_several_threads(config: Config, run: Run) -> None:
    """Each context's handlers run in its own loop, whichever loop dispatches, and the loops may leave in any order."""
    if config.messaging_type == "tdb":
        return  # it is opened in the main thread
    number, ready = 4, threading.Barrier(4, timeout=PATIENCE)

    async def main(index: int) -> None:
        got: list[tuple[bytes, int]] = []

        async def handler(message: Message) -> None:
            got.append((message.data, threading.get_ident()))

        async with AsyncMessaging(config, task_id=index) as messaging:
            messaging.register(TEXT, handler)
            await asyncio.to_thread(ready.wait)
            for other in range(number):
                await messaging.send(messaging.server_id._replace(task_id=other), TEXT, b"%d" % index)
            while len(got) < number:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(ready.wait)
        assert sorted(data for data, _ in got) == [b"%d" % one for one in range(number)]
        assert {thread for _, thread in got} == {threading.get_ident()}

    with ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(run, main(index)) for index in range(number)]:
            done.result()


def test_descriptors(config: Config, run: Run) -> None:
    """They are open until an async handler has returned, unless it takes them."""
    if config.messaging_type == "tdb":
        return
    kept: list[int] = []

    async def main() -> None:
        async def handler(message: Message) -> None:
            await asyncio.sleep(0)
            os.fstat(message.fds[0])
            if message.data == b"take":
                kept.extend(message.take_fds())
            kept.append(message.fds[0])

        async with AsyncMessaging(config) as messaging:
            messaging.register(TEXT, handler, concurrency=1)
            with open("/dev/null") as file:
                for text in (b"take", b"leave"):
                    await messaging.send(messaging.server_id, TEXT, text, fds=[file.fileno()])
            while len(kept) < 3:
                await asyncio.sleep(0.001)

    run(main())
    os.close(kept[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept[2])


def test_inbox_of_a_type_that_is_none(config: Config, run: Run) -> None:
    """It leaves no registration behind."""

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            with pytest.raises(ValueError, match="NOSUCHTYPE"):
                async with messaging.messages(TEXT, "NOSUCHTYPE", maxsize=1):
                    raise AssertionError
            assert not messaging.messaging.handlers.registered

    run(main())


def test_loop_that_ended_without_aclose(config: Config, run: Run) -> None:
    """The next loop takes over."""
    kept: list[AsyncMessaging] = []

    async def first() -> None:
        kept.append(AsyncMessaging(config))
        await kept[0].__aenter__()

    async def second() -> None:
        got: list[bytes] = []
        async with AsyncMessaging(config) as messaging:
            messaging.register(TEXT, lambda message: got.append(message.data))
            await messaging.send(messaging.server_id, TEXT, b"x")
            while not got:
                await asyncio.sleep(0.001)

    run(first())
    run(second())
    kept[0].messaging.close()


def test_handler_that_closes_its_context(config: Config, run: Run) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def handler(message: Message) -> None:
            await messaging.aclose()
            closed.set()

        messaging = AsyncMessaging(config)
        await messaging.__aenter__()
        messaging.register(TEXT, handler)
        await messaging.send(messaging.server_id, TEXT)
        async with asyncio.timeout(3):
            await closed.wait()

    run(main())


def test_survey_of_a_process_with_two_contexts(config: Config, peer: Peer, run: Run) -> None:
    """One of them answers: the other's having no handler does not count."""
    peer.begin(echo_in_the_second)

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            result = await messaging.survey(ASK, b"?", ANSWER, PATIENCE)
        assert {pid: answer.data for pid, answer in result.answers.items()} == {peer.pid: b"?"}

    run(main())


def echo_in_the_second(session: Session) -> None:
    """Answer in another context than the session's."""
    second = Messaging(session.config)
    second.register(ASK, lambda message: second.reply(message, ANSWER, message.data))
    serve(session)
