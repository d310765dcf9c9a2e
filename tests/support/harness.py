# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Real processes for tests: tests start them, tell them what to do, stop them and kill them.

Tests wait for events, never for a time.  A `Child` is a forked process that runs a function.  A `Peer` is a child with
an open messaging context that runs functions on request: `peer.call(function, ...)` runs a module's function in the
peer, with its `Session` as the first argument, and returns the result.  Between two calls a peer does nothing: it is a
receiver that does not read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from msgd import Config, Message, Messaging, NoSuchProcess, ServerID

P = ParamSpec("P")
T = TypeVar("T")
Channel = Connection

TEXT = 0xF100
"""The message type that peers collect."""

PATIENCE = 30.0
"""Seconds after which a silent child fails the test.  A test that passes never waits that long."""

_PR_SET_PDEATHSIG = 1
_SYS_CLONE3 = 435
_SYS_SET_ROBUST_LIST, _SYS_GET_ROBUST_LIST = (99, 100) if os.uname().machine == "aarch64" else (273, 274)
_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL, so that the child of clone3 has it
_libc.syscall.restype = ctypes.c_long
_libc.pthread_self.restype = ctypes.c_void_p


class ChildFailed(AssertionError):
    """The function in the child raised an exception.  The message is its traceback."""


class _Failure(NamedTuple):
    traceback: str


class Child:
    """A forked process that runs `body(channel)` and exits.  It is killed when its `with` block or the test ends.

    With `pid`, the child gets that process id, as if pids had wrapped around (root only).  With `orphan`, the child
    outlives the process that started it.
    """

    def __init__(self, body: Callable[[Channel], None], *, pid: int | None = None, orphan: bool = False) -> None:
        self.channel, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = _fork() if pid is None else _fork_as(pid)
        if self.pid == 0:
            _run(body, self.channel, theirs, None if orphan else parent)
        theirs.close()
        self.status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def tell(self, thing: Any) -> None:
        """Send the child an object."""
        self.channel.send(thing)

    def hear(self) -> Any:
        """The next object that the child sends.  Raises ChildFailed if the child raised or died instead."""
        if not self.channel.poll(PATIENCE):
            raise ChildFailed(f"pid {self.pid} has said nothing for {PATIENCE:g} seconds")
        try:
            thing = self.channel.recv()
        except (EOFError, ConnectionError):
            raise ChildFailed(f"pid {self.pid} is dead (status {self.wait()})") from None
        if isinstance(thing, _Failure):
            raise ChildFailed(f"in pid {self.pid}:\n{thing.traceback}")
        return thing

    def stop(self) -> None:
        """Send SIGSTOP and wait until the child has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL and wait until the child is dead."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.channel.close()

    def wait(self) -> int:
        """Wait until the child has exited; its exit status, or the negative number of the signal that killed it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # xdist's threads only wait and are not in the child
        return os.fork()


def _fork_as(pid: int) -> int:
    """fork() with a chosen pid, by set_tid of clone3.  Raises OSError where the kernel does not permit it."""
    wanted = (ctypes.c_int * 1)(pid)
    arguments = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    robust_list = (ctypes.c_void_p(), ctypes.c_size_t())
    _libc.syscall(_SYS_GET_ROBUST_LIST, 0, *map(ctypes.byref, robust_list))
    ctypes.pythonapi.PyOS_BeforeFork()
    result: int = _libc.syscall(_SYS_CLONE3, arguments, ctypes.c_size_t(len(arguments)))
    error = ctypes.get_errno()
    if result == 0:
        _be_a_thread_of_its_own(robust_list)
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if result < 0:
        raise OSError(error, f"clone3 with pid {pid}: {os.strerror(error)}")
    return result


def _be_a_thread_of_its_own(robust_list: tuple[ctypes.c_void_p, ctypes.c_size_t]) -> None:
    """After a clone3() that glibc knows nothing of: do for its mutexes what its fork() does in the child.

    They name the thread that has locked them, by the number that glibc keeps, and the kernel unlocks those in the
    robust list if the process is killed.  Without this, all processes with chosen pids pass for their parent, and what
    one of them has locked when it is killed stays locked.
    """
    head, size = robust_list
    assert head.value is not None
    ctypes.c_void_p.from_address(head.value).value = head.value
    _libc.syscall(_SYS_SET_ROBUST_LIST, head, size)
    place = (ctypes.c_uint32 * 3).in_dll(_libc, "_thread_db_pthread_tid")[2]
    thread = ctypes.c_int.from_address(_libc.pthread_self() + place)
    assert thread.value == os.getppid()
    thread.value = os.getpid()


def _run(body: Callable[[Channel], None], parents: Channel, channel: Channel, parent: int | None) -> None:
    status = 1
    try:
        parents.close()
        if parent is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        sys.unraisablehook = sys.__unraisablehook__  # pytest's keeps the exception, with all that its frames refer to
        body(channel)
        status = 0
    except BaseException:  # noqa: BLE001  # hear() raises it in the test
        with contextlib.suppress(OSError):
            channel.send(_Failure(traceback.format_exc()))
    finally:
        os._exit(status)


class Session:
    """The state that a peer's functions work with: its context, and the messages of type TEXT that it received."""

    def __init__(self, config: Config, **arguments: Any) -> None:
        self.config = config
        self.messaging = Messaging(config, **arguments)
        self.messages: list[Message] = []
        self.kept: list[Any] = []
        self.messaging.register(TEXT, self.messages.append)


class Peer(Child):
    """A child with a messaging context that runs functions on request."""

    def __init__(self, config: Config, *, pid: int | None = None, orphan: bool = False, **arguments: Any) -> None:
        def body(channel: Channel) -> None:
            session = Session(config, **arguments)
            channel.send(session.messaging.server_id)
            with contextlib.suppress(EOFError):
                while True:
                    function, parameters = channel.recv()
                    channel.send(function(session, *parameters))

        super().__init__(body, pid=pid, orphan=orphan)
        self.server_id: ServerID = self.hear()

    def begin(self, function: Callable[..., object], *arguments: Any) -> None:
        """Start `function(session, *arguments)`, a function of a module, in the peer.  hear() returns its result."""
        self.tell((function, arguments))

    def call(self, function: Callable[Concatenate[Session, P], T], *arguments: P.args, **_: P.kwargs) -> T:
        """Run `function(session, *arguments)` in the peer and return its result."""
        self.begin(function, *arguments)
        result: T = self.hear()
        return result


# Functions for peers to run


def take(session: Session, number: int) -> list[Message]:
    """Dispatch until `number` messages of type TEXT have been received, and return these."""
    while len(session.messages) < number:
        session.messaging.dispatch(None)
    taken = session.messages[:number]
    del session.messages[:number]
    return taken


def clean_up(session: Session) -> list[int]:
    """Clean up; the pids of the dead processes that it cleaned up after."""
    return session.messaging.clean_up()


def take_data(session: Session, number: int) -> list[bytes]:
    """The data of the next `number` messages of type TEXT."""
    return [message.data for message in take(session, number)]


def send_many(session: Session, dst: ServerID | int, texts: list[bytes]) -> None:
    """Send messages of type TEXT, and dispatch until none of them is queued."""
    for text in texts:
        session.messaging.send(dst, TEXT, text, timeout=PATIENCE)
    drain(session.messaging)


def serve(session: Session) -> None:
    """Dispatch without end."""
    while True:
        session.messaging.dispatch(None)


def close(session: Session) -> int:
    """Close the context; the number of undelivered messages."""
    return session.messaging.close()


def reopen(session: Session) -> ServerID:
    """Close the context and open another one, with a new unique id."""
    session.messaging.close()
    session.__init__(session.config)  # type: ignore[misc]
    return session.messaging.server_id


# Functions for tests and peers


def fill(messaging: Messaging, dst: ServerID | int, number: int = 300) -> list[bytes]:
    """Send numbered messages, enough that some are queued in this process if the transport's own queue is short."""
    texts = [b"%d" % one for one in range(number)]
    for text in texts:
        messaging.send(dst, TEXT, text)
    return texts


def drain(messaging: Messaging) -> None:
    """Dispatch until no message is queued in this process."""
    while messaging.statistics().queued_messages:
        select.select([messaging.fileno()], [], [], PATIENCE)
        messaging.dispatch()


def dispatch_until(messaging: Messaging, ready: Callable[[], object], *also: Channel) -> None:
    """Dispatch until `ready()`.  Fails if neither the context nor `also` becomes readable for PATIENCE seconds."""
    while not ready():
        waited_for: list[int | Channel] = [messaging.fileno(), *also]
        readable, _, _ = select.select(waited_for, [], [], PATIENCE)
        assert readable, "nothing became readable"
        messaging.dispatch()


def open_fds() -> set[str]:
    """This process's open descriptors, each with what it refers to.

    The descriptor of the listing itself is left out, and so are connections: a backend opens and closes them at will.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not (target.startswith("socket:") and _is_connection(int(name))):
                found.add(f"{name} {target}")
    return found


def _is_connection(fd: int) -> bool:
    borrowed = socket.socket(fileno=fd)
    try:
        return borrowed.type == socket.SOCK_STREAM and not borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    finally:
        borrowed.detach()


@contextlib.contextmanager
def no_fd_leaks() -> Iterator[None]:
    """Fail if the block leaves descriptors open."""
    before = open_fds()
    yield
    assert open_fds() - before == set()


def wait_until_asleep(pid: int) -> None:
    """Wait until the process sleeps in the kernel.  The test must know what it can be sleeping for."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline
        os.sched_yield()


def dead_pid() -> int:
    """A pid without a process: that of a child that has exited."""
    child = Child(lambda channel: None)
    child.wait()
    child.kill()
    return child.pid


def is_gone(messaging: Messaging, dst: ServerID | int) -> bool:
    """Whether sending to `dst` raises NoSuchProcess."""
    try:
        messaging.send(dst, TEXT, b"are you there?")
    except NoSuchProcess:
        return True
    return False


def chosen_pids_reason() -> str | None:
    """Why a process with a chosen pid cannot be started here, None if it can."""
    try:
        child = Child(lambda channel: None, pid=dead_pid())
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
            return f"a chosen pid needs clone3's set_tid (Linux 5.5) and root: {error.strerror}"
        raise
    child.wait()
    child.kill()
    return None
