# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the programs show of a cluster: msgstatus its nodes and their states, the daemon's metrics the same."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, MessageType, Messaging
from msgd.pubsub import Event
from tests.pubsub.workers import Notes, Worker, heard
from tests.support.ctdb_nodes import Cluster, await_true
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place
from tests.support.harness import Peer

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")


@pytest.fixture(autouse=True)
def whole_again(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.restore()


@pytest.fixture
def clustered(place: Place, cluster: Cluster) -> Place:
    """A place on node 0."""
    place.configure(
        "log level = 3",
        "clustering = yes",
        f"ctdbd socket = {cluster.nodes[0].socket}",
        "ctdb timeout = 500",
        f"msgd:metrics = unix:{place.directory}/metrics",
    )
    place.config = Config.load(place.smb_conf)
    return place


def msgstatus(place: Place, *arguments: str) -> tuple[str, str]:
    """Run msgstatus; its output and what it has written to stderr."""
    done = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf), *arguments)
    assert done.returncode == 0
    return done.stdout, done.stderr


def as_json(place: Place) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(msgstatus(place, "--json")[0])
    return shown


def states(place: Place) -> dict[int, str]:
    """The states of the nodes, by number."""
    return {node["number"]: node["state"] for node in as_json(place)["nodes"]}


def scrape(place: Place) -> dict[str, float]:
    """The samples by name and labels."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(f"{place.directory}/metrics")
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    return {name: float(value) for name, value in re.findall(r"^([^#\s].*) (\S+)$", answer.decode(), re.MULTILINE)}


def test_msgstatus_shows_the_nodes(clustered: Place, cluster: Cluster) -> None:
    with Peer(clustered.config) as peer:
        [row] = as_json(clustered)["processes"]
        assert (row["node"], row["server_id"]) == (0, str(peer.server_id))
        assert as_json(clustered)["nodes"] == [
            {"number": node.number, "address": node.address, "state": "ok", "is_own": node.number == 0}
            for node in cluster.nodes
        ]
        for arguments in ((), ("--wide",)):
            output, complaints = msgstatus(clustered, *arguments)
            heading, process, *nodes = output.splitlines()
            assert complaints == ""
            assert heading.split()[:2] == ["NODE", "PID"]
            assert process.split()[:2] == ["0", str(peer.pid)]
            assert max(map(len, (heading, process))) <= 80 or arguments
            assert [line.split() for line in nodes] == [
                [],
                ["NODE", "ADDRESS", "STATE"],
                ["0", cluster.nodes[0].address, "ok", "(this", "node)"],
                ["1", cluster.nodes[1].address, "ok"],
                ["2", cluster.nodes[2].address, "ok"],
            ]


def test_msgstatus_shows_what_is_wrong_with_a_node(clustered: Place, cluster: Cluster) -> None:
    with Messaging(clustered.config):
        assert cluster.nodes[1].ctdb("ban", "600")[0] == 0
        assert cluster.nodes[2].ctdb("disable")[0] == 0
        await_true(lambda: states(clustered) == {0: "ok", 1: "banned", 2: "disabled"}, lambda: str(states(clustered)))
        assert cluster.nodes[1].ctdb("unban")[0] == 0
        assert cluster.nodes[2].ctdb("enable")[0] == 0
        cluster.await_ready()
        cluster.nodes[2].kill()
        await_true(lambda: "disconnected" in states(clustered)[2], lambda: str(states(clustered)))


@pytest.mark.parametrize("end", ["kill", "hang"])
def test_without_ctdbd_msgstatus_shows_the_processes(clustered: Place, cluster: Cluster, end: str) -> None:
    with Peer(clustered.config) as peer:
        getattr(cluster.nodes[0], end)()
        output, complaints = msgstatus(clustered)
        assert output.splitlines()[1].split()[:2] == ["-", str(peer.pid)]
        assert re.fullmatch(r"msgstatus: asking ctdbd at .*\n", complaints)
        shown = as_json(clustered)
        assert (shown["processes"][0]["node"], shown["nodes"]) == (None, [])


def test_msgcontrol_publishes_to_all_nodes(clustered: Place, cluster: Cluster) -> None:
    config = clustered.config.replace(
        lock_directory=f"{clustered.directory}/1", ctdbd_socket=str(cluster.nodes[1].socket)
    )

    def msgcontrol(*arguments: str) -> tuple[int, str, str]:
        done = clustered.run("msgd.tools.msgcontrol", "-s", str(clustered.smb_conf), "publish", *arguments)
        return done.returncode, done.stdout, done.stderr

    with Worker(config, "t") as worker:
        assert msgcontrol("t", "hello") == (0, "delivered to 0 processes, and sent to 2 other nodes\n", "")
        assert worker.call(heard, "hello") == ["hello"]
        status, output, _ = msgcontrol("--acked", "--json", "t", "again")
        shown = json.loads(output)
        assert status == 0
        assert (shown["delivered"], shown["acked"], shown["nodes"]) == (1, {}, {})
        [(address, callbacks)] = shown["elsewhere"].items()
        assert address.startswith(f"1:{worker.pid}/")
        assert callbacks == 1
        worker.call(refuse, "t")
        status, _, complaint = msgcontrol("--acked", "t", "no")
        assert status == 1
        assert complaint.startswith(f"msgcontrol: pid 1:{worker.pid}: a subscriber in pid 1:{worker.pid}: ")


def refuse(notes: Notes, topic: str) -> None:
    """Have a callback that raises."""

    def fail(event: Event) -> None:
        raise ValueError("not with me")

    notes.pubsub.subscribe(topic, fail)


def test_msgbench_measures_from_node_to_node(tmp_path: Path) -> None:
    """It starts a cluster of its own."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "msgd.bench", "ping", "--cluster", "--types", "dgram", "--seconds", "0.2"]
    done = subprocess.run(
        [*command, "--runs", "1", "-q", "--json", str(result)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    [shown] = json.loads(result.read_text())["results"]
    figures = {row["subject"]: row["runs"][0]["figures"] for row in shown["rows"]}
    assert list(figures) == ["dgram", "dgram, clustered", "node to node", "broadcast"]
    assert all(one["rate"] > 0 and one["cpu"] > 0 for one in figures.values())
    assert figures["broadcast"]["node"] > 0
    assert figures["broadcast"]["process"] > 0


def test_metrics_of_each_node(clustered: Place, cluster: Cluster) -> None:
    clustered.msgd()
    config = clustered.config.replace(
        lock_directory=f"{clustered.directory}/1", ctdbd_socket=str(cluster.nodes[1].socket)
    )
    with Messaging(clustered.config) as beside, Messaging(config) as remote:
        [daemon] = beside.lookup("msgd")
        for _ in range(3):
            remote.request(daemon, MessageType.PING, timeout=PATIENCE)
        samples = scrape(clustered)
        assert samples["msgd_ctdbd_up"] == 1
        for node in cluster.nodes:
            label = f'address="{node.address}",node="{node.number}"'
            assert samples[f'msgd_node_state{{{label},state="ok"}}'] == 1
            assert samples[f'msgd_node_state{{{label},state="banned"}}'] == 0
        assert samples['msgd_node_messages_total{direction="in",node="1"}'] == 3
        assert samples['msgd_node_messages_total{direction="out",node="1"}'] == 3
        assert samples['msgd_node_messages_total{direction="out",node="2"}'] == 0
        assert remote.statistics().nodes[0] == (3, 3)
        cluster.nodes[0].kill()
        samples = scrape(clustered)
        assert samples["msgd_ctdbd_up"] == 0
        assert not any(name.startswith("msgd_node_state") for name in samples)
        with contextlib.suppress(KeyError):
            assert samples['msgd_node_messages_total{direction="in",node="1"}'] == 3
