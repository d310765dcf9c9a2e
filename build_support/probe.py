"""Run by each candidate interpreter: prints as JSON who it is, which of the named modules it can import, and which of
the kernel's facilities msgd stands on really work when tried.

Usage: python -I probe.py MODULE...
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import sysconfig
from collections.abc import Callable


def module_version(name: str) -> str | None:
    """The version of an importable module, "" if it does not say; None if it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    for distribution in importlib.metadata.packages_distributions().get(name.partition(".")[0], []):
        return importlib.metadata.version(distribution)
    return str(getattr(module, "__version__", ""))


def record_locks() -> bool:
    """A lock held by one process is refused to another."""
    import fcntl
    import tempfile

    with tempfile.TemporaryFile() as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child = os.fork()
        if child == 0:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os._exit(0)
            os._exit(1)
        return os.waitpid(child, 0)[1] == 0


def pidfd() -> bool:
    """A process can be held by a descriptor, and signalled through it."""
    import signal

    descriptor = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(descriptor, 0)
    finally:
        os.close(descriptor)
    return True


def epoll() -> bool:
    import select

    reader, writer = os.pipe()
    with select.epoll() as poll:
        poll.register(reader, select.EPOLLIN)
        os.write(writer, b"x")
        ready = poll.poll(1)
    os.close(reader)
    os.close(writer)
    return ready == [(reader, select.EPOLLIN)]


def pass_credentials() -> bool:
    """The kernel says of each datagram which process sent it."""
    import socket
    import struct

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        here.send(b"x")
        credentials = struct.Struct("3i")
        ancillary = there.recvmsg(1, socket.CMSG_SPACE(credentials.size))[1]
    return [credentials.unpack(data)[0] for _, _, data in ancillary] == [os.getpid()]


def peer_credentials() -> bool:
    """The kernel says of a connection which process opened it."""
    import socket
    import struct

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        credentials = struct.Struct("3i")
        data = here.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return bool(credentials.unpack(data)[0] == os.getpid())


def pass_descriptors() -> bool:
    """An open file can be handed over with a datagram."""
    import socket

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        socket.send_fds(here, [b"x"], [here.fileno()])
        descriptors = socket.recv_fds(there, 1, 1)[1]
    for descriptor in descriptors:
        os.close(descriptor)
    return len(descriptors) == 1


FACILITIES: dict[str, Callable[[], bool]] = {
    "fcntl record locks": record_locks,
    "pidfd_open and pidfd_send_signal": pidfd,
    "epoll": epoll,
    "SO_PASSCRED on datagrams": pass_credentials,
    "SO_PEERCRED on streams": peer_credentials,
    "SCM_RIGHTS": pass_descriptors,
}


def facility_failure(probe: Callable[[], bool]) -> str:
    """Why a facility cannot be used; "" if it works."""
    try:
        return "" if probe() else "does not work as on Linux"
    except (AttributeError, ImportError, OSError) as error:
        return str(error)


def stable_name(executable: str) -> str:
    """`.../bin/python3` where that is the same file as `.../bin/python3.11`, so that one file has one name."""
    directory, name = os.path.split(executable)
    directory = os.path.realpath(directory)
    plain = os.path.join(directory, "python3")
    same = os.path.realpath(plain) == os.path.realpath(executable)
    return plain if same else os.path.join(directory, name)


def main() -> None:
    base: str = getattr(sys, "_base_executable", sys.executable)
    answers: dict[str, object] = {
        "version": platform.python_version(),
        "version_info": sys.version_info[:2],
        "prefix": sys.prefix,
        "executable": stable_name(base if sys.prefix == sys.base_prefix else sys.executable),
        "base": stable_name(base),
        "site_packages": sysconfig.get_path("purelib"),
        "modules": {},
        "facilities": {},
    }
    if sys.version_info >= (3, 11):  # noqa: UP036 - older ones are asked too
        versions = {name: module_version(name) for name in sys.argv[1:]}
        answers["modules"] = {name: version for name, version in versions.items() if version is not None}
        answers["facilities"] = {name: facility_failure(probe) for name, probe in FACILITIES.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
