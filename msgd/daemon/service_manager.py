# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The service manager that started msgd: what msgd tells it and gets from it.

systemd is reached through systemd-python, if configure has found it, and only from the main process in the foreground
(`msgd -F`).  Without systemd, or when msgd is started by hand, all of this does nothing.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Mapping, Sequence

from msgd import _registry
from msgd.errors import ConfigError

logger = logging.getLogger("msgd.daemon")

_MICROSECONDS = 1e6
_DIGITS = 20
"""Of the largest u64, which is what systemd has in WATCHDOG_USEC."""


class ServiceManager:
    """No service manager: every call does nothing."""

    sockets: tuple[int, ...] = ()
    """Listening sockets that it passed."""

    kept: Mapping[str, int] = {}
    """Descriptors that an earlier main process gave it to keep, by name."""

    keeps_descriptors = False
    """Whether it can keep descriptors."""

    watchdog_interval = 0.0
    """Seconds between two calls of is_alive(); 0 if it wants none."""

    def keep(self, name: str, fd: int) -> None:
        """Give it a descriptor to keep until the service is stopped for good."""

    def ready(self, status: str) -> None:
        """Say that the service is ready."""

    def reloading(self) -> None:
        """Say that a reload has begun; ready() ends it."""

    def stopping(self) -> None:
        """Say that the service is stopping."""

    def status(self, text: str) -> None:
        """Give the one-line status of the service."""

    def is_alive(self) -> None:
        """Reset the watchdog."""


class Systemd(ServiceManager):
    """systemd, through systemd-python."""

    keeps_descriptors = True

    def __init__(self) -> None:
        daemon = importlib.import_module("systemd.daemon")
        self._notify = daemon.notify
        said = os.environ.get("LISTEN_FDS")
        try:
            passed: Mapping[int, str] = daemon.listen_fds_with_names(unset_environment=True)
            self.sockets = tuple(fd for fd, name in passed.items() if daemon.is_socket(fd))
        except OSError as error:
            raise ConfigError(
                f"LISTEN_FDS = {said}: the service manager says that it passes descriptors from 3 on, and"
                f" they cannot be used: {error.strerror}; unset it if msgd is started by hand"
            ) from None
        self.kept = {name: fd for fd, name in passed.items() if fd not in self.sockets}
        if os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self.watchdog_interval = _watchdog_interval(os.environ.get("WATCHDOG_USEC", "0"))

    def keep(self, name: str, fd: int) -> None:
        self._say("FDSTORE=1", f"FDNAME={name}", fds=[fd])

    def ready(self, status: str) -> None:
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._say("RELOADING=1", f"MONOTONIC_USEC={int(time.monotonic() * _MICROSECONDS)}")

    def stopping(self) -> None:
        self._say("STOPPING=1", "STATUS=")

    def status(self, text: str) -> None:
        self._say(f"STATUS={text}")

    def is_alive(self) -> None:
        self._say("WATCHDOG=1")

    def _say(self, *lines: str, fds: Sequence[int] = ()) -> None:
        try:
            self._notify("\n".join(lines), fds=list(fds))
        except OSError as error:  # systemd is being restarted, or the machine is shutting down
            logger.warning("systemd could not be told %s: %s", lines[0], error)


def _watchdog_interval(said: str) -> float:
    """Half the time that the watchdog allows, so that one call may be late."""
    if not (said.isascii() and said.isdigit() and len(said) <= _DIGITS):
        raise ConfigError(
            f"WATCHDOG_USEC = {said}: a number of microseconds is needed; unset it if msgd is started by hand"
        )
    return int(said) / _MICROSECONDS / 2


def find_service_manager() -> ServiceManager:
    """The service manager that started this process.  ConfigError if what it says in the environment is wrong."""
    if _registry.WITH_SYSTEMD and ("NOTIFY_SOCKET" in os.environ or "LISTEN_FDS" in os.environ):
        return Systemd()
    return ServiceManager()
