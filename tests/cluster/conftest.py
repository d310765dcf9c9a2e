# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures: a cluster of three real ctdbd for the tests of a file, and msgd's processes on its nodes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, Messaging
from msgd.messaging.endpoint import Endpoint
from tests.support.ctdb_nodes import Cluster, await_true, missing
from tests.support.harness import Peer

MakeConfig = Callable[..., Config]
StartPeer = Callable[..., Peer]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="c"))
    try:
        with Cluster(directory) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def on_node(cluster: Cluster) -> Iterator[MakeConfig]:
    """Makes the configuration of a process on a node: each node has a lock directory of its own."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))

    def make(number: int, **parameters: Any) -> Config:
        values = {"messaging_type": "dgram"} | parameters
        socket = str(cluster.nodes[number].socket)
        return Config(lock_directory=directory / str(number), clustering=True, ctdbd_socket=socket, **values)

    yield make
    shutil.rmtree(directory)


@pytest.fixture
def start(on_node: MakeConfig) -> Iterator[StartPeer]:
    """Starts processes on nodes; they are killed when the test ends."""
    with contextlib.ExitStack() as running:

        def start_peer(number: int, **parameters: Any) -> Peer:
            return running.enter_context(Peer(on_node(number, **parameters)))

        yield start_peer


@pytest.fixture
def here(on_node: MakeConfig) -> Iterator[Messaging]:
    """A context of the test's process, on node 0."""
    with Messaging(on_node(0)) as messaging:
        yield messaging


def trouble(messaging: Messaging) -> str:
    """Why the context's link to ctdbd is not ready; empty if it is."""
    endpoint: Endpoint = messaging._endpoint
    assert endpoint.cluster is not None
    return endpoint.cluster._link.trouble


def await_link(messaging: Messaging, *, ready: bool = True) -> None:
    """Dispatch until the link to ctdbd is ready, or is not."""

    def is_so() -> bool:
        messaging.dispatch()
        return (not trouble(messaging)) is ready

    await_true(is_so, lambda: trouble(messaging))
