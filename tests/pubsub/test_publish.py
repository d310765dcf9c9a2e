# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Publishing and subscribing: who hears what, in which order, and who is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from msgd import Config, ContextClosed, MessageTooLarge
from msgd.pubsub import PubSub
from msgd.wire.message_types import MessageClass
from tests.pubsub.conftest import StartWorker
from tests.pubsub.workers import Notes, heard, publish, settle, so_far

DATA: list[Any] = [b"bytes", "text", {"json": [1, 2.5, None]}, 7]


def test_subscribers_hear_their_topics_in_order(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    exact, pattern, other = start(config, "prices.eur"), start(config, "prices.*"), start(config, "news")
    for data in DATA:
        assert pubsub.publish("prices.eur", data).delivered == 3
    pubsub.publish("prices.usd", "last")
    pubsub.publish("prices.eur", "end")
    assert exact.call(heard, "end") == [*DATA, "end"]
    assert pattern.call(heard, "end") == [*DATA, "last", "end"]
    assert other.call(settle) == []


def test_many_go_in_one_call(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    worker = start(config, "a")
    assert pubsub.publish_many([("a", number) for number in range(100)]).delivered == 1
    assert worker.call(heard, 99) == list(range(100))
    assert pubsub.publish_many([]).delivered == 0


def test_the_own_process_hears_it_unless_it_is_told_not_to(plain_config: Config) -> None:
    with PubSub(plain_config, background=False) as pubsub:
        notes = Notes(pubsub)
        pubsub.subscribe("a", notes.note)
        assert pubsub.publish("a", 1).delivered == 1
        assert pubsub.publish("a", 2, include_self=False).delivered == 0
        assert not pubsub.is_current()
        pubsub.publish("a", 3)
        assert heard(notes, 3) == [1, 3]
        assert pubsub.is_current()
        assert notes.gaps() == []


def test_a_process_that_subscribes_to_nothing_is_not_woken_up(config: Config, start: StartWorker) -> None:
    quiet, worker, publisher = start(config), start(config, "a"), start(config)
    quiet.call(publish, "opens", "it")
    assert publisher.call(publish, "a", 1) == (1, [])
    worker.call(heard, 1)
    assert quiet.call(received) == 0


def received(notes: Notes) -> int:
    hub = notes.pubsub._open()
    assert hub.messaging.listens == MessageClass(0)
    return hub.messaging.statistics().received


def test_a_subscription_that_is_closed_hears_no_more(config: Config, pubsub: PubSub, start: StartWorker) -> None:
    notes = Notes(pubsub)
    with pubsub.subscribe("a", notes.note):
        pubsub.subscribe("b", notes.note)
        pubsub.publish("a", 1)
        heard(notes, 1)
    pubsub.publish("a", 2)
    pubsub.publish("b", 3)
    assert heard(notes, 3) == [1, 3]


def test_a_raising_callback_is_logged_and_the_others_run(
    plain_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    with PubSub(plain_config, background=False) as pubsub:
        notes = Notes(pubsub)

        @pubsub.subscribe("a")
        def fail(event: object) -> None:
            raise ValueError("no")

        pubsub.subscribe("a", notes.note)
        pubsub.publish("a", 1)
        assert heard(notes, 1) == [1]
        assert "a callback for a" in caplog.text


def test_topics_tells_who_subscribes_to_what(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    first, second = start(config, "b", "a.*"), start(config, "c")
    for worker in (first, second):
        worker.begin(heard, "end")
    assert pubsub.topics() == {first.pid: ["a.*", "b"], second.pid: ["c"]}


def test_what_cannot_be_published_leaves_no_gap(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    worker = start(config, "a")
    with pytest.raises(MessageTooLarge, match="msgd:max message size"):
        pubsub.publish("a", bytes(config.max_message_size))
    for topic, data in (("a*", b""), ("", b"")):
        with pytest.raises(ValueError, match="topic"):
            pubsub.publish(topic, data)
    with pytest.raises(TypeError):
        pubsub.publish("a", object())  # type: ignore[arg-type]
    pubsub.publish("a", "end")
    assert worker.call(heard, "end") == ["end"]


def test_what_cannot_be_called_is_refused(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        with pytest.raises(TypeError, match="a callback is a function, not str"):
            pubsub.subscribe("a", "b")  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="on_gap is a function, not int"):
            pubsub.subscribe("a", print, on_gap=7)  # type: ignore[call-overload]
        assert pubsub.topics() == {}


def test_a_closed_one_is_closed(plain_config: Config) -> None:
    pubsub = PubSub(plain_config)
    assert pubsub.close() == 0
    assert pubsub.close() == 0
    with pytest.raises(ContextClosed):
        pubsub.publish("a")


def test_two_objects_of_a_process_share_its_place(plain_config: Config) -> None:
    with PubSub(plain_config) as one, PubSub(plain_config) as other:
        notes = Notes(other)
        one.subscribe("a", notes.note)
        other.subscribe("a", notes.note)
        publication = one.publish("a", 1, wait="acked")
        assert list(publication.acked.values()) == [2]
        one.close()
        assert other.publish("a", 2, wait="acked").is_complete
        assert so_far(notes) == [1, 1, 2]
