# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fuzzing the gateway's lines, both ways: whatever is said is read, or refused by MalformedMessage in one short line.

MSGD_FUZZ_SECONDS is how long each target runs, 5 by default.  What fails is kept in .hypothesis and tried first the
next time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msgd import MalformedMessage
from msgd.errors import MsgdError
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.json_lines import LineReader
from msgd.wire.gateway.replies import BYES, ERRORS, read_reply, write_refusal
from msgd.wire.gateway.requests import OPERATIONS, Asked, BadRequest, read_request

SECONDS = float(os.environ.get("MSGD_FUZZ_SECONDS", "5"))
ROUND = 500
"""Examples between two looks at the clock."""

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -0.0, 1, 2**31, 2**32, 2**53, 2**64, -1, 10**400, 1e308]),
)
TEXTS = st.one_of(
    st.text(st.characters() | st.sampled_from("\ud800\udfff\0\ufeff\x1b"), max_size=80),
    st.sampled_from(["PING", "0xF000", "0xFFFFFFFF", "1", "1.2/3", "0:1.2/3", "AAA=", "====", *ERRORS, *BYES]),
    st.integers().map(str),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)
DATA_MEMBERS = ("text", "base64", "json")
REQUEST_MEMBERS = ("op", "id", "to", "type", "types", "answer", "timeout", "call", "more", "topic", "topics", "wait")
REPLY_MEMBERS = (
    "ok",
    "op",
    "id",
    "event",
    "error",
    "message",
    "type",
    "from",
    "to",
    "answer",
    "pattern",
    "topic",
    "missed",
)
SNIPPETS = st.sampled_from(
    [b"\xef\xbb\xbf", b"\xff", b"\0", b"9" * 5000, b"1e400", b"NaN", b"[" * 2000, b'"\\ud800"', b" "]
)


def objects(names: tuple[str, ...], kinds: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[bytes]:
    """Objects that are almost what is expected."""
    members = st.dictionaries(st.sampled_from(names) | TEXTS, VALUES, max_size=6)
    return st.builds(
        lambda first, others: json.dumps(first | others).encode(), st.fixed_dictionaries({}, optional=kinds), members
    )


def damaged(lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The same with something cut out or put in."""
    return st.builds(
        lambda line, start, end, put_in: line[: min(start, end)] + put_in + line[max(start, end) :],
        lines,
        st.integers(0, 100),
        st.integers(0, 100),
        SNIPPETS | st.binary(max_size=8),
    )


REQUESTS = objects(
    (*REQUEST_MEMBERS, *DATA_MEMBERS), {"op": st.sampled_from(list(OPERATIONS)), "to": NUMBERS | TEXTS, "type": TEXTS}
)
REPLIES = objects(
    (*REPLY_MEMBERS, *DATA_MEMBERS),
    {"ok": st.booleans(), "event": st.sampled_from(["message", "publication", "gap", "bye"]), "id": NUMBERS},
)
ANYTHING = st.binary(max_size=300)


def check_request(line: bytes) -> None:
    """It is read or refused; a refusal is one short line that a client reads."""
    try:
        asked = read_request(line)
    except BadRequest as error:
        answer = write_refusal(error.op, error.tag, error)
        assert answer.count(b"\n") == 1
        assert len(answer) < 1500
        read_reply(answer)
    else:
        assert isinstance(asked, Asked)
        assert asked.op in OPERATIONS


def check_reply(line: bytes) -> None:
    try:
        read_reply(line)
    except MalformedMessage as error:
        text = str(error)
    else:
        text = ""
    assert len(text) < 500


def check_stream(stream: bytes, size: int, max_bytes: int) -> None:
    """Cut in any way, a stream holds the same lines; the reader holds no more than it may."""
    reader, lines = LineReader(max_bytes), []
    try:
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
            while (line := reader.next_line()) is not None:
                lines.append(line)
    except MalformedMessage:
        assert max(map(len, stream.split(b"\n"))) > max_bytes
        return
    last = reader.last_line()
    assert b"\n".join([*lines, last or b""]) == stream


def check_conversation(lines: list[bytes], size: int) -> None:
    """A client that asks one thing gets an answer, an error of the closed set, or goes on waiting."""
    conversation = Conversation()
    tag, _ = conversation.ask("call")
    stream = b"\n".join(lines)
    for start in range(0, len(stream), size):
        conversation.feed(stream[start : start + size])
    with contextlib.suppress(MsgdError):
        conversation.take(tag)


def run(examples: st.SearchStrategy[tuple[Any, ...]], check: Callable[..., None]) -> None:
    """Check examples until the time is over; hypothesis makes a failing one small."""

    @settings(max_examples=ROUND, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(examples)
    def check_one(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        check_one()


def test_requests() -> None:
    run(st.tuples(REQUESTS | damaged(REQUESTS) | ANYTHING), check_request)


def test_replies() -> None:
    run(st.tuples(REPLIES | damaged(REPLIES) | ANYTHING), check_reply)


def test_streams() -> None:
    run(st.tuples(ANYTHING, st.integers(1, 20), st.integers(1, 400)), check_stream)


def test_conversations() -> None:
    run(st.tuples(st.lists(REPLIES | damaged(REPLIES), max_size=4), st.integers(1, 200)), check_conversation)
