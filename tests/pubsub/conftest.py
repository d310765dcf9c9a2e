# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures of the tests of pubsub.  Each test with a configuration runs once for each compiled-in messaging type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msgd import Config
from msgd._registry import MESSAGING_MODULES
from msgd.pubsub import PubSub
from tests.pubsub.workers import INTERVAL, Notes, Worker

StartWorker = Callable[..., Worker]


@pytest.fixture(params=[module.name for module in MESSAGING_MODULES])
def config(request: pytest.FixtureRequest, scratch: Path) -> Config:
    return Config(lock_directory=str(scratch / "lock"), messaging_type=request.param)


@pytest.fixture
def plain_config(scratch: Path) -> Config:
    """For what has nothing to do with the transport."""
    return Config(lock_directory=str(scratch / "lock"))


@pytest.fixture
def start() -> Iterator[StartWorker]:
    """Starts workers, which are killed at the end of the test."""
    workers: list[Worker] = []

    def start_worker(config: Config, *topics: str, first: Callable[[Notes], object] | None = None) -> Worker:
        workers.append(Worker(config, *topics, first=first))
        return workers[-1]

    yield start_worker
    for worker in workers:
        worker.kill()


@pytest.fixture
def pubsub(config: Config) -> Iterator[PubSub]:
    """A PubSub of the test's own process."""
    with PubSub(config, check_interval=INTERVAL) as pubsub:
        yield pubsub
