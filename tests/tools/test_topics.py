# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol publish, subscribe and topics, against a program that publishes and subscribes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from msgd.pubsub import Event, Gap, PubSub
from msgd.pubsub.parcel import pack_parcel
from tests.support.daemons import PATIENCE, Place, Running, one_line


@pytest.fixture
def pubsub(place: Place) -> Iterator[PubSub]:
    """A program in the directory of the place's smb.conf, which msgcontrol is given by -s."""
    with PubSub(place.config) as pubsub:
        yield pubsub


@pytest.fixture
def heard(pubsub: PubSub) -> Queue[Event]:
    heard: Queue[Event] = Queue()
    pubsub.subscribe("a.*", heard.put)
    return heard


def test_publish(place: Place, heard: Queue[Event], scratch: Path) -> None:
    (scratch / "file").write_bytes(b"\0\1")
    for words, data in (
        (["text"], "text"),
        ([], ""),
        ([f"@{scratch / 'file'}"], b"\0\1"),
        (["--as", "bytes", "b"], b"b"),
        (["--as", "json", '["key", 1]'], ["key", 1]),
        (["-"], b""),
    ):
        done = place.msgcontrol("publish", "a.b", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "delivered to 1 process\n", "")
        event = heard.get(timeout=PATIENCE)
        assert (event.topic, event.data) == ("a.b", data)


def test_publish_with_acknowledgements(place: Place, pubsub: PubSub, heard: Queue[Event]) -> None:
    assert place.msgcontrol("publish", "--acked", "a.b").stdout == "handled by 1 process\n"
    assert place.msgcontrol("publish", "--acked", "other").stdout == "handled by 0 processes\n"

    @pubsub.subscribe("a.c")
    def fail(event: Event) -> None:
        raise ValueError("no")

    failed = place.msgcontrol("publish", "--acked", "--json", "a.c")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"msgcontrol: pid {os.getpid()}: a subscriber in pid {os.getpid()}: ValueError")
    assert list(json.loads(failed.stdout)["failures"]) == [str(os.getpid())]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["publish", "a*"], "cannot be a topic"),
        (["publish", "a", "--as", "json", "{"], "Expecting property name"),
        (["publish", "a", "@/nowhere"], "/nowhere: No such file"),
    ],
)
def test_what_cannot_be_published(place: Place, words: list[str], complaint: str) -> None:
    failed = place.msgcontrol(*words)
    assert failed.returncode == 1
    assert complaint in one_line(failed)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["publish"], "required: TOPIC"),
        (["subscribe", "a", "b"], "unrecognized arguments: b"),
        (["topics", "a"], "unrecognized arguments: a"),
        (["subscribe", "--count", "0", "a"], "not a number of events"),
    ],
)
def test_wrong_usage(place: Place, words: list[str], complaint: str) -> None:
    failed = place.msgcontrol(*words)
    assert failed.returncode == 2
    assert complaint in one_line(failed)


def subscriber(place: Place, pubsub: PubSub, *words: str) -> Running:
    """A msgcontrol that subscribes already."""
    running = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "subscribe", *words)
    while running.pid not in pubsub.topics():
        pass
    return running


def test_subscribe(place: Place, pubsub: PubSub) -> None:
    running = subscriber(place, pubsub, "a.*")
    try:
        for data in ("text", b"\xff", ["json"], "two\nlines"):
            pubsub.publish("a.b", data)
        for shown in ("a.b text", "a.b \\xff", 'a.b ["json"]', "a.b two\\nlines"):
            assert running.await_line("a.b") == shown
    finally:
        os.kill(running.pid, signal.SIGINT)
    assert running.wait() == 0


def test_subscribe_prints_json_and_gaps(place: Place, pubsub: PubSub) -> None:
    running = subscriber(place, pubsub, "--json", "--count", "3", "a")
    hub = pubsub._open()
    pubsub.publish("a", "text")
    with hub.numbered(pack_parcel("a", b"lost", hub.config.max_message_size), include_self=False):
        pass
    pubsub.publish("a", b"\xff")
    pubsub.publish("a", {"b": None})
    assert json.loads(running.await_line("{")) == {"topic": "a", "from": str(hub.messaging.server_id), "text": "text"}
    assert "may have been missed: publications of one publisher" in running.await_line("msgcontrol:")
    assert json.loads(running.await_line("{")) == {"gap": "MISSING", "missed": 1}
    assert json.loads(running.await_line("{"))["base64"] == "/w=="
    assert json.loads(running.await_line("{"))["json"] == {"b": None}
    assert running.wait() == 0


def test_topics(place: Place, pubsub: PubSub, heard: Queue[Event]) -> None:
    pubsub.subscribe("b", heard.put)
    assert place.msgcontrol("topics").stdout == f"{os.getpid()} a.*\n{os.getpid()} b\n"
    assert json.loads(place.msgcontrol("--json", "topics").stdout) == {str(os.getpid()): ["a.*", "b"]}


def test_nobody_subscribes(place: Place, pubsub: PubSub, scratch: Path) -> None:
    pubsub.start()
    nobody = place.msgcontrol("topics")
    assert (nobody.returncode, nobody.stdout) == (0, "")
    assert f"nobody subscribes to anything in {place.config.lock_directory}" in one_line(nobody)
    mistyped = place.run("msgd.tools.msgcontrol", "topics", "--directory", str(scratch / "mistyped"))
    assert mistyped.returncode == 1
    assert "there is no such directory" in one_line(mistyped)
    assert not (scratch / "mistyped").exists()


def test_a_directory_without_a_configuration(place: Place, scratch: Path) -> None:
    with PubSub(scratch / "meet") as pubsub:
        gaps: Queue[Event | Gap] = Queue()
        pubsub.subscribe("a", gaps.put)
        done = place.run("msgd.tools.msgcontrol", "publish", "--directory", str(scratch / "meet"), "a", "1")
        assert (done.returncode, done.stdout) == (0, "delivered to 1 process\n")
    failed = place.run("msgd.tools.msgcontrol", "publish", "--name", "../x", "a")
    assert "cannot name a directory" in one_line(failed)
