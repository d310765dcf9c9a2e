# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Topics over the gateway: its clients publish, subscribe, and are told of gaps."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue

import pytest

from msgd.pubsub import Event, PubSub
from msgd.pubsub.parcel import pack_parcel
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place


@pytest.fixture
def pubsub(place: Place) -> Iterator[PubSub]:
    place.msgd()
    with PubSub(place.config) as pubsub:
        yield pubsub


def test_clients_publish(place: Place, pubsub: PubSub) -> None:
    heard: Queue[Event] = Queue()
    pubsub.subscribe("a.*", heard.put)
    with RawClient(place) as client:
        for member, data in (
            ({"text": "one"}, "one"),
            ({"base64": "/w=="}, b"\xff"),
            ({"json": [None]}, [None]),
            ({}, b""),
        ):
            answer = client.ask(op="publish", id=1, topic="a.b", **member)
            assert answer == {"ok": True, "op": "publish", "id": 1, "delivered": 1, "failures": {}}
            event = heard.get(timeout=PATIENCE)
            assert (event.topic, event.data) == ("a.b", data)


def test_clients_subscribe(place: Place, pubsub: PubSub) -> None:
    with RawClient(place) as client, RawClient(place) as other:
        assert client.ask(op="subscribe", topics=["a.*", "c"]) == {"ok": True, "op": "subscribe"}
        assert pubsub.publish("b", "no").delivered == 1
        pubsub.publish("a.b", b"\xff")
        event = client.read()
        assert event.pop("from") == str(pubsub._open().messaging.server_id)
        assert event == {"event": "publication", "pattern": "a.*", "topic": "a.b", "base64": "/w=="}
        assert other.ask(op="publish", topic="c", json={"x": 1})["delivered"] == 1
        assert client.read()["json"] == {"x": 1}
        assert client.ask(op="unsubscribe", topics="a.*")["ok"]
        pubsub.publish("a.b", "no")
        assert pubsub.publish("c", "yes", wait="acked").is_complete
        assert client.read()["text"] == "yes"
        client.say(op="publish", topic="c", text="own")
        assert {"publication", "publish"} == {
            line.get("event", line.get("op")) for line in (client.read(), client.read())
        }


def test_a_client_is_told_of_a_gap(place: Place, pubsub: PubSub) -> None:
    with RawClient(place) as client:
        client.ask(op="subscribe", topics="a")
        hub = pubsub._open()
        with hub.numbered(pack_parcel("a", "lost", hub.config.max_message_size), include_self=False):
            pass
        gap = client.read()
        assert (gap["event"], gap["reason"], gap["missed"]) == ("gap", "overdue", 1)


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "publish", "topic": "a*"},
        {"op": "publish", "topic": 7},
        {"op": "publish", "topic": "a", "text": "b", "json": 1},
        {"op": "subscribe", "topics": []},
        {"op": "subscribe", "topics": ["a\n*"]},
        {"op": "subscribe"},
    ],
)
def test_bad_requests(place: Place, request_: dict[str, object]) -> None:
    place.msgd()
    with RawClient(place) as client:
        assert client.ask(**request_)["error"] == "bad-request"
        assert client.ask(op="ping")["ok"]


def test_nothing_is_left_of_a_client(place: Place, pubsub: PubSub) -> None:
    before = place.files()
    with RawClient(place) as client:
        client.ask(op="subscribe", topics="a")
        client.ask(op="publish", topic="a", text="b")
    while place.files() != before:
        pass
    pubsub.subscribe("a", print)
    assert list(pubsub.topics().values()) == [["a"]]
