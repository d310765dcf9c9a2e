# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How a context's life ends, by itself too: exit without close, fork beside threads, green threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from msgd import Config, ForkedContext, Message, Messaging
from tests.support.harness import PATIENCE, TEXT, Child, Peer, fill, no_fd_leaks

PREAMBLE = """
import os, sys, threading
from msgd import Config, Messaging
config = Config(**CONFIG)
"""


def run_program(config: Config, body: str, *, python: tuple[str, ...] = (), expect: int = 0) -> str:
    """Run a program with the configuration; what it has written to stdout and stderr."""
    names = ("lock_directory", "messaging_type", "use_mmap", "tdb_mutexes")
    chosen = {name: getattr(config, name) for name in names}
    code = PREAMBLE.replace("CONFIG", repr(chosen)) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, *python, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


def entries(config: Config) -> set[str]:
    """The files of processes in the directory."""
    root = Path(config.lock_directory)
    return {path.name for kind in ("msg.lock", "msg.sock") for path in (root / kind).iterdir()}


def test_exit_without_close(config: Config) -> None:
    """The endpoint goes away by itself, and the program is told."""
    output = run_program(config, "messaging = Messaging(config)", python=("-W", "default"))
    assert entries(config) == set()
    assert "ResourceWarning: unclosed messaging context" in output


def test_exit_by_an_exception(config: Config) -> None:
    output = run_program(config, "messaging = Messaging(config); raise LookupError('mine')", expect=1)
    assert "LookupError: mine" in output
    assert entries(config) == set()


@pytest.mark.parametrize("end", ["os._exit(0)", "os.execv('/bin/true', ['true'])", "os.kill(os.getpid(), 9)"])
def test_entries_of_the_dead_go_when_others_open(config: Config, end: str) -> None:
    """Without the daemon, a service gathers no files of dead processes."""
    run_program(config, f"messaging = Messaging(config); {end}", expect=-9 if "kill" in end else 0)
    assert entries(config) != set()
    with Messaging(config):
        assert entries(config) == {str(os.getpid())}


def test_background_dispatcher_does_not_keep_a_program(config: Config) -> None:
    if config.messaging_type != "tdb":
        run_program(config, "messaging = Messaging(config).start()")
        assert entries(config) == set()


def test_fork_beside_threads(config: Config, peer: Peer) -> None:
    """A child of a process whose threads send at the moment of the fork has its own endpoint, and no lock is held."""
    stop = threading.Event()
    with Messaging(config) as messaging:

        def send() -> None:
            while not stop.is_set():
                messaging.send(messaging.server_id, TEXT, b"x", timeout=PATIENCE)

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()

        def child(channel: object) -> None:
            with pytest.raises(ForkedContext):
                messaging.send(peer.server_id, TEXT)
            messaging.reinit()
            got: list[Message] = []
            messaging.register(TEXT, got.append)
            messaging.send(messaging.server_id, TEXT, b"mine")
            while not got:
                messaging.dispatch(PATIENCE)
            messaging.close()
            channel.send(got[0].data)  # type: ignore[attr-defined]

        try:
            for _ in range(20):
                with Child(child) as forked:
                    while not forked.channel.poll(0):
                        messaging.dispatch(0.001)
                    assert forked.hear() == b"mine"
        finally:
            stop.set()
            while any(thread.is_alive() for thread in threads):
                messaging.dispatch(0.001)


def test_fork_with_messages_queued(messaging: Messaging, peer: Peer) -> None:
    """They are the parent's: the child drops its copies, and the parent's arrive once."""
    from tests.support.harness import drain, take_data

    texts = fill(messaging, peer.server_id)
    with Child(lambda channel: channel.send(messaging._endpoint.forked)) as child:
        assert child.hear() is True
    peer.begin(take_data, len(texts))
    drain(messaging)
    assert peer.hear() == texts


def test_opening_and_closing_leaks_nothing(config: Config) -> None:
    with no_fd_leaks():
        for _ in range(5):
            with Messaging(config) as messaging:
                messaging.send(messaging.server_id, TEXT)
                messaging.dispatch()


GREEN = """
{patch}
from msgd import Config, Messaging
{imports}
config = Config(**CONFIG)
got = []
messaging = Messaging(config)
messaging.register(0xF100, lambda message: got.append(message.data))
messaging.register(0xF200, lambda message: messaging.reply(message, 0xF201, message.data))
messaging.start()
ticks = []
def tick():
    while len(got) < 100:
        ticks.append(1)
        {sleep}(0.001)
import threading
ticking = threading.Thread(target=tick)
ticking.start()
for number in range(100):
    messaging.send(messaging.server_id, 0xF100, b"%d" % number, timeout=30)
    if number % 10 == 0:
        {sleep}(0)
ticking.join()
assert got == [b"%d" % number for number in range(100)]
assert messaging.request(messaging.server_id, 0xF200, b"?", 0xF201, 30).data == b"?"
messaging.close()
print("green", len(ticks) > 0)
"""


@pytest.mark.parametrize(
    ("patch", "sleep"),
    [
        ("from gevent import monkey; monkey.patch_all()", "__import__('gevent').sleep"),
        ("import eventlet; eventlet.monkey_patch()", "__import__('eventlet').sleep"),
    ],
    ids=["gevent", "eventlet"],
)
def test_background_dispatcher_among_green_threads(config: Config, patch: str, sleep: str) -> None:
    if config.messaging_type == "tdb":
        return
    chosen = {"lock_directory": config.lock_directory, "messaging_type": config.messaging_type}
    code = GREEN.format(patch=patch, sleep=sleep, imports="").replace("CONFIG", repr(chosen))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "green True" in done.stdout, done.stderr


def test_misuse_is_told(messaging: Messaging) -> None:
    import copy

    with pytest.raises(TypeError, match="copied"):
        copy.copy(messaging)
    with pytest.raises(TypeError, match="encode"):
        messaging.send(messaging.server_id, TEXT, "text")  # type: ignore[arg-type]


def test_registration(messaging: Messaging) -> None:
    """register() returns a handle, and is a decorator; types go by name, too."""
    got: list[str] = []

    @messaging.register(TEXT)
    def decorated(message: Message) -> None:
        got.append("decorated")

    with messaging.register("0xf100", lambda message: got.append("handle")):
        messaging.send(messaging.server_id, TEXT)
        while not got:
            messaging.dispatch(PATIENCE)
    messaging.send(messaging.server_id, TEXT)
    while len(got) < 3:
        messaging.dispatch(PATIENCE)
    assert got == ["decorated", "handle", "decorated"]


def test_a_registration_ends_itself_alone(messaging: Messaging) -> None:
    got: list[Message] = []
    first = messaging.register(TEXT, got.append)
    second = messaging.register(TEXT, got.append)
    first.close()
    first.close()
    messaging.send(messaging.server_id, TEXT)
    while not got:
        messaging.dispatch(PATIENCE)
    assert len(got) == 1
    second.close()
    assert not messaging.handlers.registered
