# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""One object, made when the module is imported: it works before and after a fork, under spawn, and at exit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from msgd import Config
from msgd.pubsub import Gap, GapReason, PubSub, start_all
from tests.pubsub.conftest import StartWorker
from tests.pubsub.workers import Notes, heard, publish, so_far, wait
from tests.support.daemons import ENVIRONMENT
from tests.support.harness import Channel, Child


def child_of(pubsub: PubSub, notes: Notes) -> Child:
    """A forked child that does what the test says with its parent's objects."""

    def serve(channel: Channel) -> None:
        while True:
            function, *arguments = channel.recv()
            channel.send(function(notes, *arguments))

    return Child(serve)


def ask(child: Child, *what: object) -> object:
    child.tell(what)
    return child.hear()


def all_started(notes: Notes) -> list[object]:
    start_all()
    return list(notes.heard)


def started(notes: Notes) -> list[object]:
    notes.pubsub.start()
    return list(notes.heard)


@pytest.fixture
def notes(pubsub: PubSub) -> Notes:
    notes = Notes(pubsub)
    pubsub.subscribe("a", notes.note, on_gap=notes.note_gap)
    return notes


def test_parent_and_children_hear_each_other(config: Config, pubsub: PubSub, notes: Notes) -> None:
    pubsub.publish("a", 1)
    heard(notes, 1)
    with child_of(pubsub, notes) as one, child_of(pubsub, notes) as other:
        assert ask(one, started) == ask(other, all_started) == [1]
        assert ask(one, publish, "a", 2) == (3, [])
        assert heard(notes, 2) == [1, 2]
        assert ask(other, heard, 2) == ask(one, heard, 2) == [1, 2]
        pubsub.publish("a", 3)
        assert ask(other, heard, 3) == ask(one, heard, 3) == [1, 2, 3]


def test_a_child_that_opens_late_knows_that_it_is_stale(config: Config, pubsub: PubSub, notes: Notes) -> None:
    with child_of(pubsub, notes) as child:
        pubsub.publish("a", 1)
        heard(notes, 1)
        assert ask(child, started) == [Gap(GapReason.BEFORE)]
        assert ask(child, publish, "a", 2) == (2, [])
        assert ask(child, heard, 2) == [Gap(GapReason.BEFORE), 2]


def test_what_the_parent_had_not_handled_when_it_forked_is_a_gap_in_the_child(
    plain_config: Config, start: StartWorker
) -> None:
    with PubSub(plain_config, background=False) as pubsub:
        notes = Notes(pubsub)
        pubsub.subscribe("a", notes.note, on_gap=notes.note_gap)
        start(plain_config).call(publish, "a", 1)
        with child_of(pubsub, notes) as child:
            assert ask(child, started) == [Gap(GapReason.BEFORE)]
        assert heard(notes, 1) == [1]


def test_a_fork_finds_no_other_threads(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        notes = Notes(pubsub)
        pubsub.subscribe("a", notes.note)
        names = {thread.name for thread in threading.enumerate()}
        assert {"msgd-dispatcher", "msgd-pubsub"} <= names
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        pubsub.publish("a", 1)
        wait(notes, lambda: so_far(notes) == [1])
        assert {thread.name for thread in threading.enumerate()} == names


def test_the_slot_of_a_dead_parent_is_free_while_its_child_lives(plain_config: Config, start: StartWorker) -> None:
    worker = start(plain_config, "a")
    parent = Child(lambda channel: _fork_and_wait(channel, plain_config))
    orphan = parent.hear()
    parent.kill()
    try:
        with PubSub(plain_config) as pubsub:
            pubsub.publish("a", 2)
            hub = pubsub._open()
            assert hub._slot is not None
            assert hub._slot.index == 0
        assert worker.call(heard, 2) == [1, 2]
    finally:
        os.kill(orphan, 9)


def _fork_and_wait(channel: Channel, config: Config) -> None:
    pubsub = PubSub(config)
    pubsub.publish("a", 1)
    child = os.fork()
    if child == 0:
        threading.Event().wait()
    channel.send(child)
    threading.Event().wait()


PROGRAM = """
import multiprocessing, sys
from msgd.pubsub import PubSub

pubsub = PubSub(sys.argv[1])

def work(number):
    pubsub.publish("a", number)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    if sys.argv[2] == "fork":
        pubsub.publish("a", "parent")
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    pubsub.publish("a", "end")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_of_several_processes_that_closes_nothing(
    plain_config: Config, start: StartWorker, scratch: Path, method: str
) -> None:
    worker = start(plain_config, "a")
    program = scratch / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(program), plain_config.lock_directory, method],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    events = worker.call(heard, "end")
    first = ["parent"] if method == "fork" else []
    assert events[: len(first)] == first
    assert sorted(events[len(first) : -1]) == [0, 1, 2]
