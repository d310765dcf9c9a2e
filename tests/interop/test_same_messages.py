# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol sends byte for byte what smbcontrol sends, prints the same answers, and msgd answers both alike."""

from __future__ import annotations

import re

import pytest

from msgd import Message, MessageType, ServerID
from msgd.wire.control import pack_int, pack_text
from tests.interop.samba import Samba
from tests.support.harness import Peer, Session

ANSWERS: dict[MessageType, tuple[MessageType, bytes]] = {
    MessageType.REQ_DEBUGLEVEL: (MessageType.DEBUGLEVEL, b"all:3 own:4\n\0"),
    MessageType.REQ_PROFILELEVEL: (MessageType.PROFILELEVEL, pack_int(3)),
    MessageType.REQ_RINGBUF_LOG: (MessageType.RINGBUF_LOG, b"one\n\ttwo\n\0"),
    MessageType.SMB_TELL_NUM_CHILDREN: (MessageType.SMB_NUM_CHILDREN, pack_int(7)),
    MessageType.WINBIND_ONLINESTATUS: (MessageType.WINBIND_ONLINESTATUS, b"a:Online b:Offline \n\0"),
    MessageType.WINBIND_DUMP_DOMAIN_LIST: (MessageType.WINBIND_DUMP_DOMAIN_LIST, b"one\ntwo\n\0"),
    MessageType.WINBIND_VALIDATE_CACHE: (MessageType.WINBIND_VALIDATE_CACHE, b"\1"),
}

COMMANDS: list[tuple[list[str], MessageType, bytes]] = [
    (["ping"], MessageType.PING, b""),
    (["debug", "2 auth:5"], MessageType.DEBUG, b"2 auth:5\0"),
    (["debuglevel"], MessageType.REQ_DEBUGLEVEL, b""),
    (["reload-config"], MessageType.SMB_CONF_UPDATED, b""),
    (["reload-printers"], MessageType.PRINTER_PCAP, b""),
    (["drvupgrade", "a driver"], MessageType.PRINTER_DRVUPGRADE, b"a driver\0"),
    (["shutdown"], MessageType.SHUTDOWN, b""),
    (["num-children"], MessageType.SMB_TELL_NUM_CHILDREN, b""),
    (["close-share", "*"], MessageType.SMB_FORCE_TDIS, b"*\0"),
    (["close-denied-share", "share"], MessageType.SMB_FORCE_TDIS_DENIED, b"share\0"),
    (["kill-client-ip", "::1"], MessageType.SMB_KILL_CLIENT_IP, b"::1\0"),
    (["ip-dropped", "10.0.0.1"], MessageType.WINBIND_IP_DROPPED, b"10.0.0.1\0"),
    (["notify-cleanup"], MessageType.SMB_NOTIFY_CLEANUP, b""),
    (["profile", "off"], MessageType.PROFILE, b"\0\0\0\0"),
    (["profile", "count"], MessageType.PROFILE, b"\1\0\0\0"),
    (["profile", "on"], MessageType.PROFILE, b"\2\0\0\0"),
    (["profile", "flush"], MessageType.PROFILE, b"\3\0\0\0"),
    (["profilelevel"], MessageType.REQ_PROFILELEVEL, b""),
    (["pool-usage"], MessageType.REQ_POOL_USAGE, b""),
    (["rpc-dump-status"], MessageType.RPC_DUMP_STATUS, b""),
    (["ringbuf-log"], MessageType.REQ_RINGBUF_LOG, b""),
    (["dmalloc-mark"], MessageType.REQ_DMALLOC_MARK, b""),
    (["dmalloc-log-changed"], MessageType.REQ_DMALLOC_LOG_CHANGED, b""),
    (["force-election"], MessageType.FORCE_ELECTION, b""),
    (["idmap", "delete"], MessageType.ID_CACHE_DELETE, b""),
    (["idmap", "kill", "UID 7"], MessageType.ID_CACHE_KILL, b"UID 7\0"),
    (["onlinestatus"], MessageType.WINBIND_ONLINESTATUS, b""),
    (["dump-domain-list"], MessageType.WINBIND_DUMP_DOMAIN_LIST, b""),
    (["dump-domain-list", "A"], MessageType.WINBIND_DUMP_DOMAIN_LIST, b"A\0"),
    (["validate-cache"], MessageType.WINBIND_VALIDATE_CACHE, b"its own id"),
    (["disconnect-dc"], MessageType.WINBIND_DISCONNECT_DC, b""),
]


def take_two(session: Session) -> list[tuple[int, bytes, int, ServerID]]:
    """Take a message of smbcontrol and one of msgcontrol, and answer them: type, data, descriptors, source."""
    taken: list[tuple[int, bytes, int, ServerID]] = []

    def take(message: Message) -> None:
        taken.append((message.type, message.data, len(message.fds), message.src))
        answer = ANSWERS.get(MessageType(message.type))
        if answer is not None:
            session.messaging.reply(message, *answer)
        elif message.type == MessageType.PING:
            session.messaging.reply(message, MessageType.PONG, message.data)

    handles = [session.messaging.register(one, take) for one in MessageType if one is not MessageType.PONG]
    while len(taken) < 2:
        session.messaging.dispatch(None)
    for handle in handles:
        handle.close()
    return taken


@pytest.mark.parametrize(("command", "message_type", "data"), COMMANDS, ids=lambda value: str(value)[:30])
def test_same_message_and_same_output(
    samba: Samba, peer: Peer, command: list[str], message_type: MessageType, data: bytes
) -> None:
    peer.begin(take_two)
    theirs = samba.smbcontrol("-t", "5", peer.pid, *command)
    ours = samba.msgcontrol("-t", "5", peer.pid, *command)
    one, two = peer.hear()
    assert [(kind, fds) for kind, _, fds, _ in (one, two)] == [(message_type, one[2])] * 2
    if message_type is MessageType.WINBIND_VALIDATE_CACHE:
        assert [ServerID.unpack(sent).pid for _, sent, _, _ in (one, two)] == [src.pid for *_, src in (one, two)]
    else:
        assert one[1] == two[1] == data
    assert ours[0] == theirs[0] == 0
    if "has written nothing" not in ours[1]:
        assert ours == theirs


def test_longest_share_name(samba: Samba, peer: Peer) -> None:
    peer.begin(take_two)
    name = "x" * 2500
    assert samba.smbcontrol(peer.pid, "close-share", name) == samba.msgcontrol(peer.pid, "close-share", name)
    one, two = peer.hear()
    assert one[:3] == two[:3] == (MessageType.SMB_FORCE_TDIS, pack_text(name), 0)


# smbcontrol and msgcontrol to msgd


TO_MSGD = """\
ping
debuglevel
num-children
profile on
profilelevel
profile off
profilelevel
noop
close-share share
kill-client-ip 10.0.0.1
notify-cleanup
dmalloc-mark
idmap delete"""


def test_smbcontrol_to_msgd(samba: Samba, msgd: int) -> None:
    for command in map(str.split, TO_MSGD.splitlines()):
        theirs = samba.smbcontrol("-t", "5", msgd, *command)
        assert theirs[0] == 0
        assert samba.msgcontrol("msgd", *command) == theirs


def test_texts_of_msgd_under_smbcontrol(samba: Samba, msgd: int) -> None:
    for _ in range(2):
        assert samba.msgcontrol("msgd", "debug", "3") == (0, "")
    for command, beginning in (("pool-usage", "full memory report on 'msgd'"), ("ringbuf-log", "20")):
        theirs, ours = samba.smbcontrol("-t", "5", msgd, command), samba.msgcontrol("msgd", command)
        assert theirs[0] == ours[0] == 0
        assert theirs[1].startswith(beginning)
        assert shape(theirs[1])[:5] == shape(ours[1])[:5]


def shape(text: str) -> list[str]:
    """The lines without their numbers, and without the types of Python, which change places as their numbers change."""
    texts = (re.sub(r"^    \w+", "    TYPE", re.sub(r"\d+", "", line)) for line in text.splitlines())
    return [re.sub(r" +", " ", line) for line in texts]


# send and call


def test_send_and_call(samba: Samba, peer: Peer) -> None:
    file = samba.directory / "data"
    file.write_bytes(b"\0\1\2")
    peer.begin(take_two)
    assert samba.msgcontrol(peer.pid, "send", "smb_force_tdis", f"@{file}") == (0, "")
    called = samba.msgcontrol(peer.pid, "call", "REQ_PROFILELEVEL", "data")
    assert called == (0, f"PROFILELEVEL from pid {peer.pid}: 4 bytes: 03000000\n")
    one, two = peer.hear()
    assert one[:2] == (MessageType.SMB_FORCE_TDIS, b"\0\1\2")
    assert two[:2] == (MessageType.REQ_PROFILELEVEL, b"data")


def test_call_of_smbd_with_a_type_by_number(samba: Samba) -> None:
    assert samba.msgcontrol("smbd", "call", "2", "hello", "--reply-type", "0x3") == (
        0,
        f"PONG from pid {samba.pid}: hello\n",
    )
    status, output = samba.msgcontrol("smbd", "call", "0xF123", "x")
    assert status == 2
    assert "--reply-type" in output
