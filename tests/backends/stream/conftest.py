# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures of the stream transport's own tests.  The tests set small bounds, so that they are reached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from msgd import Config, Messaging
from tests.backends.stream.raw import RawConnection
from tests.support.harness import Peer


class MakeConfig(Protocol):
    """Makes a Config of the stream backend in the test's rendezvous directory."""

    def __call__(self, **overrides: Any) -> Config: ...


class Connect(Protocol):
    """Makes a raw connection from this process to itself; closed at the end of the test."""

    def __call__(self) -> RawConnection: ...


class StartPeer(Protocol):
    """Starts a peer, with the settings given; all peers are killed at the end of the test."""

    def __call__(self, **overrides: Any) -> Peer: ...


@pytest.fixture
def make_config(scratch: Path) -> MakeConfig:
    def make(**overrides: Any) -> Config:
        return Config(lock_directory=str(scratch / "lock"), messaging_type="stream", **overrides)

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """The defaults."""
    return make_config()


@pytest.fixture
def messaging(config: Config) -> Iterator[Messaging]:
    """A context in the test's own process."""
    with Messaging(config) as messaging:
        yield messaging


@pytest.fixture
def connect(config: Config) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def connect_raw() -> RawConnection:
            connection = RawConnection(config, os.getpid())
            stack.callback(connection.close)
            return connection

        yield connect_raw


@pytest.fixture
def start(make_config: MakeConfig) -> Iterator[StartPeer]:
    peers: list[Peer] = []

    def start_peer(**overrides: Any) -> Peer:
        peer = Peer(make_config(**overrides))
        peers.append(peer)
        return peer

    yield start_peer
    for peer in peers:
        peer.kill()
