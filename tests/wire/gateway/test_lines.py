# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The gateway's lines: what is read, what is refused, and that what one side writes the other one reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import GatewayClosed, MalformedMessage, Message, MessageType, NoSuchProcess, NotAllowed, QueueFull, ServerID
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.json_lines import LineReader, read_object
from msgd.wire.gateway.limits import MAX_EVENTS
from msgd.wire.gateway.members import write_data
from msgd.wire.gateway.replies import (
    BYES,
    ERRORS,
    Answer,
    Bye,
    Event,
    Missed,
    Published,
    Refusal,
    error_code,
    last_word,
    read_reply,
    write_answer,
    write_bye,
    write_event,
    write_gap,
    write_publication,
    write_refusal,
)
from msgd.wire.gateway.requests import (
    Asked,
    BadRequest,
    Call,
    Cancel,
    Deregister,
    Hello,
    Names,
    Ping,
    Register,
    Request,
    Send,
    SendAll,
    read_request,
    write_request,
)
from tests.wire.strategies import server_ids

TEXTS = st.text(st.characters() | st.sampled_from("\ud800\udfff"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner),
    max_leaves=5,
)
MEMBERS = st.sampled_from(["op", "id", "to", "type", "types", "text", "base64", "answer", "timeout", "more"])
VALUES = JSON | st.sampled_from(["hello", "send", "send_all", "register", "call", "names", "ping", "PING", "1", "AAA="])
GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.dictionaries(MEMBERS, VALUES, max_size=6).map(lambda members: json.dumps(members).encode()),
)
"""Lines that are something between noise and almost a request."""


# Lines


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line), max_size=20), st.integers(1, 100))
def test_lines_are_cut_wherever_the_stream_was(lines: list[bytes], size: int) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    reader, read = LineReader(100), []
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
        while (line := reader.next_line()) is not None:
            read.append(line)
    assert (read, reader.last_line(), reader.last_line()) == (lines, b"rest", None)


@pytest.mark.parametrize("line", [b"12345\n", b"12345", b"1234567890"])
def test_a_line_that_is_too_long_is_refused_before_all_of_it_is_there(line: bytes) -> None:
    reader = LineReader(4)
    reader.feed(b"1234\n" + line)
    assert reader.next_line() == b"1234"
    with pytest.raises(MalformedMessage, match="longer than 4 bytes"):
        reader.next_line()


@given(st.binary() | st.text().map(str.encode))
def test_data_comes_back_and_is_at_most_about_doubled(data: bytes) -> None:
    members = write_data(data)
    assert read_object(json.dumps(members).encode()).take_data() == data
    assert len(json.dumps(members, ensure_ascii=False).encode()) <= 2 * len(data) + 20


@pytest.mark.parametrize(
    ("data", "members"),
    [
        (b"", {}),
        (b"text\0", {"text": "text\0"}),
        ("Grüße,\tWelt\r\n".encode(), {"text": "Grüße,\tWelt\r\n"}),
        (b"\0\0", {"base64": "AAA="}),
        (b"\x1b[2J", {"base64": "G1sySg=="}),
        (b"\xff", {"base64": "/w=="}),
    ],
)
def test_data_is_text_where_a_terminal_can_show_it(data: bytes, members: dict[str, str]) -> None:
    assert write_data(data) == members


# Requests

THERE = ServerID(4711, unique_id=12)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ('{"op": "hello"}', Hello()),
        ('{"op": "send", "to": 4711, "type": "ping"}', Send(ServerID(4711), 2, b"", 0.0)),
        ('{"op": "send", "to": "4711/12", "type": 61440, "text": "\\u00fc"}', Send(THERE, 0xF000, b"\xc3\xbc", 0.0)),
        ('{"op":"send","to":"4711/12","type":"0xF000","base64":"/w==","timeout":1}', Send(THERE, 0xF000, b"\xff", 1.0)),
        ('{"op": "send_all", "type": "61440", "text": "x"}', SendAll(0xF000, b"x")),
        ('{"op": "register", "types": "PONG"}', Register((3,))),
        ('{"op": "register", "types": ["PONG", 7]}', Register((3, 7))),
        ('{"op": "deregister", "types": [3]}', Deregister((3,))),
        ('{"op": "call", "to": "4711/12", "type": 5, "answer": 6}', Call(THERE, 5, b"", 6, 10.0)),
        ('{"op": "cancel", "call": 7}', Cancel(7)),
        ('{"op": "cancel", "call": "seven"}', Cancel("seven")),
        ('{"op": "names"}', Names()),
        ('{"op": "ping"}', Ping()),
        ('{"op": "ping", "to": "4711/12", "timeout": 0.5}', Call(THERE, 2, b"", 3, 0.5)),
    ],
)
def test_requests(line: str, request_: Request) -> None:
    assert read_request(line.encode()).request == request_


@pytest.mark.parametrize("tag", ["", "x" * 64, 0, -5, (1 << 53) - 1, None])
def test_a_tag_is_kept(tag: str | int | None) -> None:
    assert read_request(write_request("ping", tag)) == Asked("ping", tag, Ping())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "not JSON: the line is blank"),
        (b" \t\r", "not JSON: the line is blank"),
        (b'\xef\xbb\xbf{"op": "ping"}', "the line begins with a byte order mark; leave it out"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"op": ' + b"9" * 5000 + b"}", "not JSON: a number has too many digits"),
        (b'{"op": "ping", "id": ' + b"9" * 4000 + b"}", "id: a string of at most 64 characters or a whole number"),
        (b'{"op": "ping", "id": null}', "id: a string of at most 64 characters or a whole number"),
        (b'{"op": "ping", "id": 1e400}', "id: a string of at most 64 characters or a whole number"),
        (b'{"op": "ping", "to": null}', "to: a pid or a server id"),
        (b'{"op": "ping", "to": 1, "timeout": 1e400}', "timeout: a number of seconds from 0 to 3600"),
        (b'{"op": "cancel"}', "the member 'call' is missing"),
        (b'{"op": "cancel", "call": null}', "call: a string of at most 64 characters or a whole number"),
        (b'{"op": NaN}', "NaN is not JSON"),
        (b'{"op": "ping", "op": "hello"}', "a member occurs twice"),
        (b"{}", "the member 'op' is missing"),
        (b'{"op": 1}', "op: a string of at most 64 characters"),
        (b'{"op": "pong"}', "op: 'pong' is none of hello, send, send_all"),
        (b'{"op": "ping", "too": 1}', "unknown member 'too'"),
        (b'{"op": "ping", "id": true}', "id: a string of at most 64 characters or a whole number"),
        (b'{"op": "ping", "id": "%s"}' % (b"x" * 65), "id: "),
        (b'{"op": "ping", "id": 9007199254740992}', "id: "),
        (b'{"op": "send", "type": 1}', "the member 'to' is missing"),
        (b'{"op": "send", "to": 0, "type": 1}', "to: pid 0 is not a process id"),
        (b'{"op": "send", "to": true, "type": 1}', "to: a pid or a server id"),
        (b'{"op": "send", "to": "here", "type": 1}', "to: 'here' is not a server id"),
        (b'{"op": "send", "to": 1, "type": "PANG"}', "type: 'PANG' is not a message type's name"),
        (b'{"op": "send", "to": 1, "type": -1}', "type: a message type's name, or its number"),
        (b'{"op": "send", "to": 1, "type": 4294967296}', "type: a message type's name, or its number"),
        (b'{"op": "send", "to": 1, "type": "4294967296"}', "type: '4294967296' is not"),
        (b'{"op": "send", "to": 1, "type": 1.0}', "type: a message type's name, or its number"),
        (b'{"op": "send", "to": 1, "type": 1, "text": "a", "base64": ""}', "give one of the two, not both"),
        (b'{"op": "send", "to": 1, "type": 1, "text": 1}', "text: a string is needed"),
        (b'{"op": "send", "to": 1, "type": 1, "text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"op": "ping", "id": "\\uDFFF"}', "half of a surrogate pair"),
        (b'{"op": "\\udC00\\ud800"}', "half of a surrogate pair"),
        (b'{"\\ud800": {"a": 1}}', "half of a surrogate pair"),
        (b'{"op": "send", "to": 1, "type": 1, "base64": "?"}', "base64: "),
        (b'{"op": "send", "to": 1, "type": 1, "base64": "\xc3\xbc"}', "base64: "),
        (b'{"op": "send", "to": 1, "type": 1, "base64": []}', "base64: a string is needed"),
        (b'{"op": "send", "to": 1, "type": 1, "timeout": -1}', "timeout: a number of seconds from 0 to 3600"),
        (b'{"op": "send", "to": 1, "type": 1, "timeout": true}', "timeout: a number of seconds"),
        (b'{"op": "send", "to": 1, "type": 1, "timeout": 1e999}', "timeout: a number of seconds"),
        (b'{"op": "register", "types": []}', "types: a message type or a list of 1 to 1024"),
        (b'{"op": "register", "types": [[1]]}', "types: a message type's name, or its number"),
    ],
)
def test_what_is_no_request_is_refused(line: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_request(line)
    assert complaint in str(refused.value)
    assert len(str(refused.value)) < 300
    assert read_reply(write_refusal(refused.value.op, refused.value.tag, refused.value))


def test_a_whole_surrogate_pair_is_text() -> None:
    assert read_request(rb'{"op": "ping", "id": "\ud83d\uDE00"}').tag == "\U0001f600"


def test_a_refusal_repeats_what_was_understood() -> None:
    with pytest.raises(BadRequest) as refused:
        read_request(b'{"id": "a", "op": "send", "to": 1}')
    assert (refused.value.op, refused.value.tag) == ("send", "a")


@given(GARBAGE)
def test_a_line_is_a_request_or_refused(line: bytes) -> None:
    try:
        asked = read_request(line)
    except BadRequest:
        return
    assert asked.op in line.decode()


# Replies


def test_answers_and_refusals_come_back() -> None:
    assert read_reply(write_answer("ping", 3, {"a": 1})) == Answer(3, {"op": "ping", "a": 1})
    for code, kind in ERRORS.items():
        reply = read_reply(write_refusal("send", None, kind("one line\nand another")))
        assert isinstance(reply, Refusal)
        assert (reply.tag, type(reply.error), str(reply.error)) == (None, kind, "one line; and another")
        assert error_code(reply.error) == code


def test_what_is_no_unicode_is_told_all_the_same() -> None:
    """Names and paths are bytes, whatever they mean."""
    line = write_answer("names", None, {"names": {"caf\udce9": ["1/2"]}})
    assert read_reply(line) == Answer(None, {"op": "names", "names": {"caf?": ["1/2"]}})
    assert read_reply(write_bye("failed", "/run/caf\udce9: No such file")) == Bye("failed", "/run/caf?: No such file")


@given(st.builds(Message, st.integers(0, 0xFFFFFFFF), server_ids, server_ids, st.binary()))
def test_messages_come_back(message: Message) -> None:
    read = read_reply(write_event(message))
    assert isinstance(read, Event)
    assert (read.message.type, read.message.data) == (message.type, message.data)
    assert str(read.message.src) == str(message.src)


@given(server_ids, st.text(), st.binary() | st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_publications_come_back(src: ServerID, pattern: str, data: object) -> None:
    read = read_reply(write_publication(pattern, "prices.eur", str(src), data))
    assert isinstance(read, Published)
    assert (read.pattern, read.topic, str(read.src), read.data) == (pattern, "prices.eur", str(src), data)


def test_gaps_come_back() -> None:
    assert read_reply(write_gap("overdue", 3, "because")) == Missed("overdue", 3)


def test_last_words_are_errors() -> None:
    for code in BYES:
        bye = read_reply(write_bye(code, "because"))
        assert bye == Bye(code, "because")
        assert isinstance(last_word(bye), NotAllowed if code == "not-allowed" else GatewayClosed)


@given(GARBAGE | st.sampled_from([b'{"event": "message"}', b'{"ok": false}', b'{"event": "bye", "error": "x"}']))
def test_what_no_gateway_says_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_reply(line)


# The client's side


def test_answers_may_come_in_any_order_with_events_between() -> None:
    conversation = Conversation()
    first, line = conversation.ask("ping", to=None)
    assert json.loads(line) == {"op": "ping", "id": first}
    second, _ = conversation.ask("ping")
    message = Message(MessageType.PONG, ServerID(1), ServerID(2), b"x")
    conversation.feed(write_answer("ping", second, {"n": 2}) + write_event(message) + b'{"ok": true, "id": 77}\n')
    assert conversation.take(first) is None
    assert conversation.take(second) == {"op": "ping", "n": 2}
    assert list(conversation.events) == [message]
    conversation.feed(write_refusal("ping", first, NoSuchProcess("gone")))
    with pytest.raises(NoSuchProcess, match="gone"):
        conversation.take(first)


def test_the_end_is_the_answer_to_all_that_was_asked() -> None:
    for end in (write_bye("idle", "you slept"), b"", b"nonsense\n"):
        conversation = Conversation()
        tag, _ = conversation.ask("ping")
        conversation.feed(end)
        conversation.feed(b"")
        with pytest.raises((GatewayClosed, MalformedMessage), match=r"you slept|closed the connection|not JSON"):
            conversation.take(tag)
        assert conversation.ended is not None
        with pytest.raises(type(conversation.ended)):
            conversation.ask("ping")


def test_who_never_takes_what_came_is_stopped() -> None:
    conversation = Conversation()
    conversation.events.extend([Message(2, ServerID(1), ServerID(2), b"")] * MAX_EVENTS)
    with pytest.raises(QueueFull, match="wait to be received"):
        conversation.ask("ping")


def test_a_call_is_cancelled_once_and_only_while_it_waits() -> None:
    conversation = Conversation()
    tag, _ = conversation.ask("call")
    assert json.loads(conversation.cancel(tag)) == {"op": "cancel", "call": tag}
    conversation.feed(write_answer("call", tag, {}))
    assert conversation.cancel(tag) == b""
    conversation.take(tag)
    assert conversation.cancel(tag) == b""
    tag, _ = conversation.ask("call")
    conversation.feed(b"")
    assert conversation.cancel(tag) == b""
