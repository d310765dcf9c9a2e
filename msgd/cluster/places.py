# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Where ctdbd is, how long one waits for it, and why it cannot be reached."""

from __future__ import annotations

import errno

from msgd.config import Config

DEFAULT_SOCKET = "/run/ctdb/ctdbd.socket"
"""Where ctdbd listens if `ctdbd socket` is empty."""

_DEFAULT_TIMEOUT = 10.0
"""Seconds that `ctdb timeout = 0` stands for: nothing of msgd's waits without a limit."""

_REASONS = {
    errno.ENOENT: "there is no such socket; is ctdb.service running, and does `ctdbd socket` name its socket?",
    errno.ECONNREFUSED: "nobody listens there; is ctdb.service running?",
    errno.EACCES: "permission denied: ctdbd's socket is root's",
    errno.EAGAIN: "its backlog is full",
    errno.EPIPE: "it has ended the connection",
    errno.ECONNRESET: "it has ended the connection",
}


def ctdbd_socket(config: Config) -> str:
    """The path of ctdbd's socket."""
    return config.ctdbd_socket or DEFAULT_SOCKET


def timeout_of(config: Config) -> float:
    """Seconds that a call waits for ctdbd's answer."""
    return config.ctdb_timeout / 1000 or _DEFAULT_TIMEOUT


def reason(error: BaseException) -> str:
    """Why ctdbd cannot be reached, for a person."""
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return str(error)
