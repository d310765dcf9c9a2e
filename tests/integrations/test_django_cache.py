# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Django's cache: what one worker forgets, all forget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config
from tests.integrations.servers import LIMIT, PATIENT, STORM, WORKERS, check_workers, disturber, serving, storm
from tests.pubsub.workers import Notes, Worker, heard, publish_acked

pytest.importorskip("django", reason="django is not installed")

from django.conf import settings

if not settings.configured:
    settings.configure()

from msgd.integrations import django_cache
from msgd.integrations.django_cache import CoherentCache
from msgd.pubsub.parcel import pack_parcel

pytestmark = pytest.mark.timeout(PATIENT)


@pytest.fixture
def directory(scratch: Path) -> Iterator[str]:
    directory = str(scratch / "lock")
    yield directory
    django_cache._stores.pop(directory).pubsub.close()


@pytest.fixture
def other(directory: str) -> Iterator[Worker]:
    """Another process in the directory, which hears what is told."""
    worker = Worker(Config(lock_directory=directory), "django.cache")
    yield worker
    worker.kill()


def cache(directory: str, **options: Any) -> CoherentCache:
    return CoherentCache(directory, {"OPTIONS": options})


def test_it_is_a_cache_of_django(directory: str) -> None:
    one, same = cache(directory), cache(directory)
    one.set("a", [1])
    assert same.get("a") == [1]
    assert one.get_or_set("b", lambda: 2) == same.get("b") == 2
    assert not one.add("b", 3)
    assert one.incr("b") == 3
    assert one.delete("b")
    assert not one.delete("b")
    assert not same.has_key("b")
    one.set_many({"c": 1, "d": 2})
    same.clear()
    assert one.get_many(["a", "c", "d"]) == {}


def test_changes_are_told_and_fills_are_not(directory: str, other: Worker) -> None:
    mine, filling = cache(directory), cache(directory, TELL_SET=False)
    mine.set("a", 1)
    mine.add("b", 1)
    mine.get_or_set("c", 1)
    filling.set("d", 1)
    mine.incr("b")
    mine.delete("a")
    mine.clear()
    assert other.call(heard, []) == [[":1:a"], [":1:b"], [":1:a"], []]


def test_what_others_say_and_gaps_are_heard(directory: str, other: Worker) -> None:
    mine = cache(directory)
    for key in "abc":
        mine.set(key, 1)
    assert other.call(publish_acked, "django.cache", [":1:a"])[1] == []
    assert mine.get_many("abc") == {"b": 1, "c": 1}
    other.call(publish_acked, "django.cache", [])
    assert mine.get_many("abc") == {}
    mine.set("a", 1)
    other.call(count_without_sending)
    other.call(publish_acked, "another", b"")
    assert mine.get("a") is None


def count_without_sending(notes: Notes) -> None:
    """A publication that is counted, and lost."""
    hub = notes.pubsub._open()
    with hub.numbered(pack_parcel("lost", b"", hub.config.max_message_size), include_self=False):
        pass


def test_what_was_computed_before_a_deletion_is_not_kept(directory: str, other: Worker) -> None:
    mine = cache(directory)

    def compute() -> int:
        other.call(publish_acked, "django.cache", [":1:a"])
        return 1

    assert mine.get_or_set("a", compute) == 1
    assert mine.get("a") is None
    assert mine.get_or_set("b", compute) == mine.get("b") == 1


def test_workers_are_complete_or_told() -> None:
    command = ["gunicorn", "-c", "EXAMPLES/gunicorn.conf.py", "-w", str(WORKERS), "-b", "unix:SOCKET", "-p", "PIDFILE"]
    limits = ["--max-requests", LIMIT, "--max-requests-jitter", "20", "--graceful-timeout", "1"]
    application = "tests.integrations.audited:app"
    with serving([*command, *limits, "--preload", application], EXAMPLE="django_app") as (server, auditor):
        check_workers(server, auditor, storm(server, range(1, STORM + 1), disturber(server)))
