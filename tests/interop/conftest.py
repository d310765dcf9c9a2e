# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures: one smbd for all tests of a pytest worker, in its own directories."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, Messaging
from tests.interop.samba import Samba, missing, stop
from tests.support.harness import Peer


@pytest.fixture(scope="session")
def samba() -> Iterator[Samba]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    try:
        with Samba(directory) as samba:
            yield samba
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def config(samba: Samba) -> Config:
    return samba.config()


@pytest.fixture
def messaging(samba: Samba, config: Config) -> Iterator[Messaging]:
    """A context in the test process, which smbd has already answered."""
    with Messaging(config) as messaging:
        samba.await_answer(messaging)
        yield messaging


@pytest.fixture
def peer(config: Config) -> Iterator[Peer]:
    """A process that uses msgd's library, in Samba's directories."""
    with Peer(config) as peer:
        yield peer


@pytest.fixture
def msgd(samba: Samba) -> Iterator[int]:
    """The pid of a running msgd."""
    daemon = samba.start_msgd()
    yield daemon.pid
    stop(daemon)
