"""What the journal is told of clients, besides lines of text."""

from __future__ import annotations

import pytest

from msgd.daemon import events
from tests.daemon.daemons import Place
from tests.daemon.system_log import SystemLog, needs_mounts
from tests.gateway.raw import RawClient
from tests.gateway.test_access import NOBODY, as_nobody, connect
from tests.harness import Channel

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
