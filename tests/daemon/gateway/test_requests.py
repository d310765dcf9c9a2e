# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a client can ask of the gateway, asked for real."""

from __future__ import annotations

import os

import pytest

from msgd import MessageType, ServerID
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import Place
from tests.support.harness import TEXT, Peer, close, send_many, serve, take, take_data


def test_hello_tells_the_connection_process(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        hello = client.ask(op="hello", id="first")
        server_id = ServerID.parse(hello["server_id"])
        assert server_id.pid not in (0, msgd.pid)
        assert (hello["ok"], hello["op"], hello["id"], hello["protocol"]) == (True, "hello", "first", 1)
        assert hello["backend"] == place.config.messaging_type
        assert hello["limits"]["line_bytes"] == place.config.client_line_bytes
        names = client.ask(op="names")
        assert names["names"][f"msgd-connection-{os.geteuid()}"] == [str(server_id)]
        assert {str(server_id).partition("/")[0], str(msgd.pid)} <= {
            one.partition("/")[0] for one in names["processes"]
        }


@pytest.mark.parametrize("data", [{}, {"text": "Grüße\n"}, {"text": "with a NUL\0"}, {"base64": "AP8="}])
def test_messages_go_both_ways(place: Place, data: dict[str, str]) -> None:
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        assert client.ask(op="register", types=[TEXT, "PONG"])["ok"]
        client.say(op="send", to=str(peer.server_id), type=TEXT, **data)
        (message,) = peer.call(take, 1)
        assert client.read() == {"ok": True, "op": "send", "status": "sent"}
        peer.call(send_many, message.src, [message.data])
        event = client.read()
        assert event.pop("to") == str(message.src)
        assert event == {"event": "message", "type": f"{TEXT:#x}", "from": str(peer.server_id), **data}
        assert client.ask(op="deregister", types=TEXT)["ok"]
        peer.call(send_many, message.src, [message.data])
        assert client.ask(op="ping") == {"ok": True, "op": "ping"}


def test_a_long_message_goes_both_ways(place: Place) -> None:
    place.configure("log level = 3", "msgd:client line bytes = 32M")
    place.msgd()
    text = "long " * 600_000
    with RawClient(place) as client, Peer(place.config) as peer:
        client.ask(op="register", types=TEXT)
        assert client.ask(op="send", to=peer.server_id.pid, type=TEXT, text=text)["ok"]
        (message,) = peer.call(take, 1)
        assert message.data.decode() == text
        peer.call(send_many, message.src, [message.data])
        assert client.read()["text"] == text


def test_broadcast(place: Place) -> None:
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as one, Peer(place.config) as other:
        answer = client.ask(op="send_all", type=TEXT, text="to all")
        assert answer == {"ok": True, "op": "send_all", "delivered": 3, "failures": {}}
        assert one.call(take_data, 1) == other.call(take_data, 1) == [b"to all"]


def test_calls_are_answered_by_whom_they_were_for(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client, RawClient(place) as other:
        client.ask(op="register", types="PONG")
        to = str(other.pid)
        client.say(op="call", id="debug", to=msgd.pid, type="REQ_DEBUGLEVEL", answer="DEBUGLEVEL")
        client.say(op="ping", id="ping", to=to, text="same\0")
        answers = {answer["id"]: answer["answer"] for answer in (client.read(), client.read())}
        assert answers["debug"]["text"] == "all:3 msgd:3\n\0"
        assert (answers["ping"]["text"], answers["ping"]["type"]) == ("same\0", "PONG")
        assert client.ask(op="ping")["ok"]  # the PONG was not an event as well


def test_a_call_that_is_not_answered(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        late = client.ask(op="call", id=1, to=msgd.pid, type="PING", answer="DEBUGLEVEL", timeout=0.05)
        assert (late["id"], late["error"]) == (1, "reply-timeout")
        assert (
            client.ask(op="call", to=msgd.pid, type="PING", answer="DEBUGLEVEL", timeout=0)["error"] == "reply-timeout"
        )
        client.say(op="call", id=2, to=str(peer.server_id), type=TEXT, answer=TEXT, timeout=3600)
        peer.call(take, 1)
        peer.kill()
        ended = client.read()
        assert (ended["id"], ended["error"]) == (2, "no-such-process")
        gone = client.ask(op="call", to=str(peer.server_id), type=TEXT, answer=TEXT)
        assert gone["error"] == "no-such-process"


def test_what_a_process_said_before_it_ended_is_its_answer(place: Place) -> None:
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        for number in range(20):
            with Peer(place.config) as peer:
                client.say(op="call", id=number, to=str(peer.server_id), type=TEXT, answer=TEXT)
                (message,) = peer.call(take, 1)
                peer.call(send_many, message.src, [b"last words"])
            assert client.read()["answer"]["text"] == "last words"


def test_no_more_calls_than_may_wait(place: Place) -> None:
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        for number in range(65):
            client.say(op="call", id=number, to=str(peer.server_id), type=TEXT, answer=TEXT, timeout=3600)
        full = client.read()
        assert (full["id"], full["error"]) == (64, "queue-full")
        peer.kill()
        assert {client.read()["error"] for _ in range(64)} == {"no-such-process"}


def test_a_full_receiver_is_told_or_waited_for(place: Place) -> None:
    place.configure("log level = 3", "msgd:send queue messages = 10")
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        to = str(peer.server_id)
        sent = 0
        while (answer := client.ask(op="send", to=to, type=TEXT, text="x" * 500))["ok"]:
            sent += 1
        assert answer["error"] == "queue-full"
        assert client.ask(op="send", to=to, type=TEXT, timeout=0.05)["error"] == "queue-full"
        client.say(op="send", id="parked", to=to, type=TEXT, text="after all", timeout=3600)
        client.say(op="ping", id="behind")
        peer.call(take, sent)
        answers = [client.read() for _ in range(2)]
        assert [(answer["ok"], answer["id"]) for answer in answers] == [(True, "parked"), (True, "behind")]
        assert peer.call(take_data, 1) == [b"after all"]


def test_a_receiver_that_ends_is_not_waited_for(place: Place) -> None:
    place.configure("log level = 3", "msgd:send queue messages = 10")
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        to = str(peer.server_id)
        while client.ask(op="send", to=to, type=TEXT, text="x" * 500)["ok"]:
            pass
        client.say(op="send", to=to, type=TEXT, timeout=3600)
        peer.kill()
        assert client.read()["error"] == "no-such-process"


def test_errors_of_messaging_have_their_codes(place: Place) -> None:
    place.configure("log level = 3", "msgd:max message size = 1K")
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        to = str(peer.server_id)
        assert client.ask(op="send", to=to, type=TEXT, text="x" * 1025)["error"] == "message-too-large"
        assert client.ask(op="send", to=f"7:{to}", type=TEXT)["error"] == "no-such-process"
        assert client.ask(op="send", to=to, type=TEXT, much=1)["error"] == "bad-request"
        peer.call(close)
        assert client.ask(op="send", to=to, type=TEXT)["error"] == "no-such-process"


def test_registrations_are_bounded(place: Place) -> None:
    place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="register", types=list(range(1000, 2024)))["ok"]
        assert client.ask(op="register", types=[1500])["ok"]
        assert client.ask(op="register", types=[5000])["error"] == "queue-full"


def test_who_says_no_more_is_still_answered(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        client.say(op="call", to=msgd.pid, type="PING", answer="PONG")
        client.write(b'{"op": "ping"}')  # and no newline
        client.finish()
        assert {client.read()["op"], client.read()["op"]} == {"call", "ping"}
        assert client.is_ended()


def test_who_says_no_more_still_listens(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        client.finish()
        peer.call(send_many, pid, [b"one", b"two"])
        assert [client.read()["text"], client.read()["text"]] == ["one", "two"]
    msgd.await_line("is disconnected: it has closed")


def test_a_process_of_the_gateway_obeys_control_messages(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        assert place.debuglevel(pid) == b"all:3 msgd:3\n\0"
        place.configure("log level = 4")
        assert place.msgcontrol(str(pid), "reload-config").returncode == 0
        assert place.debuglevel(pid) == b"all:4 msgd:4\n\0"
        peer.begin(serve)
        assert place.msgcontrol(str(pid), "shutdown").returncode == 0
        bye = client.read()
        assert (bye["event"], bye["error"]) == ("bye", "stopped")
        assert client.is_ended()
    msgd.await_line("is disconnected: SHUTDOWN from")


def test_a_call_is_cancelled_by_its_id(place: Place) -> None:
    """It is answered all the same, once, and makes room."""
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        call = {"op": "call", "to": str(peer.server_id), "type": TEXT, "answer": TEXT, "timeout": 3600}
        for number in range(64):
            client.say(id=number, **call)
        assert client.ask(id="one more", **call)["error"] == "queue-full"
        for number in range(64):
            client.say(op="cancel", call=number)
            refusal = client.read()
            assert (refusal["op"], refusal["id"], refusal["error"]) == ("call", number, "reply-timeout")
            assert client.read() == {"ok": True, "op": "cancel"}
        assert client.ask(op="cancel", id="again", call=0) == {"ok": True, "op": "cancel", "id": "again"}
        client.say(id="room", **call)
        assert client.ask(op="ping")["op"] == "ping"


def test_what_is_sent_to_a_client_after_its_last_word_is_a_drop(place: Place) -> None:
    place.configure("log level = 5", "msgd:close timeout = 1000")
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        client.say(op="call", to=str(peer.server_id), type=TEXT, answer=TEXT, timeout=3600)
        assert client.ask(op="ping")["ok"]
        place.send(pid, MessageType.SHUTDOWN)
        msgd.await_line("the last word to")
        peer.call(send_many, pid, [b"too late"])
        msgd.await_line("dropped 1 message, of a type without handler")
        assert client.read()["event"] == "bye"
        assert client.is_ended()
