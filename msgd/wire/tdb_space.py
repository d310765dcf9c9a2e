# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The space of a tdb file (libtdb 1.x, the format of Samba's files since 3.0): how to compute a correct free list, and
how to move records so that the file can be cut off behind them.

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

import itertools
import struct
from collections.abc import Callable
from typing import NamedTuple

_HEAD = struct.Struct("=32s9I")
HEAD_SIZE = _HEAD.size
"""Bytes at the start of a file that say whether it is a tdb file; libtdb leaves them as they are while we use it."""
_MAGIC = b"TDB file\n"
_VERSION = 0x2601196D
_HAS_FEATURES = 0x0BAD1A52
_RECOVERY, _FREE_LIST = 44, 168
_WORD = struct.Struct("=I")
_RECORD = struct.Struct("=6I")
_USED, _DEAD, _FREE = 0x26011999, 0xFEE1DEAD, 0xD9FEE666
_SMALLEST = _RECORD.size + _WORD.size


class Write(NamedTuple):
    """Bytes to write at an offset of the file."""

    place: int
    data: bytes


Read = Callable[[int, int], bytes]
"""`read(length, place)` returns bytes of the file, fewer at its end."""


class _Record(NamedTuple):
    """A record in use, from `begin` to `end`; `word` is the place of the u32 that leads to it."""

    begin: int
    end: int
    word: int


class _Space(NamedTuple):
    """The part of a file that holds records: from `start` to `end`, both counted from `base`."""

    base: int
    start: int
    end: int
    used: list[_Record]


def rebuilt_free_list(read: Read, size: int) -> list[Write] | None:
    """The writes, to be made in this order, after which the free list holds all unused space, each part of it once.

    The file has `size` bytes.  The first write empties the free list and the last one links the new list into it; those
    in between touch unused space only.  So a process may be killed between any two of them.  Returns None if the file
    is damaged or is not as described above.
    """
    space = _read_space(read, size)
    if space is None:
        return None
    base, start, end, used = space
    writes = [Write(base + _FREE_LIST, _WORD.pack(0))]
    begin, following = start, 0
    for used_begin, used_end, _ in (*used, _Record(end, end, 0)):
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


def has_sound_head(read: Read, size: int, chains: int | None = None) -> bool:
    """Whether a file of `size` bytes has the header of a tdb file, with so many hash chains, and room for these."""
    head = _read_head(read, size)
    return head is not None and chains in (None, head[1])


def find_value(read: Read, size: int, key: bytes) -> tuple[int, int] | None:
    """The place and the length of the value of a record, without reading it; None if there is none."""
    space = _read_space(read, size)
    for begin, _, _ in () if space is None else space.used:
        assert space is not None
        place = space.base + begin
        _, _, key_size, value_size, _, magic = _RECORD.unpack(read(_RECORD.size, place))
        if magic == _USED and key_size == len(key) and read(key_size, place + _RECORD.size) == key:
            return place + _RECORD.size + key_size, value_size
    return None


def readable_records(read: Read, size: int) -> tuple[dict[bytes, bytes], bool]:
    """The records, by key, that can be reached from the hash chains, and whether no chain leads to anything else.

    A file that is no tdb file has none.
    """
    records: dict[bytes, bytes] = {}
    found = _read_head(read, size)
    if found is None:
        return records, False
    base, chains = found
    seen, is_sound, room = set(), True, size
    for (place,) in _WORD.iter_unpack(read(chains * _WORD.size, base + _FREE_LIST + _WORD.size)):
        while place:
            head = read(_RECORD.size, base + place)
            if place in seen or len(head) < _RECORD.size:
                is_sound = False
                break
            seen.add(place)
            following, length, key_size, value_size, _, magic = _RECORD.unpack(head)
            is_inside = key_size + value_size <= length and base + place + _RECORD.size + length <= size
            room -= key_size + value_size
            if magic not in (_USED, _DEAD) or not is_inside or room < 0:
                is_sound = False
                break
            if magic == _USED:
                content = read(key_size + value_size, base + place + _RECORD.size)
                records[content[:key_size]] = content[key_size:]
            place = following
    return records, is_sound


def is_cut_off(read: Read, size: int) -> bool:
    """Whether a chain of the file leads behind its end or into a hole: it was cut off, and perhaps grew again."""
    found = _read_head(read, size)
    if found is None:
        return True
    base, chains = found
    seen = set()
    for (place,) in _WORD.iter_unpack(read(chains * _WORD.size, base + _FREE_LIST + _WORD.size)):
        while place and place not in seen:
            seen.add(place)
            head = read(_RECORD.size, base + place)
            if len(head) < _RECORD.size:
                return True
            following, length, _, _, _, magic = _RECORD.unpack(head)
            if base + place + _RECORD.size + length > size or not magic:
                return True
            place = following
    return False


def used_bytes(read: Read, size: int) -> int | None:
    """The bytes of a file of `size` bytes that are not free; None if it is damaged."""
    space = _read_space(read, size)
    return None if space is None else space.base + space.start + sum(one.end - one.begin for one in space.used)


def compact(read: Read, write: Callable[[bytes, int], object], size: int, records: int, most: int) -> int | None:
    """Move the last records of a file of `size` bytes into free space before them; return where the last one ends then.

    At most `records` of them, and `most` bytes, are moved.  `write(data, place)` writes to the file.  The first write
    empties the free list, which must be rebuilt afterwards.  A record is copied as a whole, then the word that leads to
    it is changed.  So a process may be killed between any two writes.  Returns None if the file is damaged.
    """
    space = _read_space(read, size)
    if space is None or any(one.end > after.begin for one, after in itertools.pairwise(space.used)):
        return None
    base, start, _, used = space
    write(_WORD.pack(0), base + _FREE_LIST)
    gaps = _gaps(start, used)
    words = {one.begin: one.word for one in used}
    ends = {one.begin: one.end for one in used}
    for begin, end, _ in reversed(used[-records:]):
        length = end - begin
        most -= length
        place = _take_gap(gaps, length, begin) if most >= 0 else None
        if place is None:
            break
        record = read(length, base + begin)
        write(record, base + place)
        write(_WORD.pack(place), base + words[begin])
        words[_WORD.unpack_from(record)[0]] = place
        del ends[begin]
        ends[place] = place + length
    return base + max(ends.values(), default=start)


def _gaps(start: int, used: list[_Record]) -> list[tuple[int, int]]:
    """Start and length of the free space before each record, in file order."""
    ends = [start, *(one.end for one in used)]
    return [(end, one.begin - end) for end, one in zip(ends, used, strict=False) if one.begin > end]


def _take_gap(gaps: list[tuple[int, int]], length: int, before: int) -> int | None:
    """Take the first free space with room for a record of this length, and before that place; None if there is none.

    What is left over is nothing, or large enough for a free record.
    """
    for index, (begin, room) in enumerate(gaps):
        if begin >= before:
            return None
        if room == length or room >= length + _SMALLEST:
            gaps[index] = begin + length, room - length
            return begin
    return None


def _read_space(read: Read, size: int) -> _Space | None:
    """Where the records are; None if the file is damaged, or is not as described above."""
    found = _read_head(read, size)
    if found is None or read(_WORD.size, _RECOVERY) != bytes(_WORD.size):
        return None
    base, chains = found
    start, end = _FREE_LIST + (1 + chains) * _WORD.size, size - base
    used = _used(read, base, chains, start, end)
    return None if used is None else _Space(base, start, end, used)


def _read_head(read: Read, size: int) -> tuple[int, int] | None:
    """The size of the mutexes, and the number of hash chains; None if the file is not as described above."""
    head = read(_HEAD.size, 0)
    if len(head) < _HEAD.size:
        return None
    magic, version, chains, has_features, _, _, _, _, _, mutexes = _HEAD.unpack(head)
    if not magic.startswith(_MAGIC) or version != _VERSION:
        return None
    base = mutexes if has_features == _HAS_FEATURES else 0
    return (base, chains) if base + _FREE_LIST + (1 + chains) * _WORD.size <= size else None


def _used(read: Read, base: int, chains: int, start: int, end: int) -> list[_Record] | None:
    """Each record in use, in file order; None if one is not a record, or is reached twice."""
    used: dict[int, _Record] = {}
    first = start - chains * _WORD.size
    for chain, (place,) in enumerate(_WORD.iter_unpack(read(chains * _WORD.size, base + first))):
        word = first + chain * _WORD.size
        while place:
            head = read(_RECORD.size, base + place)
            if place < start or place in used or len(head) < _RECORD.size:
                return None
            following, length, _, _, _, magic = _RECORD.unpack(head)
            record_end = place + _RECORD.size + length
            if magic not in (_USED, _DEAD) or record_end > end:
                return None
            used[place] = _Record(place, record_end, word)
            word, place = place, following
    return sorted(used.values())
