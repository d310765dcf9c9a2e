# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Run by each candidate interpreter: print as JSON which interpreter this is and what it has.

    python -I probe.py MODULE...

The answers are the interpreter's version and paths, the versions of the named modules that can be imported, and for
each facility of the kernel that msgd depends on whether it really works when it is tried. Interpreters that are too old
for msgd run this file too, and get no further than their version.
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
    """The version of a module, "" if it does not have one; None if it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    for distribution in importlib.metadata.packages_distributions().get(name.partition(".")[0], []):
        return importlib.metadata.version(distribution)
    return str(getattr(module, "__version__", ""))


def record_locks() -> bool:
    """A lock that one process holds is refused to another."""
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
    """A descriptor can refer to a process, which can be signalled through it."""
    import signal

    descriptor = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(descriptor, 0)
    finally:
        os.close(descriptor)
    return True


def epoll() -> bool:
    """epoll reports a pipe as readable."""
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
    """The kernel tells which process sent a datagram."""
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
    """The kernel tells which process opened a connection."""
    import socket
    import struct

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        credentials = struct.Struct("3i")
        data = here.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return bool(credentials.unpack(data)[0] == os.getpid())


def pass_descriptors() -> bool:
    """An open file can be passed with a datagram."""
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
    """The reason why a facility cannot be used, or "" if it works."""
    try:
        return "" if probe() else "does not work as it does on Linux"
    except (AttributeError, ImportError, OSError) as error:
        return str(error)


def stable_name(executable: str) -> str:
    """The path as `.../bin/python3`, if that is the same file as `.../bin/python3.11`: one file shall have one name."""
    directory, name = os.path.split(executable)
    directory = os.path.realpath(directory)
    plain = os.path.join(directory, "python3")
    same = os.path.realpath(plain) == os.path.realpath(executable)
    return plain if same else os.path.join(directory, name)


def main() -> None:
    """Print the answers."""
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
    if sys.version_info >= (3, 11):  # noqa: UP036 - older interpreters run this file too
        versions = {name: module_version(name) for name in sys.argv[1:]}
        answers["modules"] = {name: version for name, version in versions.items() if version is not None}
        answers["facilities"] = {name: facility_failure(probe) for name, probe in FACILITIES.items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
