# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The names of 2006: each function of msgd.compat, against another process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, ContextClosed, ServerID, compat
from tests.support.harness import TEXT, Channel, Child, Peer, close, send_many, take_data


@pytest.fixture
def config(scratch: Path) -> Config:
    return Config(lock_directory=str(scratch / "lock"))


@pytest.fixture
def peer(config: Config) -> Iterator[Peer]:
    with Peer(config) as peer:
        yield peer


@pytest.fixture
def initialised(config: Config) -> Iterator[None]:
    assert compat.message_init(config)
    yield
    compat.message_end()


@pytest.mark.usefixtures("initialised")
def test_send_and_dispatch(peer: Peer) -> None:
    received: list[tuple[int, int, bytes, Any]] = []

    def take(msg_type: int, src: ServerID, data: bytes, private_data: Any) -> None:
        received.append((msg_type, src.pid, data, private_data))

    one, two = object(), object()
    compat.message_register(TEXT, take, one)
    compat.message_register(TEXT, take, two)
    context = compat._context()
    peer.call(send_many, context.server_id, [b"both"])
    while len(received) < 2:
        compat.message_dispatch()
    assert received == [(TEXT, peer.pid, b"both", one), (TEXT, peer.pid, b"both", two)]
    compat.message_deregister(TEXT, one)
    peer.call(send_many, context.server_id, [b"one"])
    while len(received) < 3:
        compat.message_dispatch()
    assert received[2:] == [(TEXT, peer.pid, b"one", two)]


@pytest.mark.usefixtures("initialised")
def test_what_sending_returns(peer: Peer) -> None:
    assert compat.message_send_pid(peer.pid, TEXT, b"one")
    assert compat.message_send_pid_with_timeout(peer.pid, TEXT, b"two", True, 1.0)
    assert compat.message_send_all(TEXT, b"three") == 1
    assert compat.messages_pending_for_pid(peer.pid) == 0
    assert peer.call(take_data, 3) == [b"one", b"two", b"three"]
    peer.call(close)
    assert not compat.message_send_pid(peer.pid, TEXT)
    assert compat.message_send_all(TEXT) == 0


def test_before_and_after(config: Config) -> None:
    with pytest.raises(ContextClosed, match=r"call message_init\(\) first"):
        compat.message_dispatch()
    compat.message_end()
    assert compat.message_init(config)
    assert compat.message_init(config), "a second call does nothing"
    compat.message_end()
    with pytest.raises(ContextClosed):
        compat.message_send_pid(1, TEXT)


def test_init_that_fails(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    (scratch / "file").write_text("")
    assert not compat.message_init(Config(lock_directory=str(scratch / "file")))
    assert "message_init: " in caplog.text
    assert "file" in caplog.text


@pytest.mark.usefixtures("initialised")
def test_a_forked_child_has_its_own_identity(peer: Peer) -> None:
    def body(channel: Channel) -> None:
        assert compat.message_init()
        channel.send((compat._context().server_id.pid, compat.message_send_pid(peer.pid, TEXT, b"child")))
        compat.message_end()

    with Child(body) as child:
        assert child.hear() == (child.pid, True)
    assert peer.call(take_data, 1) == [b"child"]
