# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Each kind of value: what is accepted, what is refused, and that a formatted value is parsed back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd.config.kinds import (
    AbsolutePath,
    Boolean,
    Choice,
    Groups,
    Kind,
    Level,
    LogLevel,
    Number,
    NumberOrAutomatic,
    Seconds,
    Size,
    SocketAddress,
    TypeRules,
    Users,
)

COLOURS = Choice(lambda: ("red", "blue"), what="colours")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Boolean(), "yes", True),
        (Boolean(), "TRUE", True),
        (Boolean(), "1", True),
        (Boolean(), "On", True),
        (Boolean(), "no", False),
        (Boolean(), "False", False),
        (Boolean(), "0", False),
        (Boolean(), "oFF", False),
        (Number(1, 10), "1", 1),
        (Number(1, 10), "10", 10),
        (Number(1, 10), "+007", 7),
        (Number(-5, 5), "-5", -5),
        (NumberOrAutomatic(4, 10), "0", 0),
        (NumberOrAutomatic(4, 10), "4", 4),
        (Size(1, 1 << 30), "1024", 1024),
        (Size(1, 1 << 30), "1k", 1024),
        (Size(1, 1 << 30), "16M", 16 << 20),
        (Size(1, 1 << 30), "16 m", 16 << 20),
        (Size(1, 1 << 30), "1G", 1 << 30),
        (Seconds(0, 100), "0", 0.0),
        (Seconds(0, 100), "2.5", 2.5),
        (Seconds(0, 100), "100", 100.0),
        (AbsolutePath(), "/run/my service#1", "/run/my service#1"),
        (AbsolutePath(optional=True), "", ""),
        (COLOURS, "Blue", "blue"),
        (Level(), "3", 3),
        (Level(), "3 auth:5", 3),
        (Level(), "3 auth:5 msgd:7", 7),
        (Level(), "3, MSGD:7@/var/log/msgd.log", 7),
        (Level(), "1 auth_audit:50@/var/log/a:b auth:-1", 1),
        (Level(), "all:4", 4),
        (Level(), "auth:5", 0),
        (Users(), "", frozenset()),
        (Users(), "root", {0}),
        (Users(), "1000, root  1001,,0", {0, 1000, 1001}),
        (Groups(), "root, 1000", {0, 1000}),
        (SocketAddress(), "", ""),
        (SocketAddress(), "unix:/run/x", "unix:/run/x"),
        (SocketAddress(), "127.0.0.1:9100", "127.0.0.1:9100"),
        (SocketAddress(), "[::1]:0", "[::1]:0"),
        (TypeRules(), "", ()),
        (TypeRules(), "all, -DEBUG 13 -0xF000-0xffff", ("all", "-DEBUG", "13", "-0xF000-0xffff")),
    ],
)
def test_text_is_parsed(kind: Kind[object], text: str, value: object) -> None:
    assert kind.parse(text) == value
    assert kind.check(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        (Boolean(), "", "not yes or no"),
        (Boolean(), "maybe", "not yes or no"),
        (Number(1, 10), "0", "not from 1 to 10"),
        (NumberOrAutomatic(4, 10), "1", "not from 4 to 10"),
        (Number(1, 10), "11", "not from 1 to 10"),
        (Number(1, 10), "", "not a whole number"),
        (Number(1, 10), "1.5", "not a whole number"),
        (Number(1, 10), "1_0", "not a whole number"),
        (Number(1, 10), "٣", "not a whole number"),
        (Number(1, 10), "9" * 5000, "not a whole number"),
        (Size(1 << 10, 1 << 30), "1023", "not from 1K to 1G"),
        (Size(1 << 10, 1 << 30), "2G", "not from 1K to 1G"),
        (Size(1 << 10, 1 << 30), "-1M", "not from 1K to 1G"),
        (Size(1 << 10, 1 << 30), "16MB", "not a size"),
        (Size(1 << 10, 1 << 30), "M", "not a size"),
        (Seconds(0, 10), "-1", "not from 0 to 10 seconds"),
        (Seconds(0.5, 10), "10.1", "not from 0.5 to 10 seconds"),
        (Seconds(0, 10), "nan", "not a number of seconds"),
        (Seconds(0, 10), "5s", "not a number of seconds"),
        (AbsolutePath(), "", "not an absolute path"),
        (AbsolutePath(), "run", "not an absolute path"),
        (AbsolutePath(optional=True), "msgd.log", "not an absolute path"),
        (AbsolutePath(), "/a\nb", "cannot hold"),
        (AbsolutePath(), "/a\0b", "cannot hold"),
        (AbsolutePath(), "/a  b", "cannot hold"),
        (AbsolutePath(), "/a ", "cannot hold"),
        (AbsolutePath(), "/a\\", "cannot hold"),
        (COLOURS, "green", "not colours; colours: red, blue"),
        (Level(), "", "no log level is given"),
        (Level(), "11", "not from 0 to 10"),
        (Level(), "-1", "not from 0 to 10"),
        (Level(), "1 msgd:11", "not from 0 to 10"),
        (Level(), "high", "not a log level"),
        (Level(), "1 2", "not a log level"),
        (Level(), "1 auth:", "not a log level"),
        (Users(), "nobody-has-this-name", "no user has the name 'nobody-has-this-name'"),
        (Users(), "4294967295", "4294967295 is not a uid"),
        (Users(), "-1", "-1 is not a uid"),
        (Users(), "ro\0ot", "no user has the name"),
        (Users(), "\udcff", "no user has the name"),
        (SocketAddress(), "unix:x", "not an absolute path"),
        (SocketAddress(), "9100", "not unix:/path, 127.0.0.1:port"),
        (SocketAddress(), "localhost:9100", "not unix:/path, 127.0.0.1:port"),
        (SocketAddress(), "::1:9100", "must be in brackets"),
        (SocketAddress(), "[127.0.0.1]:9100", "must be in brackets"),
        (SocketAddress(), "127.0.0.1:65536", "'65536' is not a port"),
        (SocketAddress(), "127.0.0.1:", "'' is not a port"),
        (Groups(), "nobody-has-this-name", "no group has the name 'nobody-has-this-name'"),
        (Groups(), "-1", "-1 is not a gid"),
        (TypeRules(), "all ALL- --1 PING", "'ALL-' is not all, a message type's name or number"),
        (TypeRules(), "1-", "'1-' is not all"),
        (TypeRules(), "12345678901", "'12345678901' is not all"),
    ],
)
def test_bad_text_is_refused(kind: Kind[object], text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "given_value", "value"),
    [
        (Boolean(), True, True),
        (Number(1, 10), 5, 5),
        (Size(1, 100), 64, 64),
        (Seconds(0, 10), 5, 5.0),
        (AbsolutePath(), Path("/run/x"), "/run/x"),
        (Level(), 3, 3),
        (Users(), [0, "1000", "root"], {0, 1000}),
        (Users(), frozenset((7,)), {7}),
        (Groups(), [0, "root", "7"], {0, 7}),
        (TypeRules(), ["all", "-PING"], ("all", "-PING")),
    ],
)
def test_python_values_are_accepted(kind: Kind[object], given_value: object, value: object) -> None:
    assert kind.check(given_value) == value


@pytest.mark.parametrize(
    ("kind", "given_value"),
    [
        (Boolean(), 1),
        (Number(0, 10), True),
        (Number(0, 10), 1.0),
        (Size(0, 10), None),
        (Seconds(0, 10), False),
        (AbsolutePath(), None),
        (AbsolutePath(), b"/run"),
        (COLOURS, 3),
        (Level(), True),
        (Level(), 1.5),
        (Users(), 0),
        (Users(), b"root"),
        (Users(), [None]),
        (Users(), [True]),
        (Groups(), 0),
        (SocketAddress(), 9100),
        (Groups(), [None]),
        (TypeRules(), 1),
        (TypeRules(), [1]),
    ],
)
def test_wrong_python_types_are_type_errors(kind: Kind[object], given_value: object) -> None:
    with pytest.raises(TypeError):
        kind.check(given_value)


@pytest.mark.parametrize(
    ("kind", "given_value"),
    [
        (Number(1, 10), 0),
        (Seconds(0, 10), float("nan")),
        (Seconds(0, 10), float("inf")),
        (AbsolutePath(), Path("run")),
        (Level(), 11),
        (Users(), [-1]),
        (Groups(), [-1]),
        (TypeRules(), ["1 2"]),
    ],
)
def test_python_values_have_the_same_bounds(kind: Kind[object], given_value: object) -> None:
    with pytest.raises(ValueError, match=r"not|no "):
        kind.check(given_value)


@given(st.integers(0, 1 << 40))
def test_a_formatted_size_is_parsed_back(size: int) -> None:
    kind = Size(0, 1 << 40)
    assert kind.parse(kind.format(size)) == size


@given(st.integers(0, 3_600_000))
def test_formatted_seconds_are_parsed_back(milliseconds: int) -> None:
    kind = Seconds(0, 3600)
    assert kind.parse(kind.format(milliseconds / 1000)) == milliseconds / 1000


@given(st.frozensets(st.integers(0, 0xFFFFFFFE)))
def test_formatted_users_are_parsed_back(uids: frozenset[int]) -> None:
    assert Users().parse(Users().format(uids)) == uids


def test_a_log_level_keeps_its_text_through_copies() -> None:
    level = LogLevel("1  auth:5, msgd:3")
    for copied in (level, copy.deepcopy(level), pickle.loads(pickle.dumps(level))):
        assert (copied, copied.text) == (3, "1 auth:5 msgd:3")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Boolean(), "yes or no"),
        (Number(1, 10), "a number from 1 to 10"),
        (Size(1 << 10, 1 << 30), "a number of bytes, or of K, M or G, from 1K to 1G"),
        (Seconds(0.01, 10), "seconds, from 0.01 to 10"),
        (AbsolutePath(), "an absolute path"),
        (AbsolutePath(optional=True), "an absolute path, or nothing"),
        (COLOURS, "one of red, blue"),
    ],
)
def test_how_a_manual_describes_a_kind(kind: Kind[object], words: str) -> None:
    assert kind.description == words
