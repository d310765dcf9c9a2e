# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What callers may pass as a handler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from msgd.messaging.arguments import check_handler
from msgd.wire.header import Message


def plain(message: Message) -> None: ...


async def deaf(message: Message) -> None: ...


class Plain:
    def __call__(self, message: Message) -> None: ...

    def method(self, message: Message) -> None: ...


class Deaf:
    async def __call__(self, message: Message) -> None: ...

    async def method(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [deaf, functools.partial(deaf), functools.partial(functools.partial(deaf)), Deaf(), Deaf().method],
    ids=["function", "partial", "partial of a partial", "object", "method"],
)
def test_an_async_handler_is_refused(handler: Callable[..., Any]) -> None:
    assert any(map(inspect.iscoroutinefunction, (handler, getattr(handler, "__call__", None))))  # noqa: B004
    with pytest.raises(TypeError, match="an async handler never runs here"):
        check_handler(handler)


@pytest.mark.parametrize(
    "handler",
    [plain, functools.partial(plain), Plain(), Plain().method, [].append, print, Plain],
    ids=["function", "partial", "object", "method", "method in C", "function in C", "class"],
)
def test_any_other_callable_is_taken(handler: Callable[..., Any]) -> None:
    check_handler(handler)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="a handler must be callable, not int"):
        check_handler(7)  # type: ignore[arg-type]
