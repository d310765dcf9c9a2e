# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""tdb: what the compiled twin takes out of the record of a real file is what RecordDecoder makes of it, or nothing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msgd import Message, ServerID
from msgd.backends.tdb.chain_lock import ChainLocks
from msgd.backends.tdb.words import TAKING
from msgd.native import native
from msgd.wire import tdb_record
from msgd.wire.tdb_record import RecordDecoder, queue_key
from tests.native.test_records import PID, messages, plain, specials

tdb = pytest.importorskip("tdb")

KEY = queue_key(PID)
LONGEST = 2000


class File:
    """A tdb file with the record of PID, and the compiled twin for it."""

    def __init__(self, path: Path) -> None:
        self.tdb = tdb.Tdb(str(path), 0, 0, os.O_RDWR | os.O_CREAT, 0o600)
        self.words = memoryview(bytearray(64 * 8)).cast("Q")
        self.library = native.Library(ChainLocks(self.tdb).addresses())
        self.addresses = native.Addresses(Message, ServerID)
        self.own = native.OwnRecord(self.library, self.addresses, KEY, self.words, PID, LONGEST)
        self.got: deque[Message] = deque()

    def take(self, value: bytes, times: int = 1) -> Any:
        """Put the value into the record, and take it."""
        self.tdb.store(KEY, value)
        self.got.clear()
        return self.own.take(self.got.append, times)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "messages.tdb")
    yield file
    file.library.close()
    file.tdb.close()


@given(
    st.lists(st.one_of(messages, messages, messages, plain, specials), max_size=12),
    st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=2),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_same_as_decoded_or_untouched(file: File, records: list[bytes], damage: list[tuple[int, int]]) -> None:
    changed = bytearray(b"".join(records))
    for place, byte in damage:
        if changed:
            changed[place % len(changed)] = byte
    value = bytes(changed)
    source = file.take(value)
    with mock.patch.object(tdb_record, "native", None):
        decoded, others = RecordDecoder(PID, ServerID).decode(value)
    if source is None:
        assert not file.got
        assert file.tdb.get(KEY) == value
        assert file.own.poll(2) == 1
    else:
        assert list(file.got) == decoded
        assert not others
        assert file.tdb.get(KEY) == b""
        assert source == (decoded[-1].src if decoded else False)
        assert file.own.poll(2) == 0
    assert not file.words[TAKING]


def test_a_plain_value_is_taken_and_a_long_one_left(file: File) -> None:
    one = tdb_record.pack_message(ServerID(PID, 1), ServerID(5, 6), 7, b"data")
    assert file.take(one * 3, 16) == ServerID(5, 6)
    assert [message.data for message in file.got] == [b"data"] * 3
    assert file.take(one * (LONGEST // len(one) + 1)) is None


def test_nothing_after_close_or_without_the_words(file: File) -> None:
    one = tdb_record.pack_message(ServerID(PID, 1), ServerID(5, 6), 7, b"data")
    file.words.release()
    assert file.take(one) is None
    file.library.close()
    assert file.own.poll(1) is None
    assert file.take(one) is None
    assert file.tdb.get(KEY) == one


def test_missing_record(file: File) -> None:
    """The twin finds out why there is none."""
    assert file.own.poll(1) is None
    assert file.own.take(file.got.append, 1) is None
    assert file.tdb.get(KEY) is None


def test_a_function_of_python_is_not_called(file: File) -> None:
    """It could let a signal's handler in while messages are in nobody's hands."""
    file.tdb.store(KEY, tdb_record.pack_message(ServerID(PID, 1), ServerID(5, 6), 7, b"data"))
    assert file.own.take(lambda message: file.got.append(message), 1) is None
    assert file.own.poll(1) == 1


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda file: file.own.take, ()),
        (lambda file: file.own.take, (deque[Message]().append, None)),
        (lambda file: file.own.poll, (None,)),
        (lambda file: native.Library, ()),
        (lambda file: native.Library, ((1, 2, 3),)),
        (lambda file: native.Library, ((0,) * 6,)),
        (lambda file: native.OwnRecord, (None, None, KEY, b"", PID, 1)),
        (lambda file: lambda *rest: native.OwnRecord(file.library, file.addresses, *rest), (KEY, b"", 0, 1)),
        (lambda file: lambda *rest: native.OwnRecord(file.library, file.addresses, *rest), (KEY, b"", PID, 1 << 20)),
    ],
)
def test_wrong_arguments(file: File, function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        function(file)(*arguments)
