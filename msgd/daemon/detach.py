# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Becoming a daemon, with an invoking process that learns whether the start succeeded.

The invoking process forks once and waits on a pipe; its child becomes the daemon through python-daemon's DaemonContext
(which forks twice more, so that in the end no other process holds the pipe).  The daemon writes one byte when it is
ready, or the lines that the invoking process is to print.  An end of file without either is a daemon that died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from msgd.errors import ConfigError, MsgdError
from msgd.presence.pidfile import PidFile
from msgd.programs.cli import EXIT_FAILURE, complaint

logger = logging.getLogger("msgd.daemon")

_READY = b"\0"
_UMASK = 0o022

_DESCRIPTORS_MAX = 65536
"""python-daemon keeps a set of every descriptor number that the hard limit allows, to close them: with the limit of
many containers, 2**30, that is more memory than the machine has.  The daemon needs far fewer than this."""


def run_detached(program: str, pid_file: PidFile, serve: Callable[[Callable[[], None]], None]) -> int:
    """Run `serve(ready)` in a daemon that holds `pid_file`.  Returns the exit status, in both processes.

    The invoking process returns when the daemon has called `ready`, or has failed; then it prints the error to stderr.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return _wait(program, reader, child)
    os.close(reader)
    return _serve(program, pid_file, serve, writer)


def _wait(program: str, reader: int, child: int) -> int:
    with open(reader, "rb") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    if report == _READY:
        return 0
    said = report.decode(errors="replace")
    sys.stderr.write(said or f"{program}: the daemon ended before it was ready; start it with -i to see why\n")
    return EXIT_FAILURE


def _serve(program: str, pid_file: PidFile, serve: Callable[[Callable[[], None]], None], writer: int) -> int:
    waited_for = True

    def report(what: bytes) -> None:
        nonlocal waited_for
        waited_for = False
        with contextlib.suppress(BrokenPipeError):  # the invoking process was interrupted; the daemon goes on
            os.write(writer, what)
        os.close(writer)

    try:
        _limit_descriptors()
        with _daemon_context()(
            detach_process=True, umask=_UMASK, pidfile=pid_file, files_preserve=[writer], signal_map={}
        ):
            serve(lambda: report(_READY))
    except (MsgdError, OSError) as error:
        if waited_for:
            report(complaint(program, error).encode(errors="surrogateescape"))
        return EXIT_FAILURE
    return 0


def _daemon_context() -> Any:
    """The class that detaches.  It is imported after the limit is set, and the foreground does not need it."""
    try:
        from daemon import DaemonContext
    except ImportError as error:
        raise ConfigError(
            f"msgd cannot detach: {error}; install python3-daemon (with pip: msgd[daemon]), or run msgd -F"
        ) from error
    return DaemonContext


def _limit_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _DESCRIPTORS_MAX:
        soft = _DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else min(soft, _DESCRIPTORS_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _DESCRIPTORS_MAX))
