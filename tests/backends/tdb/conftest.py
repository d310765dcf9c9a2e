"""One messaging type, in the modes it can be run in; see tests/conformance for what it shares with the others."""

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
"""The three ways of running the type, by the names used in the tests' ids."""

needs_tdb_tools = pytest.mark.skipif(
    shutil.which("tdbtool") is None, reason="tdbtool not found: apt-get install tdb-tools"
)

TDB_MAGIC = (0x26011999).to_bytes(4, "little")
"""What stands before a record's key in the file."""


@pytest.fixture
def make_config(scratch: Path) -> MakeConfig:
    def make(**overrides: Any) -> Config:
        return Config(**({"lock_directory": str(scratch / "lock"), "messaging_type": "tdb"} | overrides))

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """The default mode; a test that is to run in all of them has a `mode` parameter."""
    return make_config()


@pytest.fixture
def messaging(config: Config) -> Iterator[Messaging]:
    """A context of the test's own process."""
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
    """Another process, which does not read until told."""
    return start()
