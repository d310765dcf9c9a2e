# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A listening socket: bound at its path, or passed by the service manager, which then owns the path.

A path that exists is taken over only if it is a socket that nobody listens on any more: that of a msgd that was
killed.  (Its connection processes have closed their copies.)  close() removes the path only if it is still ours.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterator

from msgd.errors import AlreadyRunning, ConfigError, TransportError, UnsafeDirectory
from msgd.presence.socket_path import check_socket_path

logger = logging.getLogger("msgd.daemon")

_BACKLOG = 1024


class Listener:
    """A listening stream socket that does not block."""

    def __init__(self, listening: socket.socket, bound_path: str | None) -> None:
        self._socket = listening
        self._socket.setblocking(False)
        self._path = bound_path
        self._identity = None if bound_path is None else _identity(bound_path)

    @classmethod
    def bind(cls, parameter: str, path: str, mode: int) -> Listener:
        """Listen at `path`, the value of smb.conf's `parameter`; the file mode `mode` says who may connect.

        Raises ConfigError for a path too long, UnsafeDirectory, AlreadyRunning, TransportError.
        """
        check_socket_path(parameter, path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _make_way(parameter, path)
            listening.bind(path)
            os.chmod(path, mode)
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise TransportError(f"{parameter} = {path}: {error.strerror}") from error
        except BaseException:
            listening.close()
            raise
        return cls(listening, path)

    @classmethod
    def bind_tcp(cls, parameter: str, host: str, port: int) -> Listener:
        """Listen on a port of an IP address, given in digits.  Raises TransportError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise TransportError(f"{parameter}: port {port} of {host}: {error.strerror}") from error
        return cls(listening, None)

    @classmethod
    def adopt(cls, parameter: str, path: str, passed: tuple[int, ...]) -> Listener:
        """Listen on the socket that the service manager has bound, wherever that is.  Warns if it is not at `path`.

        Raises ConfigError unless it is exactly one AF_UNIX stream socket.
        """
        sockets = [socket.socket(fileno=fd) for fd in passed]
        if [(one.family, one.type) for one in sockets] != [(socket.AF_UNIX, socket.SOCK_STREAM)]:
            for one in sockets:
                one.close()
            raise ConfigError("the service manager has passed something other than one AF_UNIX stream socket")
        bound = os.fsdecode(sockets[0].getsockname()).replace("\0", "@")  # the way systemd writes an abstract name
        if bound != path:
            said = "%s is %s, but the service manager has passed %s, which is used"
            logger.warning(said, parameter, path or "empty", bound)
        return cls(sockets[0], None)

    def fileno(self) -> int:
        """The descriptor, readable when a client waits."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client; None if none waits.  Raises OSError if the system is out of descriptors or memory."""
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return None

    def last_clients(self) -> Iterator[socket.socket]:
        """Stop new clients from connecting, and accept those that wait.  Only for a path of our own.

        OSError as in accept().
        """
        if self._path is not None:
            self._remove_path()
            self._socket.shutdown(socket.SHUT_RD)  # for a client that has resolved the path but has not connected yet
            while (client := self.accept()) is not None:
                yield client

    def close(self) -> None:
        """Stop listening, and remove the path if it is ours."""
        self._remove_path()
        self.abandon()

    def _remove_path(self) -> None:
        if self._path is not None and self._identity is not None and _identity(self._path) == self._identity:
            os.unlink(self._path)

    def abandon(self) -> None:
        """In a forked child: close the copy."""
        self._socket.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _make_way(parameter: str, path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnsafeDirectory(f"{parameter} = {path} exists and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full, so a process listens
    raise AlreadyRunning(f"{parameter} = {path}: another process listens there; stop it, or choose another path")
