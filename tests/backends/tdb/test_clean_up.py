# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which records clean-up removes."""

from __future__ import annotations

from msgd import Messaging
from msgd.backends.tdb.backend import TdbBackend
from msgd.wire.server_id import ServerID
from msgd.wire.tdb_record import pack_message, queue_key
from tests.support.harness import Child


def test_a_living_samba_3_keeps_its_queue(messaging: Messaging) -> None:
    """Samba 3.0 has no lock file.  Its record is removed when the process has ended."""
    backend = messaging._endpoint.backend
    assert isinstance(backend, TdbBackend)
    with Child(lambda channel: channel.recv()) as samba:
        pid = samba.pid
        backend._file.tdb.store(queue_key(pid), pack_message(ServerID(pid), messaging.server_id, 1, b"5\0"))
        assert pid not in messaging.clean_up()
        assert messaging.pending(pid) == 1
    assert pid in messaging.clean_up()
    assert messaging.pending(pid) == 0
