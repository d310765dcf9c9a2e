"""Where the daemon's log goes: a file, stdout, stderr or syslog.  How much of it: msgd.tools.debuglevel.

A log file is opened anew when the daemon is asked to (SIGHUP, reload-config), so that it can be renamed by logrotate.
The new one is opened before the old one is let go: if it cannot be, the log goes on where it was.

What cannot be written (a full disk, a terminal that is gone) is lost without ado: a daemon goes on without its log.
"""

from __future__ import annotations

import logging
import os
import sys
import syslog
from types import TracebackType
from typing import Self

from msgd.errors import ConfigError

_FORMAT = "%(asctime)s msgd[%(process)d] %(levelname)s: %(message)s"

_PRIORITIES = (
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
)

STDOUT, STDERR, SYSLOG = "stdout", "stderr", "syslog"
"""Destinations that are not files."""


class SyslogHandler(logging.Handler):
    """Logs by syslog(3), which connects when there is something to say and again when the other end was restarted."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("msgd", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, with the priority of its level."""
        priority = next((value for level, value in _PRIORITIES if record.levelno >= level), syslog.LOG_DEBUG)
        syslog.syslog(priority, self.format(record).replace("\0", "?"))


class Log:
    """The root logger's output, from construction to leaving it as a context manager.

    `destination` is the absolute path of a file or one of STDOUT, STDERR, SYSLOG.  Raises ConfigError if the file
    cannot be opened.
    """

    def __init__(self, destination: str) -> None:
        self._handler = _open(destination)
        logging.getLogger().addHandler(self._handler)
        logging.raiseExceptions = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()

    def reopen(self, destination: str) -> None:
        """Go on in `destination`, which may be the same.  ConfigError if it cannot be opened: then nothing changes."""
        former, self._handler = self._handler, _open(destination)
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().removeHandler(former)
        former.close()


def _open(destination: str) -> logging.Handler:
    handler: logging.Handler
    if destination == SYSLOG:
        handler = SyslogHandler()
    else:
        handler = _open_stream(destination)
        handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def _open_stream(destination: str) -> logging.Handler:
    if destination == STDOUT:
        return logging.StreamHandler(sys.stdout)
    if destination == STDERR:
        return logging.StreamHandler(sys.stderr)
    try:
        os.makedirs(os.path.dirname(destination), 0o755, exist_ok=True)
        return logging.FileHandler(destination, errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"log file = {destination}: {error.strerror}") from error
