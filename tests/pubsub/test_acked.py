# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Acknowledged publications: who has handled it, who has failed, who is late, and who has died."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from msgd import AlreadyDispatching, Config
from msgd.pubsub import Event, PubSub
from tests.pubsub.conftest import StartWorker
from tests.pubsub.workers import Notes, heard, pidfds, so_far
from tests.support.harness import Child


def raising(notes: Notes) -> None:
    def fail(event: Event) -> None:
        raise ValueError(f"not {event.data}")

    notes.pubsub.subscribe("a", fail)


def dying(notes: Notes) -> None:
    notes.pubsub.subscribe("a", lambda event: os.kill(os.getpid(), signal.SIGKILL))


def test_it_returns_when_all_have_handled_it(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    workers = [start(config, "a") for _ in range(3)]
    other = start(config, "b")
    for worker in (*workers, other):
        worker.begin(heard, "end")
    publication = pubsub.publish("a", 1, wait="acked", timeout=30)
    assert publication.is_complete
    assert publication.acked == {**{worker.pid: 1 for worker in workers}, other.pid: 0}
    pubsub.publish("a", "end")
    pubsub.publish("b", "end")
    assert [worker.hear() for worker in workers] == [[1, "end"]] * 3
    other.hear()


def test_it_names_who_has_failed_who_is_late_and_who_has_died(
    config: Config, start: StartWorker, pubsub: PubSub
) -> None:
    good, bad, slow, dead = (
        start(config, "a"),
        start(config, first=raising),
        start(config, "a"),
        start(config, first=dying),
    )
    for worker in (good, bad, dead):
        worker.begin(heard, "end")
    slow.stop()
    publication = pubsub.publish("a", 1, wait="acked", timeout=1)
    assert list(publication.acked) == [good.pid]
    assert list(publication.failed) == [bad.pid]
    assert "ValueError: not 1" in str(publication.failed[bad.pid])
    assert list(publication.late) == [slow.pid]
    assert list(publication.died) == [dead.pid]
    assert not publication.is_complete
    slow.resume()
    assert slow.call(heard, 1) == [1]


def test_the_dead_do_not_make_it_incomplete(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    dead = start(config, first=dying)
    dead.begin(heard, "end")
    publication = pubsub.publish("a", 1, wait="acked", timeout=30)
    assert publication.is_complete
    assert list(publication.died) == [dead.pid]


@pytest.mark.parametrize("config", ["dgram", "stream"], indirect=True)
def test_threads_wait_for_their_own(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    worker = start(config, "*")
    notes = Notes(pubsub)
    pubsub.subscribe("*", notes.note)
    with ThreadPoolExecutor(8) as pool:
        publications = list(pool.map(lambda number: pubsub.publish(f"t{number}", number, wait="acked"), range(40)))
    assert all(one.acked == {worker.pid: 1, os.getpid(): 1} for one in publications)
    assert so_far(notes) == worker.call(so_far)
    assert sorted(so_far(notes)) == list(range(40))


def test_who_is_asked_again_is_watched_still(plain_config: Config, start: StartWorker) -> None:
    before = set(pidfds())
    with PubSub(plain_config) as pubsub:
        workers = [start(plain_config, "a") for _ in range(3)]
        pubsub.publish("a", 1, wait="acked")
        kept = set(pidfds()) - before
        assert len(kept) == 3
        pubsub.publish("a", 2, wait="acked")
        assert set(pidfds()) - before == kept
        workers[0].kill()
        other = start(plain_config, "a")
        for _ in range(2):
            publication = pubsub.publish("a", 3, wait="acked")
            assert publication.is_complete
            assert set(publication.acked) == {worker.pid for worker in (*workers[1:], other)}
            assert len(set(pidfds()) - before) == 3
    assert set(pidfds()) == before


def test_a_forked_child_watches_nobody(plain_config: Config, start: StartWorker) -> None:
    start(plain_config, "a")
    with PubSub(plain_config) as pubsub:
        before = set(pidfds())
        pubsub.publish("a", 1, wait="acked")
        child = Child(lambda channel: channel.send(pidfds()))
        assert set(child.hear()) <= before
        child.kill()
        assert pubsub.publish("a", 2, wait="acked").is_complete


def test_a_callback_may_publish_but_not_wait(plain_config: Config, start: StartWorker) -> None:
    worker = start(plain_config, "b")
    errors: list[Exception] = []
    with PubSub(plain_config) as pubsub:

        @pubsub.subscribe("a")
        def again(event: Event) -> None:
            pubsub.publish("b", event.data)
            try:
                pubsub.publish("b", "waits", wait="acked")
            except AlreadyDispatching as error:
                errors.append(error)

        assert pubsub.publish("a", 1, wait="acked").is_complete
    assert "another thread" in str(errors[0])
    assert worker.call(heard, 1) == [1]


def test_a_wrong_wait_is_refused(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub, pytest.raises(ValueError, match="acked"):
        pubsub.publish("a", wait="ack")  # type: ignore[arg-type]
