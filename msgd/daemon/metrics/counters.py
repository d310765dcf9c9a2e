# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Counters that one process writes and another reads: names and numbers in shared memory.

The main process maps the memory before it forks and reads it at any time; only the child writes.  So the counts of a
child survive its end, however it ends, and counting costs one store.

    u64 number of entries in use, then the entries: 56 bytes of name (UTF-8, padded with NULs), u64 value

A name is written before the number of entries includes it, and a value is one aligned store, so the reader never sees
half of either.  When the table is full, new names are not counted.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_ENTRIES = 255
_NAME = 56
_SIZE = (1 + _ENTRIES) * (_NAME + 8)
_LARGEST = (1 << 64) - 1


class Counters:
    """The counters of one process, by name."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._words = memoryview(self._memory).cast("Q")
        self._places: dict[str, int] = {}

    def add(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        if place := self._place(name):
            self._words[place] = (self._words[place] + number) & _LARGEST

    def set(self, name: str, number: int) -> None:
        """Set a counter."""
        if place := self._place(name):
            self._words[place] = number

    def items(self) -> Iterator[tuple[str, int]]:
        """The names and their numbers.  The writer is not trusted: any contents can be read safely."""
        for entry in range(1, min(self._words[0], _ENTRIES) + 1):
            start = entry * (_NAME + 8)
            name = self._memory[start : start + _NAME].rstrip(b"\0")
            yield name.decode(errors="replace"), self._words[(start + _NAME) // 8]

    def close(self) -> None:
        """Unmap the memory."""
        self._words.release()
        self._memory.close()

    def _place(self, name: str) -> int:
        """The index of a name's word; 0 if there is no room for it."""
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = self._new_place(name)
        return place

    def _new_place(self, name: str) -> int:
        encoded = name.encode()[:_NAME]
        used = self._words[0]
        if used >= _ENTRIES:
            return 0
        start = (used + 1) * (_NAME + 8)
        self._memory[start : start + len(encoded)] = encoded
        self._words[0] = used + 1
        return (start + _NAME) // 8
