# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""duplicates_allowed=False: a message is merged with an identical one that is still in the file, and with no other."""

from __future__ import annotations

import pytest

from msgd import Config, Messaging, SendStatus, ServerID
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.support.harness import TEXT, Session, take, take_data

MERGED, SENT = SendStatus.MERGED, SendStatus.SENT


@pytest.mark.parametrize("mode", MODES)
def test_merged_in_the_record_and_in_segments(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    config = make_config(**MODES[mode])
    receiver = start(config)
    with Messaging(config) as messaging:
        texts = [b"%d" % number for number in range(4000)]
        for text in texts:
            messaging.send(receiver.pid, TEXT, text)
        for number in (0, 1, 300, 1500, 3000, 3999):
            assert messaging.send(receiver.pid, TEXT, texts[number], duplicates_allowed=False) is MERGED
        assert messaging.send(receiver.pid, TEXT, b"new", duplicates_allowed=False) is SENT
        assert messaging.send(receiver.pid, TEXT + 1, texts[0], duplicates_allowed=False) is SENT
        assert receiver.call(take_data, 4001) == [*texts, b"new"]
        assert messaging.send(receiver.pid, TEXT, texts[0], duplicates_allowed=False) is SENT


def test_another_senders_is_no_duplicate(messaging: Messaging, start: StartPeer) -> None:
    receiver, sender = start(), start()
    messaging.send(receiver.pid, TEXT, b"same")
    assert sender.call(send_unless_pending, receiver.pid) == "sent"
    assert sender.call(send_unless_pending, receiver.pid) == "merged"
    assert len(receiver.call(take_data, 2)) == 2


def send_unless_pending(session: Session, pid: int) -> str:
    return session.messaging.send(pid, TEXT, b"same", duplicates_allowed=False).value


def open_second(session: Session) -> ServerID:
    second = Messaging(session.config)
    session.kept.append(second)
    second.register(TEXT, session.messages.append)
    return second.server_id


def test_another_tasks_is_no_duplicate(config: Config, messaging: Messaging, start: StartPeer) -> None:
    """A waiting message for task 1 contains the same plain record as one for task 0."""
    receiver = start()
    task = receiver.call(open_second)
    assert messaging.send(ServerID(task.pid, 1), TEXT, b"same") is SENT
    assert messaging.send(task.pid, TEXT, b"same", duplicates_allowed=False) is SENT
    assert messaging.send(ServerID(task.pid, 1), TEXT, b"same", duplicates_allowed=False) is MERGED
    with Messaging(config) as second:
        assert second.send(task.pid, TEXT, b"same", duplicates_allowed=False) is SENT
    assert [message.dst.task_id for message in receiver.call(take, 3)] == [1, 0, 0]
