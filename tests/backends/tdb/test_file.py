# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What is in messages.tdb, byte for byte; what Samba 3.0 writes there; garbage; files that are in the way."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tdb

from msgd import BackendUnavailable, Config, MessageType, Messaging, MsgdError, ServerID, UnsafeDirectory
from msgd.wire.server_id import NONCLUSTER_VNN
from msgd.wire.tdb_record import (
    RECORD,
    SPACE_KEY,
    Continuation,
    pack_continuation,
    pack_message,
    pack_segment_start,
    queue_key,
    segment_key,
)
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES, needs_tdb_tools
from tests.support.harness import TEXT, Channel, Child, Peer, Session, close, send_many, take, take_data

GOLDEN = bytes.fromhex("0100000002000000e94b0000914e00000b000000000000003132333435363738393000")
"""A PING of `1234567890` NUL from pid 20113 to 19433 in Samba 3.0's messages.tdb (DESIGN.md)."""


def file(config: Config) -> Path:
    return Path(config.lock_directory) / "messages.tdb"


@contextlib.contextmanager
def as_samba(config: Config) -> Iterator[Any]:
    """The file, opened as Samba 3.0 does.  Use this only in a process that does not have it open."""
    database = tdb.Tdb(str(file(config)), 0, tdb.CLEAR_IF_FIRST, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield database
    finally:
        database.close()


def tool(*arguments: str | Path) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=30).stdout


def golden_for(dst: int, src: int) -> bytes:
    return GOLDEN.replace(b"\xe9\x4b\0\0\x91\x4e\0\0", dst.to_bytes(4, "little") + src.to_bytes(4, "little"))


def value_of(session: Session, pid: int) -> bytes:
    """The value of a process's record."""
    value: bytes = session.messaging._endpoint.backend._file.tdb.get(queue_key(pid))  # type: ignore[attr-defined]
    return value


def send_ping(session: Session, dst: ServerID) -> None:
    session.messaging.send(dst.pid, MessageType.PING, b"1234567890\0")


@pytest.mark.parametrize("mode", MODES)
def test_golden_bytes_in_the_file(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    assert value_of_own(receiver) == b""
    sender.call(send_ping, receiver.server_id)
    assert sender.call(value_of, receiver.pid) == golden_for(receiver.pid, sender.pid)
    assert stat.S_IMODE(file(config).stat().st_mode) == 0o600


def value_of_own(peer: Peer) -> bytes:
    return peer.call(value_of, peer.pid)


@needs_tdb_tools
@pytest.mark.parametrize("mode", ["fcntl", "nommap"])
def test_file_as_samba_and_the_tools_read_it(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    sender.call(send_ping, receiver.server_id)
    record = golden_for(receiver.pid, sender.pid)
    with as_samba(config) as database:
        queues = {b"PID/%d\0" % pid for pid in (receiver.pid, sender.pid)}
        assert set(database.keys()) == queues | {SPACE_KEY}
        assert database.get(b"PID/%d\0" % receiver.pid) == record
    dump = tool("tdbdump", file(config))
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:02X}" for byte in record)
    assert f'key({len(str(receiver.pid)) + 5}) = "PID/{receiver.pid}\\00"\ndata({len(record)}) = "{escaped}"' in dump
    assert "Database integrity is OK" in tool("tdbtool", file(config), "check")


@needs_tdb_tools
@pytest.mark.parametrize("mode", MODES)
def test_tools_find_the_file_whole_after_work(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    sender.call(send_many, receiver.server_id, [b"." * (number % 700) for number in range(3000)])
    assert len(receiver.call(take_data, 2000)) == 2000
    assert "Database integrity is OK" in tool("tdbtool", file(config), "check")


def old_samba(config: Config, dst: ServerID, records: list[bytes]) -> None:
    """Append and signal, as Samba 3.0's message_send_pid does."""
    with Child(lambda channel: append_and_signal(config, dst, records)) as child:
        assert child.wait() == 0


def append_and_signal(config: Config, dst: ServerID, records: list[bytes]) -> None:
    with as_samba(config) as database:
        database.append(queue_key(dst.pid), b"".join(records))
    os.kill(dst.pid, signal.SIGUSR1)


def record(dst: int, src: int, data: bytes, version: int = 1, message_type: int = TEXT) -> bytes:
    return RECORD.pack(version, message_type, dst, src, len(data)) + data


@pytest.mark.parametrize("mode", ["fcntl", "nommap"])
def test_message_of_an_old_samba(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Several at once: from a pid that is not a process of ours, and from one that is; then one that ends a sleep."""
    config = make_config(**MODES[mode])
    receiver, other = start(config), start(config)
    texts = [(1, b"from init"), (other.pid, b"from one of ours"), (other.pid, b"")]
    old_samba(config, receiver.server_id, [record(receiver.pid, src, data) for src, data in texts])
    messages = receiver.call(take, 3)
    assert [(message.src.pid, message.data) for message in messages] == texts
    assert messages[0].src == ServerID(1)
    assert messages[1].src == other.server_id
    receiver.begin(take_data, 1)
    old_samba(config, receiver.server_id, [record(receiver.pid, 1, b"awake")])
    assert receiver.hear() == [b"awake"]
    assert receiver.call(value_of, receiver.pid) == b""


# What is no message


def after(peer: Peer, config: Config, value: bytes, number: int) -> tuple[list[bytes], int]:
    """Let the peer take `value`; return the data of the messages that it got, and its number of drops."""
    old_samba(config, peer.server_id, [value])
    data = peer.call(take_data, number)
    return data, peer.call(dropped)


def dropped(session: Session) -> int:
    return sum(session.messaging.statistics().drops.values())


def test_unknown_records_are_skipped(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(**MODES["fcntl"])
    peer = start(config)
    pid = peer.pid
    good = record(pid, 1, b"good")
    bad = [
        record(pid, 1, b"version", version=0),
        record(pid, 1, b"version", version=7),
        record(pid, 1, b"version", version=-1),
        record(pid, 1, b"no ids", version=2),
        record(pid, 1, b"no continuation", version=3),
        record(pid + 1, 1, b"for another"),
        record(pid, 0, b"from nobody"),
        record(pid, -5, b"from nobody"),
        record(pid, 1, b"type", message_type=-1),
    ]
    value = b"".join(one + good for one in bad)
    data, drops = after(peer, config, good + value, len(bad) + 1)
    assert data == [b"good"] * (len(bad) + 1)
    assert drops == len(bad)


@pytest.mark.parametrize("length", [1, 23, 24, 26])
def test_torn_record_at_the_end(make_config: MakeConfig, start: StartPeer, length: int) -> None:
    config = make_config(**MODES["fcntl"])
    peer = start(config)
    good = record(peer.pid, 1, b"good")
    assert after(peer, config, good + good[:length], 1) == ([b"good"], 1)
    assert after(peer, config, good, 1) == ([b"good"], 1)


def test_lying_length(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(**MODES["fcntl"])
    peer = start(config)
    good = record(peer.pid, 1, b"good")
    for length in (1 << 64) - 1, 1 << 63, 1 << 40, 100:
        liar = RECORD.pack(1, TEXT, peer.pid, 1, length)
        assert after(peer, config, good + liar, 1)[0] == [b"good"]
    assert peer.call(dropped) == 4


def test_continuations_to_nowhere(make_config: MakeConfig, start: StartPeer) -> None:
    """From dead sources, from living ones without such a segment, and with extreme numbers."""
    config = make_config(**MODES["fcntl"])
    peer, living = start(config), start(config)
    liars = [
        pack_continuation(peer.pid, Continuation(pid, unique_id, number, number))
        for pid in (1, living.pid, peer.pid, 0x7FFFFFFF)
        for unique_id in (0, 1, living.server_id.unique_id, (1 << 64) - 1)
        for number in (0, 5, (1 << 64) - 1)
    ]
    good = record(peer.pid, 1, b"good")
    assert after(peer, config, good.join([b"", *liars, b""]), len(liars) + 1)[0] == [b"good"] * (len(liars) + 1)
    living.call(send_many, peer.server_id, [b"%d" % number for number in range(3000)])
    assert peer.call(take_data, 3000) == [b"%d" % number for number in range(3000)]


def test_garbage_in_a_segment(make_config: MakeConfig, start: StartPeer) -> None:
    """Another source's continuation, a second start, bytes at the end: all are counted, and the rest is read."""
    config = make_config(**MODES["fcntl"])
    peer, source = start(config), start(config)
    unique_id = source.server_id.unique_id

    def start_of(number: int) -> bytes:
        return pack_segment_start(peer.pid, source.pid, number)

    def to(number: int, slot: int, pid: int = source.pid) -> bytes:
        return pack_continuation(peer.pid, Continuation(pid, unique_id, number, slot))

    def text(data: bytes) -> bytes:
        return record(peer.pid, source.pid, data)

    def write(channel: Channel) -> None:
        with as_samba(config) as database:
            key = segment_key(peer.pid, source.pid, unique_id, 5)
            database.store(key, start_of(1) + to(1, 9, pid=1) + text(b"first") + start_of(1) + to(2, 6))
            key = segment_key(peer.pid, source.pid, unique_id, 6)
            database.store(key, start_of(2) + text(b"second") + b"garbage")
            database.append(queue_key(peer.pid), start_of(1) + text(b"plain") + to(1, 5))

    with Child(write) as child:
        assert child.wait() == 0
    assert peer.call(take_data, 3) == [b"plain", b"first", b"second"]
    assert peer.call(dropped) == 4


def test_a_segment_of_another_number(make_config: MakeConfig, start: StartPeer) -> None:
    """The slot does not hold the segment that was announced; nothing is read from it until it does."""
    config = make_config(**MODES["fcntl"])
    peer, source = start(config), start(config)
    unique_id = source.server_id.unique_id
    key = segment_key(peer.pid, source.pid, unique_id, 0)

    def write(number: int, data: bytes) -> None:
        def body(channel: Channel) -> None:
            with as_samba(config) as database:
                segment = pack_segment_start(peer.pid, source.pid, number) + record(peer.pid, source.pid, data)
                database.store(key, segment)
                continuation = pack_continuation(peer.pid, Continuation(source.pid, unique_id, 2, 0))
                database.append(queue_key(peer.pid), record(peer.pid, source.pid, b"plain") + continuation)

        with Child(body) as child:
            assert child.wait() == 0

    write(1, b"not yet")
    assert peer.call(take_data, 1) == [b"plain"]
    write(2, b"now")
    assert peer.call(take_data, 2) == [b"plain", b"now"]


def test_ids_of_another_record(make_config: MakeConfig, start: StartPeer) -> None:
    """Ids that are not followed by their message do not apply to the next plain message."""
    config = make_config(**MODES["fcntl"])
    peer = start(config)
    dst, src = ServerID(peer.pid, 3), ServerID(1, 4, NONCLUSTER_VNN, 5)
    with_ids = pack_message(dst, src, TEXT, b"for task 3")
    ids_alone = with_ids[: -RECORD.size - len(b"for task 3")]
    good = record(peer.pid, 1, b"good")
    value = ids_alone + record(peer.pid, 1, b"unknown", version=9) + good
    assert after(peer, config, value, 1) == ([b"good"], 1)


# A file in the way


def test_cleared_when_all_are_dead(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config()
    receiver, sender = start(), start()
    sender.call(send_many, receiver.server_id, [bytes(6000)] * 1000)
    receiver.kill()
    sender.kill()
    size = file(config).stat().st_size
    assert size > 5_000_000
    with Messaging(config) as messaging:
        assert file(config).stat().st_size < size
        assert messaging.pending(receiver.pid) == 0


def test_not_cleared_while_somebody_lives(start: StartPeer) -> None:
    receiver, sender = start(), start()
    sender.call(send_many, receiver.server_id, [b"still there"])
    sender.call(close)
    sender.kill()
    start().call(close)
    assert receiver.call(take_data, 1) == [b"still there"]


@pytest.mark.parametrize("garbage", [b"no tdb at all", b"\0" * 5000, b"TDB fil", os.urandom(8192)], ids=len)
def test_damaged_file_is_set_aside(
    config: Config, start: StartPeer, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    file(config).parent.mkdir()
    file(config).write_bytes(garbage)
    with caplog.at_level(logging.ERROR, "msgd"), Messaging(config):
        peer = start()
        assert peer.call(close) == 0
    [line] = [one.getMessage() for one in caplog.records]
    assert "set aside" in line
    [aside] = file(config).parent.glob("messages.tdb.damaged.*")
    assert str(aside.name) in line
    assert aside.read_bytes() == garbage


@pytest.mark.parametrize("length", [0, 9, 40, 500, 5000])
def test_file_cut_off(
    config: Config, messaging: Messaging, length: int, scratch: Path, make_config: MakeConfig
) -> None:
    """A truncated tdb file is emptied as any other, since no living process uses it."""
    whole = file(config).read_bytes()
    messaging.close()
    file(config).write_bytes(whole[:length])
    with Messaging(config) as again:
        seen: list[bytes] = []
        again.register(TEXT, lambda message: seen.append(message.data))
        again.send(again.server_id, TEXT, b"works")
        again.dispatch()
        assert seen == [b"works"]


def test_many_start_over_a_damaged_file(config: Config) -> None:
    """One process sets it aside, and all use the same new file."""
    file(config).parent.mkdir()
    for _ in range(10):
        for one in file(config).parent.glob("messages.tdb*"):
            one.unlink()
        file(config).write_bytes(b"damaged")

        def body(channel: Channel) -> None:
            channel.recv()
            with Messaging(config) as messaging:
                logging.disable()
                channel.send((messaging.server_id, file(config).stat().st_ino))
                channel.recv()

        children = [Child(body) for _ in range(6)]
        for child in children:
            child.tell("go")
        inodes = {child.hear()[1] for child in children}
        for child in children:
            child.kill()
        assert len(inodes) == 1
        assert len(list(file(config).parent.glob("messages.tdb.damaged.*"))) == 1


@pytest.mark.parametrize("what", ["fifo", "symlink", "directory", "socket"])
def test_what_is_no_file_is_refused(config: Config, what: str) -> None:
    path = file(config)
    path.parent.mkdir()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "symlink":
        path.symlink_to(path.parent / "elsewhere")
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.mkdir()
    with pytest.raises(UnsafeDirectory, match=r"messages\.tdb"):
        Messaging(config)
    assert not (path.parent / "elsewhere").exists()
    assert list((path.parent / "msg.lock").iterdir()) == []


# Modes


@pytest.mark.parametrize("mine", MODES)
@pytest.mark.parametrize("theirs", MODES)
def test_other_mode_than_the_living(make_config: MakeConfig, start: StartPeer, mine: str, theirs: str) -> None:
    """Modes with and without mutexes exclude each other; processes that were first are not disturbed."""
    receiver, sender = (start(make_config(**MODES[theirs])) for _ in range(2))
    sender.call(send_many, receiver.server_id, [b"before"])

    def body(channel: Channel) -> None:
        try:
            Messaging(make_config(**MODES[mine]))
        except MsgdError as error:
            channel.send((type(error).__name__, str(error)))
        else:
            channel.send(("open", ""))

    with Child(body) as child:
        outcome, line = child.hear()
    if "mutexes" in {mine} ^ {theirs}:
        assert outcome == BackendUnavailable.__name__
        assert "tdb mutexes" in line
        assert "\n" not in line
    else:
        assert outcome == "open"
    sender.call(send_many, receiver.server_id, [b"after"])
    assert receiver.call(take_data, 2) == [b"before", b"after"]
    for peer in (receiver, sender):
        peer.kill()
    with Messaging(make_config(**MODES[mine])):
        pass


def test_modes_without_mutexes_understand_each_other(make_config: MakeConfig, start: StartPeer) -> None:
    one, other = start(make_config(**MODES["fcntl"])), start(make_config(**MODES["nommap"]))
    for src, dst in ((one, other), (other, one)):
        src.call(send_many, dst.server_id, [b"%d" % number for number in range(2000)])
        assert dst.call(take_data, 2000) == [b"%d" % number for number in range(2000)]


# The 2006 questions


def test_pending(make_config: MakeConfig, start: StartPeer) -> None:
    """messages_pending_for_pid: in PID/<pid> and in segments."""
    receiver, sender = start(), start()
    with Messaging(make_config()) as messaging:
        assert messaging.pending(receiver.server_id) == 0
        messaging.send(receiver.server_id, TEXT, b"one")
        assert messaging.pending(receiver.server_id) == 1
        sender.call(send_many, receiver.server_id, [b"%d" % number for number in range(5000)])
        assert messaging.pending(receiver.pid) == 5001
        assert len(receiver.call(take_data, 5001)) == 5001
        assert messaging.pending(receiver.pid) == 0
        receiver.call(close)
        assert messaging.pending(receiver.pid) == 0
