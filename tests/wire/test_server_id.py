# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""ServerID: its 24 bytes, and its text as Samba prints it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import MalformedMessage, ServerID
from msgd.wire.server_id import NONCLUSTER_VNN, UNIQUE_ID_NOT_TO_VERIFY
from tests.wire.strategies import server_ids, uint32, uint64, wire_server_ids


@given(wire_server_ids)
def test_bytes_round_trip(server_id: ServerID) -> None:
    assert ServerID.unpack(server_id.pack()) == server_id
    assert len(server_id.pack()) == 24


@given(st.binary(min_size=24, max_size=24))
def test_any_24_bytes(data: bytes) -> None:
    assert ServerID.unpack(data).pack() == data


def test_layout() -> None:
    data = ServerID(0x0102030405060708, 0x11121314, 0x21222324, 0x3132333435363738).pack()
    assert data.hex() == "0807060504030201" + "14131211" + "24232221" + "3837363534333231"


@given(st.binary(max_size=100).filter(lambda data: len(data) != 24))
def test_other_lengths(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        ServerID.unpack(data)


@given(server_ids)
def test_text_round_trip(server_id: ServerID) -> None:
    text = str(server_id)
    again = ServerID.parse(text)
    assert again[:3] == server_id[:3]
    assert again.unique_id == (UNIQUE_ID_NOT_TO_VERIFY if server_id.unique_id == 0 else server_id.unique_id)
    assert str(again) == text


@pytest.mark.parametrize(
    ("text", "server_id"),
    [
        ("1234", ServerID(1234, 0, NONCLUSTER_VNN, UNIQUE_ID_NOT_TO_VERIFY)),
        ("1234.5", ServerID(1234, 5)),
        ("1234/77", ServerID(1234, unique_id=77)),
        ("1234.5/77", ServerID(1234, 5, unique_id=77)),
        ("2:1234.5/77", ServerID(1234, 5, 2, 77)),
        ("0:1234", ServerID(1234, vnn=0)),
        ("1234/18446744073709551615", ServerID(1234)),
        (" 1234\n", ServerID(1234)),
        ("2147483647", ServerID((1 << 31) - 1)),
    ],
)
def test_text(text: str, server_id: ServerID) -> None:
    assert ServerID.parse(text) == server_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "x",
        "1.",
        "1/",
        ":1",
        "1:",
        "1.2.3",
        "1/2/3",
        "1 2",
        "1/2.3",
        "2147483648",
        "1.4294967296",
        "4294967296:1",
        "1/18446744073709551616",
        "1/99999999999999999999",
        "\u0661",
        "1\n2",
        "0x10",
        "1e3",
        "+1",
    ],
)
def test_invalid_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        ServerID.parse(text)


@given(st.text(max_size=30) | st.from_regex(r"(\d+:)?\d+(\.\d+)?(/\d+)?", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        server_id = ServerID.parse(text)
    except ValueError:
        return
    server_id.check()
    assert ServerID.unpack(server_id.pack()) == server_id


@given(st.integers(), st.integers(), st.integers(), st.integers())
def test_check_accepts_only_what_can_be_packed(pid: int, task_id: int, vnn: int, unique_id: int) -> None:
    server_id = ServerID(pid, task_id, vnn, unique_id)
    try:
        server_id.check()
    except ValueError:
        return
    assert ServerID.unpack(server_id.pack()) == server_id


@given(st.integers(1, 1 << 31), uint32, uint64)
def test_of(pid: int, task_id: int, unique_id: int) -> None:
    server_id = ServerID(pid, task_id, unique_id=unique_id)
    if pid == 1 << 31:
        with pytest.raises(ValueError, match="pid"):
            ServerID.of(server_id)
    else:
        assert ServerID.of(server_id) == server_id
        assert ServerID.of(pid) == ServerID.of(str(pid)) == ServerID(pid)
