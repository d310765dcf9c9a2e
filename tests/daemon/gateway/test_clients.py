# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd.client.Client and msgd.aio.Client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from msgd import (
    Broadcast,
    GatewayClosed,
    MalformedMessage,
    MessageTooLarge,
    MessageType,
    Messaging,
    NoSuchProcess,
    QueueFull,
    ReplyTimeout,
    SendStatus,
    aio,
)
from msgd.client import Client
from tests.support.daemons import PATIENCE, Place, end_process
from tests.support.harness import TEXT, Peer, Session, close, no_fd_leaks, send_many, take, take_data

TOO_LONG = r"^3072 bytes of data make a line of \d+; msgd:client line bytes is 4096 there"


def test_a_client(place: Place) -> None:
    msgd = place.msgd()
    with no_fd_leaks(), Client(place.gateway) as client, Peer(place.config) as peer:
        assert client.backend == place.config.messaging_type
        client.ping()
        client.ping(msgd.pid)
        client.register(TEXT, "PONG")
        assert client.send(peer.server_id, TEXT, b"\xff\0") is SendStatus.SENT
        (message,) = peer.call(take, 1)
        assert (message.data, message.src) == (b"\xff\0", client.server_id)
        assert client.receive(0) is None
        peer.call(send_many, client.server_id, [b"one", b"two"])
        assert select.select([client], [], [], PATIENCE)[0] == [client]
        for expected in (b"one", b"two"):
            received = client.receive(PATIENCE)
            assert received is not None
            assert (received.data, received.src, received.dst.pid) == (expected, peer.server_id, client.server_id.pid)
        assert {client.server_id, peer.server_id} <= set(client.processes())
        assert client.names()[f"msgd-connection-{os.geteuid()}"] == [client.server_id]
        assert client.send_all(TEXT, b"all") == Broadcast(2)
        assert peer.call(take_data, 1) == [b"all"]
        levels = client.request(msgd.pid, "REQ_DEBUGLEVEL")
        assert levels.data == b"all:3 msgd:3\n\0"
        client.deregister(TEXT)
        peer.call(send_many, client.server_id, [b"three"])
        client.ping()
        assert client.receive(0) is None


def test_errors_are_messagings(place: Place) -> None:
    place.configure("log level = 3", "msgd:max message size = 1K")
    msgd = place.msgd()
    with Client(place.gateway) as client, Peer(place.config) as peer:
        with pytest.raises(ReplyTimeout, match="did not answer"):
            client.request(peer.server_id, TEXT, b"", TEXT, timeout=0.05)
        with pytest.raises(MalformedMessage, match="'PANG' is not a message type"):
            client.send(msgd.pid, "PANG")
        peer.call(close)
        with pytest.raises(NoSuchProcess):
            client.send(peer.server_id, TEXT)
        with pytest.raises(MessageTooLarge):
            client.send(msgd.pid, "PING", bytes(1025))


def test_what_is_too_large_for_the_gateway_is_not_sent(place: Place) -> None:
    place.configure("log level = 3", "msgd:client line bytes = 4K", "msgd:max message size = 3K")
    place.msgd()

    async def send(data: bytes) -> SendStatus:
        async with aio.Client(place.gateway) as client:
            with pytest.raises(MessageTooLarge, match=TOO_LONG):
                await client.send(peer.server_id, TEXT, b"\xff" * 3072)
            return await client.send(peer.server_id, TEXT, data)

    with Client(place.gateway) as client, Peer(place.config) as peer:
        with pytest.raises(MessageTooLarge, match=r"3073 bytes of data; msgd:max message size is 3072 there"):
            client.send(peer.server_id, TEXT, bytes(3073))
        for ask in (client.send, partial(client.request, reply_type=TEXT)):
            with pytest.raises(MessageTooLarge, match=TOO_LONG):
                ask(peer.server_id, TEXT, b"\xff" * 3072)  # is longer in base64
        with pytest.raises(MessageTooLarge, match=TOO_LONG):
            client.send_all(TEXT, b"\xff" * 3072)
        assert client.send(peer.server_id, TEXT, b"x" * 3072) is SendStatus.SENT  # the connection lives on
        assert asyncio.run(send(b"y" * 3072)) is SendStatus.SENT
        assert peer.call(take_data, 2) == [b"x" * 3072, b"y" * 3072]


def test_the_last_word_is_raised(place: Place) -> None:
    place.msgd()
    with Client(place.gateway) as client, Client(place.gateway) as other:
        place.send(client.server_id.pid, MessageType.SHUTDOWN)
        for ask in (lambda: client.receive(PATIENCE), client.ping, client.processes):
            with pytest.raises(GatewayClosed, match=r"\(stopped\): SHUTDOWN from"):
                ask()
        end_process(other.server_id.pid, 9)
        with pytest.raises(GatewayClosed, match="has closed the connection"):
            other.ping()


def test_a_gateway_that_waits_for_us_to_read_is_read_from(place: Place) -> None:
    """Who only sends while messages pour in would wait for a gateway that waits for it."""
    place.configure("log level = 3", "msgd:client buffer bytes = 64K")
    place.msgd()
    with Client(place.gateway) as client:
        client.register(TEXT)
        for number in range(2000):
            client.send(client.server_id, TEXT, b"%04d" % number + b"x" * 1000, timeout=PATIENCE)
        for number in range(2000):
            message = client.receive(PATIENCE)
            assert message is not None
            assert message.data[:4] == b"%04d" % number


def test_what_is_no_gateway(scratch: Path) -> None:
    path = str(scratch / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()

        def babble() -> None:
            client = listening.accept()[0]
            with client:
                client.sendall(b"220 mail.example.org ESMTP\n")
                client.recv(1000)

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(MalformedMessage, match="not JSON"):
            Client(path)
        thread.join()
        with pytest.raises(ReplyTimeout, match="did not answer hello within"):
            Client(path, timeout=0.05)


@contextmanager
def crowded(scratch: Path) -> Iterator[socket.socket]:
    """Something that listens, and there is no room to wait for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(str(scratch / "socket"))
        listening.listen(0)
        waiting.connect(listening.getsockname())
        yield listening


async def enter(path: str, timeout: float) -> str:
    async with aio.Client(path, timeout=timeout) as client:
        return client.version


def enter_without_asyncio(path: str, timeout: float) -> str:
    with Client(path, timeout=timeout) as client:
        return client.version


ENTERING: dict[str, Callable[[str, float], str]] = {
    "client": enter_without_asyncio,
    "aio": lambda path, timeout: asyncio.run(enter(path, timeout)),
}
"""Both kinds of clients: what they do to come in."""


@pytest.mark.parametrize("kind", ENTERING)
def test_there_is_no_room_to_wait(scratch: Path, kind: str) -> None:
    refused = pytest.raises(GatewayClosed, match="the queue of clients that wait to be accepted stayed full")
    with no_fd_leaks(), crowded(scratch) as listening, refused:
        ENTERING[kind](listening.getsockname(), 0.05)


@pytest.mark.parametrize("kind", ENTERING)
def test_room_to_wait_is_waited_for(scratch: Path, kind: str) -> None:
    """A signal comes while there is none, and its handler lets in who waits."""
    hello = b'{"ok": true, "id": 1, "server_id": "1/2", "version": "here", "backend": "dgram", "limits": %s}\n'

    def serve() -> None:
        listening.accept()[0].close()
        with listening.accept()[0] as client:
            client.recv(1000)
            client.sendall(hello % b'{"line_bytes": 1, "message_bytes": 1}')

    with crowded(scratch) as listening:
        gateway = threading.Thread(target=serve, daemon=True)
        former = signal.signal(signal.SIGALRM, lambda *_: gateway.start())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert ENTERING[kind](listening.getsockname(), PATIENCE) == "here"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        gateway.join()


@pytest.mark.parametrize("steps", range(1, 5))
def test_closing_an_asyncio_client_can_be_cancelled(place: Place, steps: int) -> None:
    """Wherever that comes, it is not swallowed, and nothing is left open."""
    place.msgd()

    async def cancel() -> None:
        client = aio.Client(place.gateway)
        await client.__aenter__()
        closing = asyncio.create_task(client.__aexit__(None, None, None))
        for _ in range(steps):
            await asyncio.sleep(0)
        is_closed = closing.done()
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert closing.cancelled() != is_closed

    with no_fd_leaks():
        asyncio.run(cancel())


def test_an_asyncio_client(place: Place) -> None:
    msgd = place.msgd()

    async def talk(peer: Peer) -> None:
        async with aio.Client(place.gateway) as client:
            await client.register(TEXT)
            assert await client.receive(0) is None
            assert await client.send(peer.server_id, TEXT, b"text") is SendStatus.SENT
            await asyncio.gather(*(client.ping(msgd.pid) for _ in range(20)))
            with pytest.raises(NoSuchProcess):
                await client.send(99999999, TEXT)
            with pytest.raises(ReplyTimeout):
                await client.request(peer.server_id, TEXT, b"", TEXT, timeout=0.05)
            assert await client.send_all(TEXT, b"all") == Broadcast(2)
            assert peer.server_id in await client.processes()
            assert (await client.names())[f"msgd-connection-{os.geteuid()}"] == [client.server_id]
            assert await asyncio.to_thread(peer.call, take_data, 3) == [b"text", b"", b"all"]
            await asyncio.to_thread(peer.call, send_many, client.server_id, [b"one", b"two"])
            received = []
            async for message in client:
                received.append(message.data)
                if len(received) == 2:
                    break
            assert received == [b"one", b"two"]
            place.send(client.server_id.pid, MessageType.SHUTDOWN)
            with pytest.raises(GatewayClosed, match="SHUTDOWN from"):
                await client.receive()
            with pytest.raises(GatewayClosed, match="SHUTDOWN from"):
                await client.ping()

    with no_fd_leaks(), Peer(place.config) as peer:
        asyncio.run(talk(peer))


def test_an_asyncio_client_without_a_gateway(scratch: Path) -> None:
    async def connect() -> None:
        async with aio.Client(str(scratch / "nothing")):
            pass

    with pytest.raises(GatewayClosed, match=r"is msgd running\?"):
        asyncio.run(connect())


def test_the_configured_gateway(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.msgd()
    monkeypatch.setattr("msgd.config.config.DEFAULT_PATH", str(place.smb_conf))
    with Client() as client:
        client.ping()
    place.configure("msgd:listen =")
    with pytest.raises(GatewayClosed, match="there is no gateway"):
        Client()


def test_messaging_and_the_gateway_share_a_process(place: Place) -> None:
    place.msgd()
    with Messaging(place.config) as messaging, Client(place.gateway) as client:
        client.register(TEXT)
        messaging.send(client.server_id, TEXT, b"to myself")
        message = client.receive(PATIENCE)
        assert message is not None
        assert (message.data, message.src) == (b"to myself", messaging.server_id)


def test_cancelled_calls_make_room_for_others(place: Place) -> None:
    msgd = place.msgd()

    async def cancel_many(peer: Peer) -> None:
        async with aio.Client(place.gateway) as client:
            for _ in range(3):
                requests = (client.request(peer.server_id, TEXT, b"", TEXT, timeout=None) for _ in range(64))
                asked = [asyncio.create_task(request) for request in requests]
                await client.ping()  # all have been asked
                for task in asked:
                    task.cancel()
                ends = await asyncio.gather(*asked, return_exceptions=True)
                assert {type(end) for end in ends} == {asyncio.CancelledError}
            await client.ping(msgd.pid)

    with Peer(place.config) as peer:
        asyncio.run(cancel_many(peer))


def test_cancelled_sends_hold_up_nobody(place: Place) -> None:
    """They wait for room in the receiver's queue, one behind the other, and everything else waits behind them."""
    place.configure("log level = 3", "msgd:send queue messages = 10")
    place.msgd()

    async def cancel_many(peer: Peer) -> None:
        async with aio.Client(place.gateway) as client, asyncio.timeout(PATIENCE):
            for _ in range(10):
                await client.send(peer.server_id, TEXT, b"before" * 1000)
            with pytest.raises(QueueFull):
                await asyncio.gather(*(client.send(peer.server_id, TEXT, b"before" * 1000) for _ in range(400)))
            sending = [
                asyncio.create_task(client.send(peer.server_id, TEXT, b"cancelled", timeout=600)) for _ in range(64)
            ]
            behind = asyncio.create_task(client.names())
            await asyncio.sleep(0)  # all have been asked
            for task in sending:
                task.cancel()
            ends = await asyncio.gather(*sending, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}
            await behind
            await client.ping()

    with Peer(place.config) as peer:
        asyncio.run(cancel_many(peer))
        assert b"cancelled" not in peer.call(take_what_there_is)


def take_what_there_is(session: Session) -> list[bytes]:
    session.messaging.dispatch(0)
    return [message.data for message in session.messages]


def test_an_interrupted_call_makes_room_for_others(place: Place) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(signum: int, frame: object) -> None:
        raise Interrupt

    msgd = place.msgd()
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Client(place.gateway) as client, Peer(place.config) as peer:
            for _ in range(65):
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                with pytest.raises(Interrupt):
                    client.request(peer.server_id, TEXT, b"", TEXT, timeout=None)
            client.ping(msgd.pid)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
