# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol events: the names that Samba looks up, the lines that come, and joining again."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from msgd import MessageType, Messaging
from tests.support.daemons import Place, Running, one_line

EVENT = {
    "timestamp": "2026-11-26T19:27:29.412513+0000",
    "type": "Authentication",
    "Authentication": {
        "version": {"major": 1, "minor": 2},
        "status": "NT_STATUS_NO_SUCH_USER",
        "clientAccount": "some\u00e4body",
        "mappedAccount": None,
        "logonId": 7,
    },
}

KINDS = {
    "auth": ("auth_event", MessageType.AUTH_LOG),
    "dsdb": ("dsdb_event", MessageType.DSDB_LOG),
    "password": ("dsdb_password_event", MessageType.DSDB_PWD_LOG),
    "group": ("dsdb_group_event", MessageType.GROUP_LOG),
}


def start(place: Place, *arguments: str) -> Running:
    return place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "events", *arguments)


def tell(place: Place, name: str, message_type: int, *texts: str) -> None:
    """Send texts as Samba's daemons do: to whoever has the name."""
    with Messaging(place.config) as messaging:
        (listener,) = messaging.lookup(name)
        for text in texts:
            messaging.send(listener, message_type, text.encode() + b"\0")


@pytest.fixture(autouse=True)
def somebody(place: Place) -> None:
    place.msgd()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_as_json(place: Place, kind: str) -> None:
    listening = start(place, kind.upper(), "--json", "--count", "2")
    name, message_type = KINDS[kind]
    listening.await_line(f"listening as {name}")
    tell(place, name, message_type, json.dumps(EVENT, indent=2), "no json\n")
    assert json.loads(listening.await_line("Authentication")) == EVENT
    assert listening.wait() == 0
    assert json.loads(listening.output.splitlines()[-1]) == {"type": "malformed", "text": "no json\n"}


def test_lines_for_people(place: Place) -> None:
    listening = start(place, "auth", "--count", "3")
    listening.await_line("listening as")
    tell(place, "auth_event", MessageType.AUTH_LOG, json.dumps(EVENT), "[1]", '{"type": "X"}')
    assert listening.wait() == 0
    assert listening.output.splitlines()[1:] == [
        f"{EVENT['timestamp']} Authentication status=NT_STATUS_NO_SUCH_USER clientAccount=some\u00e4body logonId=7",
        "malformed event: '[1]'",
        "? X ",
    ]


def test_joins_again_when_the_files_are_made_anew(place: Place) -> None:
    """The directory is emptied under it, as a tmpfs that ends with a service is; nobody would find it any more."""
    listening = start(place, "auth", "--json", "--count", "1")
    listening.await_line("listening as")
    names = Path(place.config.lock_directory, "names.tdb")
    if not names.exists():
        pytest.skip("this build keeps names in a file of its own")
    names.unlink()
    listening.await_line("listening as")
    tell(place, "auth_event", MessageType.AUTH_LOG, json.dumps(EVENT))
    assert listening.wait() == 0
    assert json.loads(listening.output.splitlines()[-1]) == EVENT


def test_ends_with_its_reader(place: Place) -> None:
    listening = start(place, "auth")
    listening.await_line("listening as")
    listening.signal(signal.SIGTERM)
    assert listening.wait() == 128 + signal.SIGTERM
    with Messaging(place.config) as messaging:
        assert messaging.lookup("auth_event") == []


def test_wrong_usage(place: Place) -> None:
    failed = place.msgcontrol("events", "weather")
    assert failed.returncode == 2
    assert "invalid choice: 'weather'" in one_line(failed)


def test_other_messaging_type(place: Place) -> None:
    failed = place.msgcontrol("--option", "messaging type=stream", "events", "auth")
    assert failed.returncode == 1
    assert "Samba's daemons send their events by dgram" in one_line(failed)
