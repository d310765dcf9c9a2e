# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`Immutable`, the base of objects that are made once and from then on only read.

What a dataclass with frozen=True and slots=True does too.  But the module `dataclasses` imports `inspect`, and compiles
a class's methods each time that a program starts: ten of them took longer than the rest of msgcontrol's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True)  # to type checkers
class Immutable:
    """An object with the attributes that `__slots__` of its classes name, all of which `_set()` has set.

    Two are equal if they are of the same class, and the attributes that `_compared()` returns are equal.
    """

    __slots__ = ()

    def _set(self, **values: Any) -> None:
        """Set attributes; for constructors."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def _compared(cls) -> tuple[str, ...]:
        """The names of the attributes that are compared and shown."""
        return cls._all_names()

    @classmethod
    def _all_names(cls) -> tuple[str, ...]:
        return tuple(name for base in reversed(cls.__mro__) for name in getattr(base, "__slots__", ()))

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._compared())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Immutable) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in zip(self._compared(), self._values(), strict=True))
        return f"{type(self).__name__}({', '.join(shown)})"

    if not TYPE_CHECKING:  # with it, a type checker would let any attribute be set

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise AttributeError(f"{name} cannot be set: a {type(self).__name__} does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name} cannot be deleted: a {type(self).__name__} does not change")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._all_names()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._set(**state)
