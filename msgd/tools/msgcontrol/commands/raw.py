# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The commands send and call: any message, by the name or the number of its type."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from msgd.messaging.requests import REPLY_TYPES
from msgd.tools.msgcontrol.command import Command, Refused, Request, ordinary_id
from msgd.wire.control import unpack_text
from msgd.wire.header import Message
from msgd.wire.message_types import type_name, type_number

_SHOWN_BYTES = 256
"""Bytes of data that is not text which are shown in hex."""


def _data(arguments: Sequence[str]) -> bytes:
    """The data that an argument stands for: @FILE, - (stdin), or the argument itself.  Raises Refused."""
    if not arguments:
        return b""
    (text,) = arguments
    if text == "-":
        return sys.stdin.buffer.read()
    if not text.startswith("@"):
        return os.fsencode(text)
    try:
        with open(text[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(f"{text[1:]}: {error.strerror}") from error


def _send(arguments: Sequence[str], reply_type: int | None) -> Request:
    if reply_type is not None:
        raise ValueError("--reply-type is for call")
    return Request(type_number(arguments[0]), _data(arguments[1:]))


def _call(arguments: Sequence[str], reply_type: int | None) -> Request:
    message_type = type_number(arguments[0])
    answer = REPLY_TYPES.get(message_type) if reply_type is None else reply_type
    if answer is None:
        raise ValueError(f"no type is known to answer {type_name(message_type)}; name it with --reply-type")
    return Request(message_type, _data(arguments[1:]), answer)


def _show(message: Message) -> str:
    """The answer: type, sender, and the data as text if it is text, or in hex."""
    head = f"{type_name(message.type)} from pid {ordinary_id(message.src)}"
    if not message.data:
        return head
    text = message.data.removesuffix(b"\0")
    try:
        is_text = b"\0" not in text and unpack_text(text) == text.decode()
    except UnicodeDecodeError:
        is_text = False
    if is_text:
        return f"{head}: {text.decode()}"
    more = " ..." if len(message.data) > _SHOWN_BYTES else ""
    return f"{head}: {len(message.data)} bytes: {message.data[:_SHOWN_BYTES].hex(' ', 4)}{more}"


SEND = Command(
    "send",
    "send a message of any type, by name or number; the DATA that follows is text, @FILE, or - for stdin",
    arguments=("TYPE", "[DATA]"),
    make=_send,
)
CALL = Command(
    "call",
    "the same, and show the answer; --reply-type names its type",
    arguments=("TYPE", "[DATA]"),
    make=_call,
    show=_show,
    is_answered_at_once=False,
)
