# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The rules of `msgd:allow types`: which types of messages the gateway's clients may send."""

from __future__ import annotations

from collections.abc import Iterable

from msgd.errors import ConfigError
from msgd.wire.message_types import TYPE_MAX, type_number


class TypeRules:
    """The message types that the rules of `msgd:allow types` allow.

    Raises ConfigError if a rule names an unknown message type.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        self._rules: list[tuple[bool, int, int]] = []
        for rule in rules:
            name = rule.removeprefix("-")
            try:
                first, last = _range(name)
            except ValueError as error:
                raise ConfigError(f"msgd:allow types: {error}") from None
            self._rules.append((name == rule, first, last))

    def allow(self, message_type: int) -> bool:
        """Whether the last rule that covers this type allows it.  A type that no rule covers is not allowed."""
        about_it = (allowed for allowed, first, last in reversed(self._rules) if first <= message_type <= last)
        return next(about_it, False)


def _range(name: str) -> tuple[int, int]:
    if name.lower() == "all":
        return 0, TYPE_MAX
    first, _, last = name.partition("-")
    return type_number(first), type_number(last or first)
