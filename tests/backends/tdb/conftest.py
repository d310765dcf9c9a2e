# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures for messaging type tdb in each of its modes; tests/backends/contract tests what all types have in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, Messaging
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import Peer

MODES: dict[str, dict[str, Any]] = {
    "mutexes": {},
    "fcntl": {"tdb_mutexes": False},
    "nommap": {"use_mmap": False},
}
"""The three modes of the type, by the names that the tests' ids use."""

needs_tdb_tools = pytest.mark.skipif(
    shutil.which("tdbtool") is None, reason="tdbtool not found: apt-get install tdb-tools"
)

TDB_MAGIC = (0x26011999).to_bytes(4, "little")
"""The bytes in front of each record's key in the file."""


@pytest.fixture
def make_config(scratch: Path) -> MakeConfig:
    def make(**overrides: Any) -> Config:
        return Config(**({"lock_directory": str(scratch / "lock"), "messaging_type": "tdb"} | overrides))

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """The default mode.  A test that runs in all modes has a `mode` parameter instead."""
    return make_config()


@pytest.fixture
def messaging(config: Config) -> Iterator[Messaging]:
    """A context in the test's own process."""
    with Messaging(config) as messaging:
        yield messaging


@pytest.fixture
def start(config: Config) -> Iterator[StartPeer]:
    peers: list[Peer] = []

    def start_peer(other: Config | None = None, /, **arguments: Any) -> Peer:
        peer = Peer(config if other is None else other, **arguments)
        peers.append(peer)
        return peer

    yield start_peer
    for peer in peers:
        peer.kill()


@pytest.fixture
def peer(start: StartPeer) -> Peer:
    """Another process.  It reads only when it is told to."""
    return start()
