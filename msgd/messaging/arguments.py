# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What callers may pass as a message type, a destination, data or a handler, and how it is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from msgd.wire.message_types import TYPE_MAX, type_number
from msgd.wire.server_id import ServerID

Destination = ServerID | int | str
"""A ServerID, a pid, or server-id text such as `4711` or `4711.3/991`."""

Type = int | str
"""A message type: a MessageType, a number, or a name such as `PING` in any case."""

_CO_COROUTINE = 0x80
"""inspect.CO_COROUTINE: the flag of the code of an `async def`."""

Data = bytes | bytearray | memoryview
"""The data of a message: any buffer."""


def message_type_number(message_type: Type) -> int:
    """The number of a type; ValueError if it is none, or does not fit 32 bits."""
    if isinstance(message_type, str):
        return type_number(message_type)
    if not 0 <= message_type <= TYPE_MAX:
        raise ValueError(f"message type {message_type} does not fit 32 bits")
    return message_type


def data_bytes(data: Data) -> bytes:
    """A buffer as bytes; TypeError for what is none."""
    if isinstance(data, str):
        raise TypeError('data must be bytes, not str: encode it, as in "text".encode()')
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"data must be bytes or another buffer, not {type(data).__name__}") from None


def check_handler(handler: Callable[..., Any]) -> None:
    """TypeError for what cannot be called, and for an `async def` that nobody would await."""
    if not callable(handler):
        raise TypeError(f"a handler must be callable, not {type(handler).__name__}")
    if _is_async(handler) or _is_async(getattr(handler, "__call__", None)):  # noqa: B004
        raise TypeError("an async handler never runs here; register it with msgd.aio.AsyncMessaging")


def _is_async(function: object) -> bool:
    """inspect.iscoroutinefunction(), without importing that module and all that it needs."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & _CO_COROUTINE)
