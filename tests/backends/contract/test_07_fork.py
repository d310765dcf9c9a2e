# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 7, fork: a context in a forked child raises ForkedContext; reinit() gives the child its own identity."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, ForkedContext, Message, MessageClass, MessageType, Messaging, ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    dispatch_until,
    drain,
    fill,
    is_gone,
    open_fds,
    take_data,
)

MESSAGE = Message(TEXT, ServerID(1), ServerID(1), b"")

USES: dict[str, Callable[[Messaging], object]] = {
    "add_name": lambda messaging: messaging.add_name("name"),
    "begin_request": lambda messaging: messaging.begin_request(1, TEXT, b"", TEXT, print).__enter__(),
    "clean_up": lambda messaging: messaging.clean_up(),
    "close": lambda messaging: messaging.close(),
    "deregister": lambda messaging: messaging.deregister(TEXT),
    "dispatch": lambda messaging: messaging.dispatch(),
    "fileno": lambda messaging: messaging.fileno(),
    "is_alive": lambda messaging: messaging.is_alive(1),
    "listen": lambda messaging: messaging.listen(MessageClass.ALL),
    "lookup": lambda messaging: messaging.lookup("name"),
    "nodes": lambda messaging: messaging.nodes(),
    "names": lambda messaging: messaging.names(),
    "observe": lambda messaging: messaging.observe(None),
    "pending": lambda messaging: messaging.pending(1),
    "processes": lambda messaging: messaging.processes(),
    "register": lambda messaging: messaging.register(TEXT, print),
    "remove_name": lambda messaging: messaging.remove_name("name"),
    "reply": lambda messaging: messaging.reply(MESSAGE, TEXT),
    "request": lambda messaging: messaging.request(1, TEXT, b"", TEXT),
    "send": lambda messaging: messaging.send(messaging.server_id, TEXT),
    "send_all": lambda messaging: messaging.send_all(TEXT),
    "send_to_other_nodes": lambda messaging: messaging.send_to_other_nodes(TEXT),
    "send_all_many": lambda messaging: messaging.send_all_many([(TEXT, b"one")]),
    "start": lambda messaging: messaging.start(),
    "statistics": lambda messaging: messaging.statistics(),
    "stop": lambda messaging: messaging.stop(),
    "survey": lambda messaging: messaging.survey(TEXT, b"", TEXT),
    "watch": lambda messaging: messaging.watch(1),
}
NOT_USES = {"reinit"}
"""The methods that a forked child may call."""


def test_uses_list_every_method() -> None:
    methods = {name for name in dir(Messaging) if not name.startswith("_") and callable(getattr(Messaging, name))}
    assert methods == USES.keys() | NOT_USES


def attempt(messaging: Messaging, name: str, channel: Channel) -> None:
    try:
        channel.send(repr(USES[name](messaging)))
    except ForkedContext as error:
        channel.send(str(error))


@pytest.mark.parametrize("name", USES)
def test_forked_context(messaging: Messaging, name: str) -> None:
    with Child(lambda channel: attempt(messaging, name, channel)) as child:
        assert child.hear() == (
            f"this context belongs to pid {os.getpid()}, which forked this one; call reinit() in the child"
        )
    received: list[Message] = []
    messaging.register(TEXT, received.append)
    messaging.send(messaging.server_id, TEXT, b"the parent is unaffected")
    assert messaging.dispatch() == 1


def test_leaving_the_with_block_in_the_child(config: Config) -> None:
    """A child that leaves its parent's with block does not remove the parent's files."""
    with Messaging(config) as messaging:
        parent = os.getpid()

        def body(channel: Channel) -> None:
            messaging.__exit__(None, None, None)
            channel.send("out")

        with Child(body) as child:
            assert child.hear() == "out"
            assert child.wait() == 0
        assert [process.pid for process in messaging.processes()] == [parent]
        messaging.register(TEXT, lambda message: None)
        messaging.send(parent, TEXT)
        assert messaging.dispatch() == 1


def take_after_reinit(messaging: Messaging, received: list[Message], channel: Channel) -> None:
    messaging.reinit()
    channel.send(messaging.server_id)
    dispatch_until(messaging, lambda: received)
    messaging.reply(received[0], TEXT, b"answer")
    channel.send(received[0].data)
    channel.recv()
    channel.send(messaging.close())


def test_reinit(messaging: Messaging, peer: Peer) -> None:
    """The child has its own server id, and its parent's handlers."""
    received: list[Message] = []
    messaging.register(TEXT, received.append)
    with Child(lambda channel: take_after_reinit(messaging, received, channel)) as child:
        child_id: ServerID = child.hear()
        assert child_id.pid == child.pid
        assert child_id.unique_id != messaging.server_id.unique_id
        assert {one.pid for one in messaging.processes()} == {child.pid, peer.pid, os.getpid()}
        messaging.send(child_id, TEXT, b"question")
        assert child.hear() == b"question"
        dispatch_until(messaging, lambda: received)
        assert [(message.src, message.data) for message in received] == [(child_id, b"answer")]
        child.tell("close")
        assert child.hear() == 0
        assert is_gone(messaging, child_id)
        assert child.wait() == 0
    assert messaging.is_alive(messaging.server_id)
    messaging.send(peer.server_id, TEXT, b"still me")
    assert peer.call(take_data, 1) == [b"still me"]


def test_reinit_without_fork(messaging: Messaging) -> None:
    before = messaging.server_id
    messaging.reinit()
    assert messaging.server_id == before


def test_reinit_that_fails_can_be_repeated(config: Config, messaging: Messaging) -> None:
    """After a failed reinit() the context is that of a forked child as before, and not half open."""
    directory = Path(config.lock_directory)

    def body(channel: Channel) -> None:
        outcomes: list[Any] = []
        directory.chmod(0o777)
        for _ in range(2):
            try:
                messaging.reinit()
            except Exception as error:  # noqa: BLE001  # the test checks its type
                outcomes.append(type(error).__name__)
        try:
            messaging.send(1, TEXT)
        except Exception as error:  # noqa: BLE001
            outcomes.append(type(error).__name__)
        directory.chmod(0o755)
        messaging.reinit()
        outcomes.append(messaging.server_id.pid == os.getpid())
        channel.send(outcomes)

    with Child(body) as child:
        assert child.hear() == ["UnsafeDirectory", "UnsafeDirectory", "ForkedContext", True]


def test_reinit_gives_all_contexts_of_the_process_their_identity(config: Config, messaging: Messaging) -> None:
    with Messaging(config) as second:

        def body(channel: Channel) -> None:
            second.reinit()
            received: list[Message] = []
            second.register(TEXT, received.append)
            messaging.send(second.server_id, TEXT, b"from task to task")
            dispatch_until(messaging, lambda: received)
            channel.send((messaging.server_id, second.server_id, received[0].src))

        with Child(body) as child:
            first_id, second_id, src = child.hear()
            assert first_id == src == ServerID(child.pid, 0, unique_id=second_id.unique_id)
            assert second_id.task_id == 1


def test_new_context_in_the_child(config: Config, messaging: Messaging) -> None:
    """The child opens a context without reinit(), as code does that knows nothing of its parent's context."""

    def body(channel: Channel) -> None:
        with Messaging(config) as own:
            channel.send(own.server_id)
            own.register(TEXT, lambda message: channel.send(message.data))
            own.dispatch(None)

    with Child(body) as child:
        child_id = child.hear()
        messaging.send(child_id, TEXT, b"hello")
        assert child.hear() == b"hello"


def test_reinit_beside_a_new_context(config: Config, messaging: Messaging) -> None:
    """A child that opens a context and then calls reinit() has one endpoint: fcntl locks are per process."""

    def body(channel: Channel) -> None:
        received: list[bytes] = []
        with Messaging(config, task_id=7) as own:
            messaging.reinit()
            own.register(TEXT, lambda message: received.append(message.data))
            messaging.register(TEXT, lambda message: received.append(message.data))
            channel.send((messaging.server_id, own.server_id))
            dispatch_until(own, lambda: len(received) == 2)
            channel.send(received)
            messaging.close()
            channel.send([process.pid for process in own.processes()])
            channel.recv()

    with Child(body) as child:
        again, own = child.hear()
        assert (again.task_id, own.task_id) == (0, 7)
        assert again.unique_id == own.unique_id
        messaging.send(own, TEXT, b"to the new one")
        messaging.send(again, TEXT, b"to the old one")
        assert child.hear() == [b"to the new one", b"to the old one"]
        assert child.pid in child.hear()
        assert messaging.is_alive(own)


def stay(channel: Channel) -> None:
    channel.send("here")
    signal.pause()


def fork_and_tell(session: Session) -> int:
    """Leave a child behind that never touches the context; its pid."""
    child = Child(stay, orphan=True)
    assert child.hear() == "here"
    session.kept.append(child)
    return child.pid


@pytest.mark.parametrize("talked_before", [False, True])
def test_child_does_not_keep_its_parents_endpoint(messaging: Messaging, peer: Peer, talked_before: bool) -> None:
    """Senders see at once that the parent is dead, though its child lives."""
    if talked_before:
        messaging.send(peer.server_id, TEXT, b"hello")
        assert peer.call(take_data, 1) == [b"hello"]
    watched = os.pidfd_open(peer.call(fork_and_tell))
    try:
        peer.kill()
        assert is_gone(messaging, peer.server_id)
        assert messaging.clean_up() == [peer.pid]
        assert select.select([watched], [], [], 0) == ([], [], []), "the child is dead: nothing was tested"
    finally:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        select.select([watched], [], [], PATIENCE)
        os.close(watched)


def test_child_has_none_of_its_parents_descriptors(config: Config, peer: Peer) -> None:
    """But those that it gets from elsewhere."""
    without = open_fds()
    with Messaging(config) as messaging:
        messaging.send(peer.server_id, TEXT, b"hello")
        own = open_fds() - without
        with Child(lambda channel: channel.send(open_fds())) as child:
            assert own
            assert not own & child.hear()


def test_messages_queued_by_the_parent_are_not_sent_by_the_child(messaging: Messaging, peer: Peer) -> None:
    filled = fill(messaging, peer.server_id)
    with Child(lambda channel: reinit_and_close(messaging, channel)) as child:
        assert child.hear() == 0
    peer.begin(take_data, len(filled) + 1)
    messaging.send(peer.server_id, TEXT, b"last")
    drain(messaging)
    assert peer.hear() == [*filled, b"last"]


def reinit_and_close(messaging: Messaging, channel: Channel) -> None:
    messaging.reinit()
    channel.send(messaging.close())


def test_fork_in_a_handler(messaging: Messaging, peer: Peer) -> None:
    """Both come out of the dispatch; the child's next is ForkedContext, the parent has the next message."""
    children: list[Child] = []
    received: list[bytes] = []

    def after(channel: Channel) -> None:
        try:
            messaging.dispatch()
        except ForkedContext:
            channel.send("forked")

    def handler(message: Message) -> None:
        received.append(message.data)
        if not children:
            children.append(Child(after))

    messaging.register(TEXT, handler)
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    assert messaging.dispatch() == 2
    [child] = children
    with child:
        assert child.hear() == "forked"
    assert received == [b"one", b"two"]


def test_prefork_server(messaging: Messaging, start: StartPeer) -> None:
    """A master with workers that reinit: everybody answers, each for itself."""

    def worker(channel: Channel) -> None:
        messaging.reinit()
        channel.send(messaging.server_id)
        while True:
            messaging.dispatch(None)

    workers = [Child(worker) for _ in range(5)]
    try:
        ids = [one.hear() for one in workers]
        for server_id in ids:
            answer = messaging.request(server_id, MessageType.PING, b"hi", MessageType.PONG)
            assert answer.src == server_id
    finally:
        for one in workers:
            one.kill()
    assert sorted(messaging.clean_up()) == sorted(one.pid for one in workers)
