# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol events: Samba's audit events as lines, for a person or for a journal.

For each event, Samba's daemons look up the name of its kind in names.tdb, and send it as JSON to whoever has the name.
So this process takes the name.

Rule 1. Nothing is lost when smbd is restarted: the name stays, and the new smbd finds it.
Rule 2. Where the directory or names.tdb itself is made again (the directory is on a tmpfs that ends with the service),
        this process would listen at a place that nobody looks at.  So it looks every _LOOK seconds whether the files
        are still those that it joined, and joins again if not.
Rule 3. An event is printed outside of the handler: a stdout that is closed ends the program, as it should.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from msgd.config import Config
from msgd.errors import ConfigError, MsgdError
from msgd.messaging import Messaging
from msgd.programs import cli
from msgd.tools.msgcontrol.destination import ALL, check_directory
from msgd.tools.msgcontrol.subprogram import Actions
from msgd.wire.control import unpack_text
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

logger = logging.getLogger("msgd.events")

_LOOK = 2.0
"""Seconds between two looks at the directory, and between two attempts to join it again."""


class _Kind(NamedTuple):
    """A kind of events: the name that Samba looks up, and the type that it sends."""

    name: str
    type: MessageType


_KINDS = {
    "auth": _Kind("auth_event", MessageType.AUTH_LOG),
    "dsdb": _Kind("dsdb_event", MessageType.DSDB_LOG),
    "password": _Kind("dsdb_password_event", MessageType.DSDB_PWD_LOG),
    "group": _Kind("dsdb_group_event", MessageType.GROUP_LOG),
}


def _add_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("kind", metavar="KIND", type=str.lower, choices=list(_KINDS), help="auth, dsdb, password or group")
    add("--json", action="store_true", help="print each event as one line of JSON, as Samba made it")
    add("--count", metavar="N", type=int, default=0, help="end after so many events (default: never)")


def _run(arguments: argparse.Namespace, config: Config) -> int:
    if config.messaging_type != "dgram":
        raise ConfigError(f"messaging type = {config.messaging_type}: Samba's daemons send their events by dgram")
    cli.exit_on_signals()
    listener = _Listener(_KINDS[arguments.kind], arguments.json, arguments.count)
    check_directory(ALL, config)
    listener.listen(config)
    while not listener.is_complete:
        time.sleep(_LOOK)
        if os.path.isdir(config.lock_directory):
            try:
                listener.listen(config)
            except MsgdError as error:  # the new directory is not whole yet
                logger.warning("%s; trying again", error)
    return 0


class _Listener:
    """Prints the events of one kind, until there have been `count` (0: for ever)."""

    def __init__(self, kind: _Kind, as_json: bool, count: int) -> None:
        self._kind = kind
        self._as_json = as_json
        self._count = count
        self._printed = 0
        self._waiting: list[Message] = []

    @property
    def is_complete(self) -> bool:
        """Whether enough events have been printed."""
        return 0 < self._count <= self._printed

    def listen(self, config: Config) -> None:
        """Print what comes, until there is enough or the directory is another one than at first."""
        with Messaging(config) as messaging:
            messaging.register(self._kind.type, self._waiting.append)
            messaging.add_name(self._kind.name)
            joined = _identity(config)
            sys.stderr.write(f"msgcontrol: listening as {self._kind.name}, {messaging.server_id}\n")
            while not self.is_complete and _identity(config) == joined:
                messaging.dispatch(_LOOK)
                self._print_waiting()

    def _print_waiting(self) -> None:
        while self._waiting and not self.is_complete:
            text = unpack_text(self._waiting.pop(0).data)
            print(_one_line(text) if self._as_json else _for_people(text), flush=True)
            self._printed += 1


def _identity(config: Config) -> tuple[tuple[int, int], ...]:
    """What the files are in which this process is found: they are others once somebody has made them again."""
    found = []
    for name in (f"msg.lock/{os.getpid()}", "names.tdb"):
        try:
            status = os.stat(os.path.join(config.lock_directory, name))
        except OSError:
            found.append((0, 0))
        else:
            found.append((status.st_dev, status.st_ino))
    return tuple(found)


def _one_line(text: str) -> str:
    """The JSON in one line; what is no JSON is wrapped into some."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return json.dumps({"type": "malformed", "text": text}, ensure_ascii=False)


def _for_people(text: str) -> str:
    """Time and type of the event, then those of its members that say something."""
    try:
        event = json.loads(text)
        kind = str(event["type"])
        members = event.get(kind, {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"malformed event: {text!r}"
    said = " ".join(_members(members)) if isinstance(members, Mapping) else str(members)
    return f"{event.get('timestamp', '?')} {kind} {said}"


def _members(members: Mapping[str, object]) -> list[str]:
    shown = {name: value for name, value in members.items() if name != "version" and value not in (None, "", [], {})}
    return [
        f"{name}={value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)}"
        for name, value in shown.items()
    ]


EVENTS = Actions(_add_arguments, _run)
