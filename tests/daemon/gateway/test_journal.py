# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the journal is told of clients, besides lines of text."""

from __future__ import annotations

import os

import pytest

from msgd import Messaging, events
from tests.daemon.gateway.raw import RawClient
from tests.daemon.gateway.test_access import NOBODY, as_nobody, connect
from tests.support.daemons import Place
from tests.support.harness import TEXT, Channel, drain
from tests.support.system_log import SystemLog, needs_mounts

pytest.importorskip("systemd.journal", reason="systemd-python is not installed")

pytestmark = needs_mounts


def test_a_client_that_is_refused(place: Place) -> None:
    with SystemLog(place) as log:
        log.journaling()
        with as_nobody(place, lambda channel: connect(place)) as child:
            entry = log.entry("MESSAGE_ID", events.REFUSED)
        assert (entry["PEER_PID"], entry["PEER_UID"]) == (str(child.pid), str(NOBODY))
        assert (entry["ERROR"], entry["NUMBER"], entry["PRIORITY"]) == ("not-allowed", "1", "4")


def test_an_attempt_at_a_type_that_is_not_allowed(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody")

    def attempt(channel: Channel) -> None:
        with RawClient(place) as client:
            client.ask(op="send_all", type="SHUTDOWN")

    with SystemLog(place) as log:
        log.journaling()
        with as_nobody(place, attempt) as child:
            entry = log.entry("MESSAGE_ID", events.TYPE_REFUSED)
        assert (entry["PEER_PID"], entry["PEER_UID"]) == (str(child.pid), str(NOBODY))
        assert (entry["MESSAGE_TYPE"], entry["NUMBER"]) == ("SHUTDOWN", "1")
        said = f"pid {child.pid} of uid {NOBODY} may not send SHUTDOWN; msgd:allow types says which may"
        assert entry["MESSAGE"] == said


def test_a_message_that_is_dropped(place: Place) -> None:
    with SystemLog(place) as log, Messaging(place.config) as messaging:
        msgd = log.journaling()
        messaging.send(msgd.pid, TEXT)
        dropped = log.entry("MESSAGE_ID", events.DROPPED)
        assert (dropped["REASON"], dropped["NUMBER"]) == ("of a type without handler", "1")
        assert (dropped["PEER_PID"], dropped["MESSAGE_TYPE"]) == (str(os.getpid()), f"{TEXT:#x}")


def test_a_message_there_is_no_memory_for(place: Place) -> None:
    place.configure("log level = 3", "msgd:client memory = 64M")
    with SystemLog(place) as log, Messaging(place.config) as messaging:
        log.journaling()
        with RawClient(place) as client:
            client.ask(op="register", types=TEXT)
            messaging.send(client.pid, TEXT, b"\xff" * (16 << 20))
            drain(messaging)
            entry = log.entry("MESSAGE_ID", events.CONNECTION_FAILED)
        assert (entry["PEER_PID"], entry["PEER_UID"]) == (str(os.getpid()), str(os.geteuid()))
        assert "no memory for a message of 16777216 bytes" in entry["MESSAGE"]
