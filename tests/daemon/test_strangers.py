# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The daemon beside a stranger who locks whatever it can open."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from msgd.client import Client
from msgd.messaging import backend_class
from tests.support.daemons import Place
from tests.support.strangers import locking, needs_root, stranger

pytestmark = needs_root


@pytest.fixture(params=["dgram", "stream", "tdb"])
def typed_place(place: Place, request: pytest.FixtureRequest) -> Place:
    try:
        backend_class(request.param)
    except Exception as error:  # noqa: BLE001  # whatever keeps it from being used here
        pytest.skip(str(error))
    place.configure("log level = 3", f"messaging type = {request.param}")
    return place


def test_msgd_starts_again_after_a_crash(typed_place: Place) -> None:
    """The stranger holds whatever the dead msgd has left."""
    msgd = typed_place.msgd()
    pid = msgd.pid
    msgd.kill()
    assert typed_place.pid_file.exists()
    with stranger(typed_place.directory, locking(typed_place.directory)) as holder:
        assert str(typed_place.pid_file) in holder.hear()
        again = typed_place.msgd()
        assert typed_place.pid_file.read_text() == f"{again.pid}\n"
        assert str(pid) not in typed_place.files()
        assert typed_place.msgcontrol("msgd", "ping").returncode == 0


def test_connection_processes_serve_and_end(typed_place: Place) -> None:
    """They open their contexts while all is locked, and do not outlive their service."""
    msgd = typed_place.msgd()
    with stranger(typed_place.directory, locking(typed_place.directory)) as holder:
        assert str(typed_place.directory / "lock") in holder.hear()
        with Client(typed_place.gateway) as client:
            client.ping()
            (connection,) = Path(f"/proc/{msgd.pid}/task/{msgd.pid}/children").read_text().split()
            pidfd = os.pidfd_open(int(connection))
        try:
            assert select.select([pidfd], [], [], 30)[0], "the connection process has not ended"
        finally:
            os.close(pidfd)
