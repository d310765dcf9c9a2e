# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""SIGUSR1 and the program's own loops, wake-up descriptor, exec and exit do not disturb each other."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from msgd import BackendUnavailable, Config, Message, Messaging, NoSuchProcess, QueueFull, ServerID
from msgd.aio import AsyncMessaging
from msgd.backends.tdb.doorbell import Doorbell
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    is_gone,
    send_many,
    take_data,
    wait_until_asleep,
)

ROUNDS = 200


def opening(config: Config, before: Callable[[], object] = lambda: None) -> Callable[[Channel], None]:
    """A child that calls `before()`, tries to open a context, and reports the outcome."""

    def body(channel: Channel) -> None:
        before()
        try:
            Messaging(config)
        except BackendUnavailable as error:
            channel.send(str(error))
        else:
            channel.send("open")

    return body


# Who owns the signal


def test_signal_belongs_to_the_program(config: Config) -> None:
    with Child(opening(config, lambda: signal.signal(signal.SIGUSR1, lambda *_: None))) as child:
        assert "SIGUSR1, which this program handles already" in child.hear()


def test_signal_belongs_to_an_event_loop(config: Config) -> None:
    def body(channel: Channel) -> None:
        async def main() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: channel.send("the loop's"))
            with pytest.raises(BackendUnavailable, match="SIGUSR1"):
                Messaging(config)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0)

        asyncio.run(main())

    with Child(body) as child:
        assert child.hear() == "the loop's"


def test_opened_outside_the_main_thread(config: Config) -> None:
    def body(channel: Channel) -> None:
        thread = threading.Thread(target=opening(config), args=(channel,))
        thread.start()
        thread.join()
        opening(config)(channel)

    with Child(body) as child:
        assert "main thread" in child.hear()
        assert child.hear() == "open", "the refused attempt is in the way of the next"


def receive_one(config: Config, before: Callable[[], object]) -> Callable[[Channel], None]:
    def body(channel: Channel) -> None:
        before()
        with Messaging(config) as messaging:
            received: list[bytes] = []
            messaging.register(TEXT, lambda message: received.append(message.data))
            channel.send(messaging.server_id)
            while not received:
                messaging.dispatch(None)
            channel.send(received)

    return body


@pytest.mark.parametrize("how", ["blocked", "ignored"])
def test_signal_blocked_or_ignored_by_the_parent(config: Config, messaging: Messaging, how: str) -> None:
    def before() -> None:
        if how == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        else:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    with Child(receive_one(config, before)) as child:
        dst = child.hear()
        wait_until_asleep(child.pid)
        messaging.send(dst, TEXT, b"wake up")
        assert child.hear() == [b"wake up"]


# After the end


def close_and_wait(session: Session) -> None:
    session.messaging.close()
    os.kill(os.getpid(), signal.SIGUSR1)


def test_signal_after_close(peer: Peer) -> None:
    peer.call(close_and_wait)
    os.kill(peer.pid, signal.SIGUSR1)
    peer.begin(say_alive)
    assert peer.hear() == "alive"


def say_alive(session: Session) -> str:
    return "alive"


LATE = """
import os, signal, sys
from msgd import Config, Messaging

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR1):
        kill(pid, number)  # while the interpreter goes down, as a sender does that does not know yet

late = Late()
messaging = Messaging(Config(lock_directory=sys.argv[1], messaging_type="tdb"))
messaging.fileno()
if sys.argv[2] == "close":
    messaging.close()
"""


@pytest.mark.parametrize("how", ["close", "leave open"])
def test_signal_while_the_interpreter_ends(config: Config, how: str) -> None:
    """Python restores the fatal default of SIGUSR1 before the process ends."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, config.lock_directory, how], timeout=PATIENCE, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def sleep_then_exec(config: Config) -> Callable[[Channel], None]:
    """A child whose context sleeps, and which then executes another program without closing anything."""

    def body(channel: Channel) -> None:
        messaging = Messaging(config)
        channel.send(messaging.server_id)
        channel.recv()
        messaging.dispatch()
        messaging.fileno()
        os.dup2(channel.fileno(), 0)
        os.dup2(channel.fileno(), 1)
        os.execv("/bin/cat", ["cat"])

    return body


def test_exec_of_the_receiver(config: Config, messaging: Messaging) -> None:
    """The process keeps its pid and loses its lock: it gets no signal, and senders get NoSuchProcess."""
    with Child(sleep_then_exec(config)) as child:
        dst = child.hear()
        messaging.send(dst, TEXT, b"hello")
        child.tell("exec")
        os.write(child.channel.fileno(), b"!")
        assert os.read(child.channel.fileno(), 1) == b"!", "the new program does not run"
        for _ in range(100):
            with contextlib.suppress(NoSuchProcess):
                messaging.send(dst, TEXT, b"is this still you?")
        assert is_gone(messaging, dst)
        assert is_gone(messaging, child.pid)
        os.write(child.channel.fileno(), b"!")
        assert os.read(child.channel.fileno(), 1) == b"!", "it was killed"


# Loops and wake-up descriptors


def receive_in_loop(config: Config, when: str) -> Callable[[Channel], None]:
    """A loop that takes ROUNDS messages one by one, with a signal handler of its own added `when`."""

    def body(channel: Channel) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            seen: list[int] = []
            if when == "before":
                loop.add_signal_handler(signal.SIGUSR2, seen.append, 1)
            messages: asyncio.Queue[Message] = asyncio.Queue()
            async with AsyncMessaging(config) as context:
                context.messaging.register(TEXT, messages.put_nowait)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if when == "after":
                    loop.add_signal_handler(signal.SIGUSR2, seen.append, 1)
                channel.send(context.messaging.server_id)
                async with asyncio.timeout(PATIENCE):
                    for number in range(ROUNDS):
                        message = await messages.get()
                        os.kill(os.getpid(), signal.SIGUSR2)
                        while len(seen) <= number:
                            await asyncio.sleep(0)
                        if when == "on and off":
                            loop.remove_signal_handler(signal.SIGUSR2)
                        await context.send(message.src, TEXT, message.data)
                        if when == "on and off":
                            loop.add_signal_handler(signal.SIGUSR2, seen.append, 1)

        asyncio.run(main())

    return body


def ping_one_by_one(messaging: Messaging, dst: ServerID) -> None:
    answers: list[bytes] = []
    messaging.register(TEXT, lambda message: answers.append(message.data))
    for number in range(ROUNDS):
        messaging.send(dst, TEXT, b"%d" % number)
        deadline = time.monotonic() + PATIENCE
        while len(answers) <= number:
            messaging.dispatch(PATIENCE)
            assert time.monotonic() < deadline, f"message {number} was slept through"
    assert answers == [b"%d" % number for number in range(ROUNDS)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_loop_with_signal_handlers(config: Config, messaging: Messaging, when: str) -> None:
    with Child(receive_in_loop(config, when)) as child:
        ping_one_by_one(messaging, child.hear())
        assert child.wait() == 0


def receive_with_own_descriptor(config: Config, when: str) -> Callable[[Channel], None]:
    def body(channel: Channel) -> None:
        with Messaging(config) as messaging:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
            if when == "before fileno":
                signal.set_wakeup_fd(write_fd)
            received: list[Message] = []
            messaging.register(TEXT, received.append)
            fileno = messaging.fileno()
            if when == "after fileno":
                signal.set_wakeup_fd(write_fd)
            channel.send(messaging.server_id)
            came = b""
            for number in range(ROUNDS):
                while len(received) <= number:
                    readable, _, _ = select.select([fileno, read_fd], [], [], PATIENCE)
                    assert readable, f"message {number} was slept through"
                    if read_fd in readable:
                        came += os.read(read_fd, 65536)
                    messaging.dispatch()
                messaging.reply(received[number], TEXT, received[number].data)
            assert signal.set_wakeup_fd(-1) == write_fd, "the program's own descriptor is not set any more"
            assert set(came) == {signal.SIGUSR1}

    return body


@pytest.mark.parametrize("when", ["before fileno", "after fileno"])
def test_programs_own_wakeup_descriptor(config: Config, messaging: Messaging, when: str) -> None:
    with Child(receive_with_own_descriptor(config, when)) as child:
        ping_one_by_one(messaging, child.hear())
        assert child.wait() == 0


class SignalledLate:
    """A select.poll() that gets the signal at the last moment: no Python code runs between the signal and the sleep."""

    woken = 0

    def __init__(self) -> None:
        self._real = REAL_POLL()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        pidfd = os.pidfd_open(os.getpid())
        steps: list[Callable[[], Any]] = [
            partial(signal.pidfd_send_signal, pidfd, signal.SIGUSR1),
            partial(self._real.poll, timeout),
        ]
        ready: list[tuple[int, int]]
        _, ready = map(operator.call, steps)
        os.close(pidfd)
        SignalledLate.woken += bool(ready)
        return ready


REAL_POLL = select.poll


@pytest.mark.parametrize("what", ["for a message", "for room"])
def test_signal_just_before_the_sleep(
    make_config: MakeConfig, start: StartPeer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It ends the sleep although the program has set its own wake-up descriptor."""
    full = start()
    with Messaging(make_config(send_queue_messages=1)) as messaging:
        with contextlib.suppress(QueueFull):
            while True:
                messaging.send(full.server_id, TEXT)
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(write_fd)
        monkeypatch.setattr(SignalledLate, "woken", 0)
        monkeypatch.setattr(select, "poll", SignalledLate)
        if what == "for a message":
            messaging._endpoint.backend.wait(PATIENCE)
        else:
            messaging._endpoint.backend.flush(PATIENCE)
        assert SignalledLate.woken == 1
        monkeypatch.undo()
        assert signal.set_wakeup_fd(-1) == write_fd
        os.close(read_fd)
        os.close(write_fd)


def test_no_signal_of_the_program_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that arrives while the doorbell has set its own wake-up descriptor is passed on to the program's."""
    real = signal.set_wakeup_fd
    arrived: list[int] = []

    def signalled_at_once(fd: int, *, warn_on_full_buffer: bool = True) -> int:
        previous = real(fd, warn_on_full_buffer=warn_on_full_buffer)
        if not arrived:
            arrived.append(fd)
            signal.raise_signal(signal.SIGUSR2)
        return previous

    def ignore(number: int, frame: FrameType | None) -> None: ...

    before = signal.signal(signal.SIGUSR2, ignore)
    doorbell = Doorbell()
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    try:
        real(write_fd)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "set_wakeup_fd", signalled_at_once)
            doorbell.arm()
        assert arrived != [write_fd]
        assert os.read(read_fd, 100) == bytes([signal.SIGUSR2])
    finally:
        real(-1)
        doorbell.close()
        signal.signal(signal.SIGUSR2, before)
        os.close(read_fd)
        os.close(write_fd)


def test_programs_wakeup_descriptor_that_is_closed(config: Config) -> None:
    """A program that closes its wake-up descriptor without unsetting it does not break dispatch."""
    with Messaging(config) as messaging:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(write_fd)
        os.close(read_fd)
        os.close(write_fd)
        messaging.dispatch(0.001)


# Children


def test_children_are_not_disturbed(messaging: Messaging, peer: Peer) -> None:
    """A forked child and one that executes a program survive while a sender sends their parent many signals."""
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    messaging.fileno()
    peer.begin(send_many, messaging.server_id, [b"%d" % number for number in range(2000)])
    with Child(lambda channel: channel.recv()) as forked, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        while len(received) < 2000:
            messaging.dispatch(None)
        assert peer.hear() is None
        assert other.poll() is None
        assert select.select([forked.channel], [], [], 0)[0] == []
        forked.tell("end")
        assert forked.wait() == 0
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait() == 0


def test_dispatch_in_another_thread(config: Config, messaging: Messaging) -> None:
    def body(channel: Channel) -> None:
        with Messaging(config) as context:
            received: list[Message] = []
            context.register(TEXT, received.append)
            channel.send(context.server_id)

            def work() -> None:
                for number in range(ROUNDS):
                    while len(received) <= number:
                        context.dispatch(None)
                    context.reply(received[number], TEXT, received[number].data)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    with Child(body) as child:
        ping_one_by_one(messaging, child.hear())
        assert child.wait() == 0


def test_second_directory_is_refused(messaging: Messaging, make_config: MakeConfig, scratch: Path) -> None:
    with pytest.raises(BackendUnavailable, match="another directory"):
        Messaging(make_config(lock_directory=str(scratch / "other")))
    messaging.register(TEXT, lambda message: None)
    messaging.send(messaging.server_id, TEXT)
    assert messaging.dispatch() == 1


def test_storm_of_signals(start: StartPeer) -> None:
    """Many senders signal at once: no signal kills the process, and none is lost."""
    receiver, senders = start(), [start() for _ in range(4)]
    for sender in senders:
        sender.begin(send_many, receiver.server_id, [b"%d" % number for number in range(500)])
    assert len(receiver.call(take_data, 2000)) == 2000
    for sender in senders:
        assert sender.hear() is None
