# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Run under refuse.c: makes the n-th descriptor, allocation or watch of each public call fail, for all n.

A call may then only return, or raise an error of msgd's.  It leaks no descriptor, and the context works on: a PING is
answered, and it can be closed.  Prints a line for each fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from msgd import Config, Messaging, MsgdError
from msgd.presence import RendezvousDirectory
from msgd.presence.pidfile import PidFile
from msgd.wire.message_types import MessageType
from tests.support.harness import PATIENCE, TEXT, Peer, open_fds, serve


class _Library:
    """The variables of refuse.c, which is preloaded."""

    def __init__(self) -> None:
        loaded = ctypes.CDLL(None)
        self.kinds = ctypes.c_int.in_dll(loaded, "refuse_kinds")
        self.at = ctypes.c_int.in_dll(loaded, "refuse_at")
        self.errno = ctypes.c_int.in_dll(loaded, "refuse_errno")
        self.calls = ctypes.c_int.in_dll(loaded, "refuse_calls")
        self.smallest = ctypes.c_size_t.in_dll(loaded, "refuse_from")


KINDS = {
    "descriptors": (1, errno.EMFILE),
    "memory": (2, errno.ENOMEM),
    "locks": (4, errno.ENOLCK),
    "watches": (8, errno.ENOMEM),
}

LARGE = bytes(300_000)
"""The data of a long message: it goes in fragments, and is received into memory of its own."""
MEDIUM = bytes(40_000)

_LARGE_ALLOCATION = 60_000
"""Smaller allocations do not fail: those of the interpreter itself, and of a short message."""

_CALLS_MAX = 400
"""More calls than any public call makes."""


@functools.cache
def library() -> _Library:
    return _Library()


@contextlib.contextmanager
def refusing(kind: str, at: int) -> Iterator[None]:
    """Inside, the call with this number fails."""
    ours = library()
    ours.calls.value, ours.at.value, ours.smallest.value = 0, at, _LARGE_ALLOCATION
    ours.errno.value = KINDS[kind][1]
    ours.kinds.value = KINDS[kind][0]
    try:
        yield
    finally:
        ours.kinds.value = 0


class World(NamedTuple):
    """What the calls work with: a process that answers, and one that does not read."""

    config: Config
    serving: Peer
    idle: Peer


Call = Callable[[World, Messaging], object]


def send_large(world: World, messaging: Messaging) -> None:
    messaging.send(world.serving.pid, TEXT, LARGE)


def send_descriptors(world: World, messaging: Messaging) -> None:
    messaging.send(world.serving.pid, TEXT, b"with descriptors", fds=(0, 1))


def send_more_than_is_read(world: World, messaging: Messaging) -> None:
    with contextlib.suppress(MsgdError):  # tdb carries none
        for _ in range(20):
            messaging.send(world.idle.pid, TEXT, MEDIUM, fds=(0,))
    for _ in range(20):
        messaging.send(world.idle.pid, TEXT, MEDIUM)


def receive(world: World, messaging: Messaging) -> None:
    """Something long and something short come; whatever is refused, dispatch goes on."""
    with contextlib.suppress(MsgdError):
        messaging.send(messaging.server_id, TEXT, LARGE)
        messaging.send(messaging.server_id, TEXT, b"short")
    for _ in range(5):
        messaging.dispatch()


def reopen_in_a_child(world: World, messaging: Messaging) -> None:
    """The child tells by its exit status whether only an error of msgd's came."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            messaging.reinit()
            messaging.close()
            status = 0
        except MsgdError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "an error of the system in the child"


def background(world: World, messaging: Messaging) -> None:
    messaging.start()
    messaging.stop()


def look_from_outside(world: World, messaging: Messaging) -> None:
    with RendezvousDirectory(world.config) as directory:
        list(directory.processes())
        list(directory.entries())
        directory.names()


def hold_pid_file(world: World, messaging: Messaging) -> None:
    with PidFile(f"{world.config.lock_directory}/pid", "test", {os.geteuid()}):
        pass


def load_config(world: World, messaging: Messaging) -> None:
    Config.load(Path(world.config.lock_directory, "..", "smb.conf"))


def use_names(world: World, messaging: Messaging) -> None:
    messaging.add_name("somebody")
    messaging.lookup("somebody")
    messaging.names()
    messaging.remove_name("somebody")


def clean_up(world: World, messaging: Messaging) -> None:
    """There is a dead process to clean up after."""
    with contextlib.suppress(OSError), open(f"{world.config.lock_directory}/msg.lock/4194303", "w") as file:
        file.write("1\n")
    messaging.clean_up()


CALLS: dict[str, Call] = {
    "send": lambda world, messaging: messaging.send(world.serving.pid, TEXT, b"hello"),
    "send_all": lambda world, messaging: messaging.send_all(TEXT, b"hello"),
    "send_large": send_large,
    "send_descriptors": send_descriptors,
    "send_more_than_is_read": send_more_than_is_read,
    "receive": receive,
    "request": lambda world, messaging: messaging.request(world.serving.pid, MessageType.PING, b"?", timeout=PATIENCE),
    "survey": lambda world, messaging: messaging.survey(MessageType.PING, b"?", timeout=0.05),
    "watch": lambda world, messaging: os.close(messaging.watch(world.serving.pid)),
    "processes": lambda world, messaging: messaging.processes(),
    "is_alive": lambda world, messaging: messaging.is_alive(world.serving.pid),
    "pending": lambda world, messaging: messaging.pending(world.serving.pid),
    "statistics": lambda world, messaging: messaging.statistics(),
    "use_names": use_names,
    "clean_up": clean_up,
    "close": lambda world, messaging: messaging.close(0.05),
    "reopen_in_a_child": reopen_in_a_child,
    "background": background,
    "look_from_outside": look_from_outside,
    "hold_pid_file": hold_pid_file,
    "load_config": load_config,
}


def refuse_each(world: World, kind: str, name: str, call: Call) -> Iterator[str]:
    """Make the first call fail, then the second, and so on; the faults that this brings to light."""
    for at in count(1):
        before = open_fds()
        messaging = Messaging(world.config)
        messaging.register(TEXT, lambda message: None)
        with refusing(kind, at):
            problem = outcome(partial(call, world, messaging))
        was_refused = library().calls.value >= at
        problem = problem or works_on(world, messaging)
        messaging.close(0)
        if problem:
            yield f"{name}, {kind} {at}: {problem}"
        if leaked := open_fds() - before:
            yield f"{name}, {kind} {at}: open descriptors {leaked}"
        if not was_refused or at > _CALLS_MAX:
            return


def refuse_opening(world: World, kind: str) -> Iterator[str]:
    """The same for opening a context; nothing of a failed one stays."""
    lock_file = Path(world.config.lock_directory, "msg.lock", str(os.getpid()))
    for at in count(1):
        before = open_fds()
        with refusing(kind, at):
            problem = outcome(lambda: Messaging(world.config).close(0.05))
        was_refused = library().calls.value >= at
        if problem:
            yield f"open, {kind} {at}: {problem}"
        if leaked := open_fds() - before:
            yield f"open, {kind} {at}: open descriptors {leaked}"
        if lock_file.exists():
            yield f"open, {kind} {at}: the lock file is there"
        if not was_refused or at > _CALLS_MAX:
            return


def outcome(call: Callable[[], object]) -> str:
    """What is wrong with what a call did, empty if nothing is."""
    try:
        call()
    except MsgdError as error:
        return f"{type(error).__name__} without its text" if not str(error).strip() else ""
    except BaseException as error:  # noqa: BLE001  # any other is what we look for
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = "" if where is None else f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}"
        return f"{type(error).__name__}: {error} ({place})"
    return ""


def works_on(world: World, messaging: Messaging) -> str:
    """Why the context does not work on, empty if it does or the call has closed it."""
    if messaging._closed:
        return ""
    try:
        messaging.request(world.serving.pid, MessageType.PING, b"still there?", timeout=PATIENCE)
        for _ in range(3):
            messaging.dispatch()
    except Exception as error:  # noqa: BLE001
        return f"afterwards {type(error).__name__}: {error}"
    return ""


def main(directory: str, messaging_type: str, kind: str, names: list[str]) -> int:
    logging.getLogger("msgd").addHandler(logging.NullHandler())
    Path(directory, "smb.conf").write_text("[global]\n")
    config = Config(lock_directory=f"{directory}/lock", messaging_type=messaging_type)
    problems = 0
    with Peer(config) as serving, Peer(config) as idle:
        serving.begin(serve)
        world = World(config, serving, idle)
        faults = [refuse_each(world, kind, name, CALLS[name]) for name in names or CALLS]
        if not names:
            faults.append(refuse_opening(world, kind))
        for fault in (one for some in faults for one in some):
            sys.stdout.write(f"{fault}\n")
            sys.stdout.flush()
            problems += 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
