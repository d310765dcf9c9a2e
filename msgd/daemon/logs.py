# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Where the daemon's log goes: a file, stdout, stderr, syslog or the journal (how much: msgd.programs.debug_levels).

Rule 1.  SIGHUP and reload-config re-open the log file, so that logrotate can rename it.  The new file is opened before
the old one is closed: if that fails, the log stays where it was.

Rule 2.  What cannot be written (a full disk, a terminal that is gone) is lost, and the daemon goes on.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import syslog
from collections import deque
from types import TracebackType
from typing import Self, TextIO

from msgd import _registry
from msgd.errors import ConfigError

_FORMAT = "%(asctime)s msgd[%(process)d] %(levelname)s: %(message)s"

_LATEST_LENGTH = 1 << 16
"""Characters of the log that are kept in memory."""

_PRIORITIES = (
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
)

STDOUT, STDERR, SYSLOG = "stdout", "stderr", "syslog"
"""Destinations other than files."""


class SyslogHandler(logging.Handler):
    """Logs by syslog(3), which connects with the first line, and again after the log daemon was restarted."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("msgd", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, with the priority of its level."""
        syslog.syslog(_priority(record), self.format(record).replace("\0", "?"))


class JournalHandler(logging.Handler):
    """Logs to systemd's journal, with the fields of an event (msgd.events) as fields of the entry."""

    def __init__(self) -> None:
        super().__init__()
        self._send = importlib.import_module("systemd.journal").send

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record with its fields."""
        try:
            self._send(
                self.format(record),
                SYSLOG_IDENTIFIER="msgd",
                PRIORITY=str(_priority(record)),
                LOGGER=record.name,
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                **{name: value for name, value in vars(record).items() if name.isupper()},
            )
        except OSError:
            self.handleError(record)


class Log:
    """The root logger's output, from construction to leaving it as a context manager.

    `destination` is the absolute path of a file or one of STDOUT, STDERR, SYSLOG.  Raises ConfigError if the file
    cannot be opened.
    """

    def __init__(self, destination: str) -> None:
        self._handler = _open(destination)
        self._latest = _Latest()
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().addHandler(self._latest)
        logging.raiseExceptions = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self._latest)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()

    def latest(self) -> str:
        """The latest lines, up to 64 KiB of them, wherever the log goes."""
        return self._latest.text()

    def reopen(self, destination: str) -> None:
        """Switch to `destination`, which may be the same.  ConfigError if it cannot be opened: then nothing changes."""
        former, self._handler = self._handler, _open(destination)
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().removeHandler(former)
        former.close()


def _priority(record: logging.LogRecord) -> int:
    return next((value for level, value in _PRIORITIES if record.levelno >= level), syslog.LOG_DEBUG)


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream leads into systemd's journal: its device and inode are what JOURNAL_STREAM says."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Latest(logging.Handler):
    """Keeps the latest lines in memory, for ringbuf-log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._lines: deque[str] = deque()
        self._length = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's line in the place of the oldest."""
        line = self.format(record)[:_LATEST_LENGTH]
        self._lines.append(line)
        self._length += len(line) + 1
        while self._length > _LATEST_LENGTH and len(self._lines) > 1:
            self._length -= len(self._lines.popleft()) + 1

    def text(self) -> str:
        """The lines, each with its newline."""
        return "".join(f"{line}\n" for line in self._lines)


class _LogFile(logging.FileHandler):
    """A log file with mode 0600 whatever the umask is: it tells who connected and what they asked for."""

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", errors=self.errors, opener=lambda path, flags: os.open(path, flags, 0o600))


def _open(destination: str) -> logging.Handler:
    handler: logging.Handler
    if destination == SYSLOG:
        handler = SyslogHandler()
    elif destination == STDERR and _registry.WITH_SYSTEMD and _is_journal(sys.stderr):
        handler = JournalHandler()
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
        return _LogFile(destination, errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"log file = {destination}: {error.strerror}") from error
