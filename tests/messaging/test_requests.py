# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Requests: each gets its own answer, and what cannot be answered is told at once."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from msgd import Message, MessageType, Messaging, NoHandler, NoSuchProcess, ReplyTimeout, ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import PATIENCE, Peer, Session, serve

ASK, ANSWER = 0xF200, 0xF201


def echo(session: Session) -> None:
    """Answer each ASK with its own data."""
    session.messaging.register(ASK, lambda message: session.messaging.reply(message, ANSWER, message.data))
    serve(session)


def answer_by_pid(session: Session) -> None:
    """Answer as a peer that knows pids alone."""
    session.messaging.register(
        ASK, lambda message: session.messaging.send(message.src.pid, ANSWER, message.data) and None
    )
    serve(session)


def hold_back(session: Session, number: int) -> None:
    """Take so many questions, then answer them in the opposite order."""
    asked: list[Message] = []
    session.messaging.register(ASK, asked.append)
    while len(asked) < number:
        session.messaging.dispatch(None)
    for message in reversed(asked):
        session.messaging.reply(message, ANSWER, message.data)
    serve(session)


def test_own_answer(messaging: Messaging, peer: Peer) -> None:
    peer.begin(echo)
    assert messaging.request(peer.server_id, ASK, b"one", ANSWER, PATIENCE).data == b"one"


def test_samba_pairs_need_no_reply_type(messaging: Messaging, peer: Peer) -> None:
    peer.begin(serve)
    assert messaging.request(peer.pid, "PING", b"x", timeout=PATIENCE).type == MessageType.PONG


def test_unknown_pair_needs_a_reply_type(messaging: Messaging, peer: Peer) -> None:
    with pytest.raises(TypeError, match="reply_type is missing"):
        messaging.request(peer.pid, ASK)


def test_answers_in_the_opposite_order(messaging: Messaging, peer: Peer) -> None:
    """Eight threads ask; whoever gets another's answer shows it."""
    peer.begin(hold_back, 8)
    with ThreadPoolExecutor(8) as pool:
        questions = [b"%d" % number for number in range(8)]
        asked = [pool.submit(messaging.request, peer.server_id, ASK, text, ANSWER, PATIENCE) for text in questions]
        assert [one.result().data for one in asked] == questions
    assert messaging.statistics().drops == {}


def test_answer_to_the_pid_alone(messaging: Messaging, peer: Peer) -> None:
    peer.begin(answer_by_pid)
    assert messaging.request(peer.server_id, ASK, b"old", ANSWER, PATIENCE).data == b"old"


def test_no_handler_is_told_at_once(messaging: Messaging, peer: Peer) -> None:
    peer.begin(serve)
    with pytest.raises(NoHandler, match="no handler for 0xf200") as caught:
        messaging.request(peer.server_id, ASK, b"", ANSWER, timeout=None)
    assert caught.value.dst == peer.server_id
    assert caught.value.type == ASK


def test_wrong_task_is_told_at_once(messaging: Messaging, peer: Peer) -> None:
    peer.begin(serve)
    with pytest.raises(NoSuchProcess, match="no such task"):
        messaging.request(peer.server_id._replace(task_id=77), ASK, b"", ANSWER, timeout=None)


def test_end_of_the_process_asked(messaging: Messaging, peer: Peer) -> None:
    killer = threading.Timer(0.05, os.kill, (peer.pid, 9))
    killer.start()
    with pytest.raises(NoSuchProcess, match="ended before it answered"):
        messaging.request(peer.server_id, ASK, b"", ANSWER, timeout=None)
    killer.join()


def test_late_answer_is_counted(messaging: Messaging, peer: Peer) -> None:
    with pytest.raises(ReplyTimeout) as caught:
        messaging.request(peer.server_id, ASK, b"", ANSWER, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    peer.begin(echo)
    deadline = time.monotonic() + PATIENCE
    while not messaging.statistics().drops and time.monotonic() < deadline:
        messaging.dispatch(1)
    assert messaging.statistics().drops == {"an answer nobody waits for": 1}


def answer_from_another(session: Session, asker: ServerID) -> None:
    session.messaging.send(asker, ANSWER, b"from my child")
    serve(session)


def test_answer_from_any(messaging: Messaging, start: StartPeer) -> None:
    asked, child = start(), start()

    def ask(from_any: bool) -> Message:
        return messaging.request(asked.server_id, ASK, b"", ANSWER, PATIENCE, answer_from_any=from_any)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, True)
        child.begin(answer_from_another, messaging.server_id)
        assert answer.result().data == b"from my child"


def test_survey(messaging: Messaging, start: StartPeer) -> None:
    answering, silent = [start() for _ in range(3)], start()
    for one in answering:
        one.begin(echo)
    silent.begin(serve)
    result = messaging.survey(ASK, b"who", ANSWER, PATIENCE)
    assert {pid: answer.data for pid, answer in result.answers.items()} == {one.pid: b"who" for one in answering}
    assert {pid: type(error) for pid, error in result.failures.items()} == {silent.pid: NoHandler}


def test_nothing_stays_behind(messaging: Messaging, peer: Peer) -> None:
    peer.begin(echo)
    messaging.request(peer.server_id, ASK, b"", ANSWER, PATIENCE)  # from now on the process is known
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        messaging.request(peer.server_id, ASK, b"", ANSWER, PATIENCE)
    assert not len(messaging._endpoint.requests)
    assert not messaging.handlers.expected
    assert len(os.listdir("/proc/self/fd")) == before
