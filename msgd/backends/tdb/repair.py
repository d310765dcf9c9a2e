# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Repairing messages.tdb: rebuild its list of free space, or the whole file; and making it shorter.

All are done under the lock over the whole file, and all may be killed at any instruction: the next process to take that
lock finds the mark `msgd/space` saying "changing" and rebuilds the list of free space.

The list of free space is rebuilt from the hash chains (wire/tdb_space.py).  The chains can be trusted: a record enters
or leaves a chain by the write of one word.  Nothing of the old list is used.

The whole file is rebuilt if it is damaged in any other way.  Every record that can still be read is kept, and every
living process has a record afterwards, whether its old one could be read or not.  If a "continued" record is lost with
the record that it was in, the receiver would never look at the segment that it names, and the sender would never go
back to PID/<pid> (segments.py, rules 1 and 2).  So each segment that no continuation leads to is announced once more.
The segments of one source are announced by their numbers: the first in PID/<pid>, a later one at the end of the slot
before it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Set
from functools import partial

import tdb

from msgd import events
from msgd.backends.tdb.libtdb import IO_ERROR
from msgd.wire.tdb_record import (
    CONTINUATION_SIZE,
    SPACE_CHANGING,
    SPACE_KEY,
    SPACE_SOUND,
    Continuation,
    continuations_in,
    key_pid,
    pack_continuation,
    queue_key,
    segment_in,
)
from msgd.wire.tdb_space import compact, readable_records, rebuilt_free_list, used_bytes

logger = logging.getLogger("msgd")

SLACK = 2 << 20
"""Bytes of free space that a file keeps when it is made shorter, in whole pages."""
_PAGE = 4096
_MOVED_RECORDS, _MOVED_BYTES = 500, 32 << 20
"""At most so much is moved at a time, so that nobody waits long for the lock: some ten milliseconds."""


def rebuild_free_list(fd: int) -> bool:
    """Rebuild the list of free space; return False, and write nothing, if the chains are damaged too.

    Raises RuntimeError as libtdb does.
    """
    with _io_errors():
        return _rebuild_free_list(fd, os.fstat(fd).st_size)


def _rebuild_free_list(fd: int, size: int) -> bool:
    """Rebuild the list for a file of `size` bytes; the real file may be longer."""
    writes = rebuilt_free_list(partial(os.pread, fd), size)
    if writes is None:
        return False
    os.posix_fallocate(fd, 0, size)  # a process may have been killed while it made the file longer
    for place, data in writes:
        os.pwrite(fd, data, place)
    return True


def is_mostly_free(fd: int) -> bool:
    """Whether the file would be less than half as long if it had no free space but SLACK."""
    with _io_errors():
        size = os.fstat(fd).st_size
        used = used_bytes(partial(os.pread, fd), size) if size > 2 * SLACK else None
    return used is not None and 2 * (used + SLACK) < size


def shrink(fd: int) -> bool:
    """Move the last records forward and cut off the file behind them; return False if it is damaged.

    A process that has mapped the longer file reads only where records are, and libtdb maps the file again before it
    makes it longer.
    """
    with _io_errors():
        size = os.fstat(fd).st_size
        end = compact(partial(os.pread, fd), partial(os.pwrite, fd), size, _MOVED_RECORDS, _MOVED_BYTES)
        if end is None:
            return False
        shorter = min(size, end + SLACK + -end % _PAGE)
        if not _rebuild_free_list(fd, shorter):
            return False
        os.ftruncate(fd, shorter)
    return True


@contextlib.contextmanager
def _io_errors() -> Iterator[None]:
    """Turn errors of the system into those that libtdb's module raises."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(IO_ERROR, error.strerror) from error


def rebuild_file(database: tdb.Tdb, fd: int, living: Set[bytes], room: int) -> None:
    """Put every record that can be read into an empty file, each with room in multiples of `room` bytes.

    `living` are the keys that have a record afterwards in any case.  Each chain is read up to its damage.  libtdb's
    traversal is not used for that: it ends at the first damage, and the chains behind it would be lost.
    """
    with _io_errors():
        found, _ = readable_records(partial(os.pread, fd), os.fstat(fd).st_size)
    records = {key: value for key, value in (dict.fromkeys(living, b"") | found).items() if key != SPACE_KEY}
    announce_again(records)
    database.clear()
    database.store(SPACE_KEY, SPACE_CHANGING)
    for key, value in records.items():
        needed = len(value) + CONTINUATION_SIZE
        database.store(key, bytes(needed + -needed % room))
        database.store(key, value)
    database.store(SPACE_KEY, SPACE_SOUND)
    list(database.keys())  # a traversal that failed keeps a record locked; one that succeeds releases it
    logger.error(
        "messages.tdb was damaged; it has been rebuilt with %d queues", len(records),
        extra=events.fields(events.FILE_DAMAGED, FILE="messages.tdb"),
    )  # fmt: skip


def announce_again(records: dict[bytes, bytes]) -> None:
    """Append a continuation to each segment in `records` that none of them leads to."""
    announced = {(key_pid(key), one) for key, value in records.items() for one in continuations_in(value)}
    segments: dict[tuple[int, int, int], list[tuple[bytes, Continuation]]] = {}
    for key, value in records.items():
        pid, what = key_pid(key), segment_in(key, value)
        if pid is not None and what is not None:
            segments.setdefault((pid, what.pid, what.unique_id), []).append((key, what))
    for (pid, *_), slots in segments.items():
        end = queue_key(pid)
        for key, what in sorted(slots, key=lambda slot: slot[1].number):
            if (pid, what) not in announced and end in records:
                records[end] += pack_continuation(pid, what)
            end = key
