# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The text of a lock file: the unique id and the lines after it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from msgd import MessageClass
from msgd.presence.lock_text import COMMAND_MAX, TEXT_MAX, Process, describe, format_text, parse_text
from msgd.wire.refusal import FIRST_REQUEST_TASK
from msgd.wire.server_id import EVERY_TASK

LARGEST = 2**64 - 2


def test_lines_are_read_back() -> None:
    lines = describe("stream", MessageClass.SMBD | MessageClass.PRINT, (0,), 1767225600.9)
    process = parse_text(7, format_text(42, lines))
    assert process == Process(7, 42, lines)
    assert process.is_ours
    assert process.messaging_type == "stream"
    assert process.classes == MessageClass.SMBD | MessageClass.PRINT
    assert process.since == 1767225600
    assert process.command


def test_process_that_listens_to_no_class() -> None:
    process = parse_text(7, format_text(42, describe("dgram", MessageClass(0), (0,), 0)))
    assert process is not None
    assert process.classes == MessageClass(0)
    assert process.is_ours


def test_samba_process() -> None:
    process = parse_text(7, b"42\n")
    assert process is not None
    assert (process.is_ours, process.messaging_type, process.since, process.command) == (False, "dgram", None, None)
    assert process.classes == MessageClass.ALL


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        ("classes SMBD FAX", "classes", MessageClass.SMBD),
        ("classes", "classes", MessageClass.ALL),
        ("classess SMBD", "classes", MessageClass.ALL),
        ("since then", "since", None),
        ("since -1", "since", None),
        ("since " + "9" * 400, "since", None),
        ("command a  b ", "command", "a  b "),
        ("datagram 65536", "longest_datagram", 65536),
        ("datagram long", "longest_datagram", 0),
        ("datagram -1", "longest_datagram", 0),
        ("datagram " + "9" * 400, "longest_datagram", 0),
        ("unknown word", "messaging_type", "dgram"),
    ],
)
def test_lines_of_other_versions(line: str, attribute: str, value: object) -> None:
    process = parse_text(7, f"42\n{line}\n".encode())
    assert process is not None
    assert getattr(process, attribute) == value


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ((0,), "tasks 0"),
        ((2, 0, 1, 7), "tasks 0-2 7"),
        ((), "tasks "),
        (range(0, 200, 2), None),
    ],
)
def test_tasks(tasks: Sequence[int], line: str | None) -> None:
    """The tasks named are there and no others are; where they do not fit, nobody can tell."""
    lines = describe("dgram", MessageClass.ALL, tasks, 0)
    process = parse_text(7, format_text(42, lines))
    assert process is not None
    assert next((one for one in lines if one.startswith("tasks")), None) == line
    assert all(process.has_task(one) for one in (*tasks, FIRST_REQUEST_TASK, EVERY_TASK))
    assert process.has_task(5) == (line is None)


@pytest.mark.parametrize("text", ["tasks 5-", "tasks -5", "tasks five", "tasks 5-2", "tasks 99999999999"])
def test_tasks_of_other_versions(text: str) -> None:
    process = parse_text(7, f"42\n{text}\n".encode())
    assert process is not None
    assert not process.has_task(5)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("/usr/bin/worker", "worker"),
        ("/srv/package/__main__.py", "package"),
        ("\x1b[2Jname\n", "?[2Jname?"),
        ("\N{SNOWMAN}" * 1000, "\N{SNOWMAN}" * COMMAND_MAX),
        ("\udcff", "?"),
        ("\U0001f9e8" * 1000, "\U0001f9e8" * COMMAND_MAX),
    ],
)
def test_command_names(monkeypatch: pytest.MonkeyPatch, argv: str, command: str) -> None:
    """Whatever the name of the program, it fits and stays on one line."""
    monkeypatch.setattr(sys, "argv", [argv])
    text = format_text(LARGEST, describe("dgram", MessageClass.ALL | MessageClass.PUBSUB, range(0, 200, 2), 2e9, 65536))
    assert len(text) <= TEXT_MAX
    process = parse_text(7, text)
    assert process is not None
    assert process.command == command


@pytest.mark.parametrize("argv", [[], [""], ["-c"]])
def test_command_name_of_an_interpreter(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert "command python3" in describe("dgram", MessageClass.ALL, (0,), 0)


def test_text_that_is_too_long_is_refused() -> None:
    assert len(format_text(1, ("x" * (TEXT_MAX - 3),))) == TEXT_MAX
    with pytest.raises(ValueError, match="at most 512 bytes, not 513"):
        format_text(1, ("x" * (TEXT_MAX - 2),))
