# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Two clustered Samba on two nodes, and msgd beside each: smbd, smbcontrol and msgcontrol reach each other."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Message, MessageType, Messaging, ServerID
from tests.interop import samba
from tests.support.ctdb_nodes import Cluster
from tests.support.harness import PATIENCE, TEXT, Peer, Session, dispatch_until, serve, take_data


class ClusteredSamba(samba.Samba):
    """A Samba of one node, with directories of its own."""

    def __init__(self, directory: Path, cluster: Cluster, number: int) -> None:
        directory.mkdir()
        super().__init__(directory)
        node = cluster.nodes[number]
        text = self.file.read_text().replace(
            "[global]\n", f"[global]\n    clustering = yes\n    ctdbd socket = {node.socket}\n"
        )
        self.file.write_text(text)


@pytest.fixture(scope="module")
def sambas(cluster: Cluster) -> Iterator[list[ClusteredSamba]]:
    reason = samba.missing()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="s"))
    try:
        first, second = (ClusteredSamba(directory / str(number), cluster, number) for number in (0, 1))
        with first, second:
            yield [first, second]
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def here(sambas: list[ClusteredSamba]) -> Iterator[Messaging]:
    """A context of the test's process, beside the smbd of node 0."""
    with Messaging(sambas[0].config()) as messaging:
        sambas[0].await_answer(messaging)
        yield messaging


@pytest.fixture
def there(sambas: list[ClusteredSamba]) -> Iterator[Peer]:
    """A process beside the smbd of node 1."""
    with Peer(sambas[1].config()) as peer:
        yield peer


def test_msgd_asks_the_smbd_of_another_node(here: Messaging, sambas: list[ClusteredSamba]) -> None:
    address = f"1:{sambas[1].pid}"
    assert here.is_alive(address)
    answer = here.request(address, MessageType.PING, b"hello", timeout=PATIENCE)
    assert (answer.src.vnn, answer.src.pid, answer.data) == (1, sambas[1].pid, b"hello")
    assert here.request(answer.src, MessageType.PING, b"", timeout=PATIENCE).src == answer.src  # with its unique id
    here.request(sambas[0].pid, MessageType.PING, timeout=PATIENCE)  # its own, locally


def test_smbcontrol_pings_msgd_on_another_node(sambas: list[ClusteredSamba], there: Peer) -> None:
    there.begin(serve)
    status, output = sambas[0].smbcontrol(f"1:{there.pid}", "ping")
    assert status == 0
    assert f"{there.pid}" in output
    status, output = sambas[1].smbcontrol(there.pid, "ping")
    assert status == 0
    assert "PONG" in output


def test_msgcontrol_pings_the_smbd_of_another_node(sambas: list[ClusteredSamba]) -> None:
    status, output = sambas[0].msgcontrol(f"1:{sambas[1].pid}", "ping")
    assert (status, output) == (0, f"PONG from pid 1:{sambas[1].pid}\n")
    status, output = sambas[1].msgcontrol(f"0:{sambas[0].pid}", "debuglevel")
    assert status == 0
    assert output.startswith(f"PID 0:{sambas[0].pid}: ")
    status, output = sambas[0].msgcontrol("1:2147483647", "ping")
    assert status == 1
    assert "no process 1:2147483647" in output
    status, output = sambas[0].msgcontrol("7:5", "ping")
    assert status == 1
    assert "no node 7" in output


def test_msgcontrol_all_reaches_all_nodes(sambas: list[ClusteredSamba], there: Peer) -> None:
    there.begin(serve)
    status, output = sambas[0].msgcontrol("-t", "2", "all", "ping")
    assert status == 0
    lines = output.splitlines()
    for pid in (f"0:{sambas[0].pid}", f"1:{sambas[1].pid}", f"1:{there.pid}"):
        assert lines.count(f"PONG from pid {pid}") == 1


def test_smbcontrols_broadcast_reaches_msgd_once(here: Messaging, sambas: list[ClusteredSamba], there: Peer) -> None:
    """Samba's broadcast goes through ctdb to all nodes, that of the sender included."""
    pings: list[Message] = []
    here.register(MessageType.SMB_CONF_UPDATED, pings.append)
    there.call(_count_updates)
    assert sambas[0].smbcontrol("all", "reload-config")[0] == 0
    dispatch_until(here, lambda: pings)
    here.send(there.server_id, TEXT, b"behind it")
    assert there.call(take_data, 1) == [b"behind it"]
    assert there.call(_updates) == 1
    here.dispatch()
    [update] = pings
    assert update.dst == here.server_id


def _count_updates(session: Session) -> None:
    session.messaging.register(MessageType.SMB_CONF_UPDATED, session.kept.append)


def _updates(session: Session) -> int:
    return len(session.kept)


def test_names_are_local_as_sambas_are(here: Messaging, sambas: list[ClusteredSamba], there: Peer) -> None:
    """Each node's names.tdb holds the processes of that node, which Samba writes with the number of the node."""
    names = here.names()
    assert names
    assert all(one.vnn == 0 for processes in names.values() for one in processes)
    there_names = there.call(_names)
    assert all(one.vnn == 1 for processes in there_names.values() for one in processes)


def _names(session: Session) -> dict[str, list[ServerID]]:
    return session.messaging.names()
