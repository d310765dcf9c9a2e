# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clients of a gateway on one node publish to the subscribers of all nodes, and are told who has handled it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from msgd import HandlerFailed, ReplyTimeout
from msgd.client import Client
from tests.cluster.conftest import MakeConfig
from tests.pubsub.test_acked import raising
from tests.pubsub.workers import Worker, heard
from tests.support.ctdb_nodes import await_true
from tests.support.daemons import Running

CONFIGURATION = """
[global]
    clustering = yes
    ctdbd socket = {ctdbd}
    lock directory = {lock}
    pid directory = {run}
    private dir = {run}
    msgd:listen = {gateway}
    messaging type = dgram
"""


def listens(path: str) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as one, suppress(OSError):
        one.connect(path)
        return True
    return False


@pytest.fixture
def gateway(on_node: MakeConfig, scratch: Path) -> Iterator[str]:
    """Where a msgd on node 0 listens."""
    config, path = on_node(0), str(scratch / "gateway")
    text = CONFIGURATION.format(ctdbd=config.ctdbd_socket, lock=config.lock_directory, run=scratch, gateway=path)
    (scratch / "smb.conf").write_text(text)
    msgd = Running([sys.executable, "-m", "msgd.daemon", "-F", "-s", str(scratch / "smb.conf")])
    try:
        await_true(lambda: listens(path))
        yield path
    finally:
        msgd.kill()


def test_who_has_handled_it_on_all_nodes(on_node: MakeConfig, gateway: str) -> None:
    workers = [
        Worker(on_node(0), "a"),
        Worker(on_node(1), "a"),
        Worker(on_node(1), first=raising),
        Worker(on_node(2), "a"),
    ]
    here, there, bad, slow = workers
    try:
        with Client(gateway) as client:
            there.begin(heard, 2)
            bad.begin(heard, "end")
            assert list(client.publish("a", 0, wait="acked").acked) == [here.pid]
            slow.stop()
            publication = client.publish("a", 1, wait="acked", timeout=5)
            assert publication.acked == {here.pid: 1}
            elsewhere = {server_id.pid: outcome for server_id, outcome in publication.elsewhere.items()}
            assert elsewhere[there.pid] == 1
            assert isinstance(elsewhere[bad.pid], HandlerFailed)
            assert isinstance(elsewhere[slow.pid], ReplyTimeout)
            assert {server_id.vnn for server_id in publication.elsewhere} == {1, 2}
            assert (publication.delivered, publication.is_complete) == (2, False)
            slow.resume()
            bad.kill()
            assert client.publish("a", 2, wait="acked", timeout=20).is_complete
            assert there.hear() == [0, 1, 2]
    finally:
        for worker in workers:
            worker.kill()
