# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The free list of a tdb file (libtdb 1.x, the format of Samba's files since 3.0): how to compute a correct one.

A file begins with a header: 32 bytes of magic; then, as u32 in native order: version, number of hash chains, a word
that says whether the last two fields are valid, start of the recovery area, three words that do not matter here,
feature flags, and the size in bytes of the mutexes behind the header.  Every offset in the file counts from the end of
the mutexes, or from 0 if there are none.  The offset of the first free record is at 168.  It is followed by the offset
of the first record of each hash chain.  Then come the records, one after the other.  A record begins with u32 next
record of its chain or of the free list, u32 length of what follows this head, three more u32, u32 magic.  The last u32
of a record is its whole length, head included.

A record is in use if a hash chain leads to it.  Everything else is free.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

_HEAD = struct.Struct("=32s9I")
_MAGIC = b"TDB file\n"
_VERSION = 0x2601196D
_HAS_FEATURES = 0x0BAD1A52
_FREE_LIST = 168
_WORD = struct.Struct("=I")
_RECORD = struct.Struct("=6I")
_USED, _DEAD, _FREE = 0x26011999, 0xFEE1DEAD, 0xD9FEE666
_SMALLEST = _RECORD.size + _WORD.size


class Write(NamedTuple):
    """Bytes to write at an offset of the file."""

    place: int
    data: bytes


def rebuilt_free_list(read: Callable[[int, int], bytes], size: int) -> list[Write] | None:
    """The writes, to be made in this order, after which the free list holds all unused space, each part of it once.

    `read(length, place)` returns bytes of the file, fewer at its end; the file has `size` bytes.  The first write
    empties the free list and the last one links the new list into it; those in between touch unused space only.  So a
    process may be killed between any two of them.  Returns None if the file is damaged or is not as described above.
    """
    head = read(_HEAD.size, 0)
    if len(head) < _HEAD.size:
        return None
    magic, version, chains, has_features, recovery, _, _, _, _, mutexes = _HEAD.unpack(head)
    if not magic.startswith(_MAGIC) or version != _VERSION or recovery:
        return None
    base = mutexes if has_features == _HAS_FEATURES else 0
    start, end = _FREE_LIST + (1 + chains) * _WORD.size, size - base
    if start > end:
        return None
    used = _used(read, base, chains, start, end)
    if used is None:
        return None
    writes = [Write(base + _FREE_LIST, _WORD.pack(0))]
    begin, following = start, 0
    for used_begin, used_end in (*used, (end, end)):
        length = used_begin - begin
        if length < 0:
            return None
        if length >= _SMALLEST:
            writes.append(
                Write(base + begin, _RECORD.pack(following, length - _RECORD.size, 0, 0, 0, _FREE)),
            )
            writes.append(Write(base + used_begin - _WORD.size, _WORD.pack(length)))
            following = begin
        begin = used_end
    writes.append(Write(base + _FREE_LIST, _WORD.pack(following)))
    return writes


def _used(
    read: Callable[[int, int], bytes], base: int, chains: int, start: int, end: int
) -> list[tuple[int, int]] | None:
    """Start and end of each record in use, in file order; None if one is not a record, or is reached twice."""
    used: dict[int, int] = {}
    for (place,) in _WORD.iter_unpack(read(chains * _WORD.size, base + start - chains * _WORD.size)):
        while place:
            head = read(_RECORD.size, base + place)
            if place < start or place in used or len(head) < _RECORD.size:
                return None
            following, length, _, _, _, magic = _RECORD.unpack(head)
            record_end = place + _RECORD.size + length
            if magic not in (_USED, _DEAD) or record_end > end:
                return None
            used[place] = record_end
            place = following
    return sorted(used.items())
