# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures of the transports' tests.  Each test runs for each variant of each compiled-in messaging type.

variants.py lists the variants; contract/README.md says which tests hold which clause of the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from msgd import Config, Messaging
from tests.backends.variants import Variant, compiled_in
from tests.support.harness import Peer


class MakeConfig(Protocol):
    """Makes a Config for the variant under test, in the test's rendezvous directory."""

    def __call__(self, **overrides: Any) -> Config: ...


class StartPeer(Protocol):
    """Starts a peer, with the test's configuration or another one.  All peers are killed at the end of the test."""

    def __call__(self, other: Config | None = None, /, **arguments: Any) -> Peer: ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        variants = compiled_in(getattr(metafunc.module, "MESSAGING_TYPES", None))
        metafunc.parametrize("variant", variants, ids=[variant.name for variant in variants])


@pytest.fixture
def make_config(variant: Variant, scratch: Path) -> MakeConfig:
    def make(**overrides: Any) -> Config:
        settings = {"lock_directory": str(scratch / "lock"), "messaging_type": variant.messaging_type}
        return Config(**(settings | variant.overrides | overrides))

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """The configuration under test."""
    return make_config()


@pytest.fixture
def scratch_config(make_config: MakeConfig, scratch: Path) -> Config:
    """The same configuration in another rendezvous directory."""
    return make_config(lock_directory=str(scratch / "other"))


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
    """Another process, which reads only when it is told to."""
    return start()
