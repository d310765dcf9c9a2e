"""The free space of a tdb file (libtdb 1.x, the format of Samba's files since 3.0): what its list of it should say.

A file begins with its head: 32 bytes magic, then, as u32 in native order, version, number of hash chains, a word that
says whether the last two are valid, start of the recovery area, three words that are nothing to us, feature flags, and
bytes of the mutexes behind the head.  All offsets in the file count from the end of the mutexes (from 0 without).  At
offset 168 stands that of the first free record, behind it, for each chain, that of its first record; then come the
records, one after the other: u32 next record of the chain or list, length of what follows, three words, magic.  The
last u32 of a record is its length with its head.
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
    """Bytes to be written at a place in the file."""

    place: int
    data: bytes


def free_list_anew(read: Callable[[int, int], bytes], size: int) -> list[Write] | None:
    """What to write, in this order, so that all that is in no chain is in the list of free space, once.

    `read(length, place)` gives bytes of the file, fewer at its end; the file has `size` bytes.  The list is empty after
    the first write and complete after the last one; what is between writes where nothing is.  None if the file is
    damaged, or not as described above.
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
    """Begin and end of each record that is in a chain, in order; None if one cannot be a record, or is there twice."""
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
