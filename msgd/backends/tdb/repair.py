# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Repairing messages.tdb: rebuild its list of free space, or the whole file.

Both are done under the lock over the whole file, and both may be killed at any instruction: the next process to take
that lock finds the mark `msgd/space` saying "changing" and starts over.

The list of free space is rebuilt from the hash chains (wire/tdb_space.py).  The chains can be trusted: a record enters
or leaves a chain by the write of one word.  Nothing of the old list is used.

The whole file is rebuilt if it is damaged in any other way.  Every record that can still be read is kept, and every
living process has a record afterwards, whether its old one could be read or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Set
from functools import partial

import tdb

from msgd.backends.tdb.libtdb import IO_ERROR
from msgd.wire.tdb_record import SPACE_CHANGING, SPACE_KEY, SPACE_SOUND, key_source_pid
from msgd.wire.tdb_space import rebuilt_free_list

logger = logging.getLogger("msgd")


def rebuild_free_list(fd: int) -> bool:
    """Rebuild the list of free space; return False, and write nothing, if the chains are damaged too.

    Raises RuntimeError as libtdb does.
    """
    try:
        size = os.fstat(fd).st_size
        writes = rebuilt_free_list(partial(os.pread, fd), size)
        if writes is None:
            return False
        os.posix_fallocate(fd, 0, size)  # a process may have been killed while it made the file longer
        for place, data in writes:
            os.pwrite(fd, data, place)
    except OSError as error:
        raise RuntimeError(IO_ERROR, error.strerror) from error
    return True


def rebuild_file(database: tdb.Tdb, known_keys: Set[bytes], room: int) -> None:
    """Put every record that can be read into an empty file, each with room in multiples of `room` bytes.

    `known_keys` are tried besides those that a traversal finds, because a damaged chain ends a traversal early.
    """
    keys = (_keys_found(database) | known_keys) - {SPACE_KEY}
    records = {key: b"" for key in known_keys if key_source_pid(key) is None}
    for key in keys:
        with contextlib.suppress(RuntimeError):
            value = database.get(key)
            if value is not None:
                records[key] = value
    database.clear()
    database.store(SPACE_KEY, SPACE_CHANGING)
    for key, value in records.items():
        database.store(key, bytes(len(value) + -len(value) % room or room))
        database.store(key, value)
    database.store(SPACE_KEY, SPACE_SOUND)
    list(database.keys())  # a traversal that failed keeps a record locked; one that succeeds releases it
    logger.error("messages.tdb was damaged; it has been rebuilt with %d queues", len(records))


def _keys_found(database: tdb.Tdb) -> set[bytes]:
    """The keys that a traversal reaches before it fails, or comes to a key for the second time."""
    found: set[bytes] = set()
    with contextlib.suppress(RuntimeError):
        for key in database:
            if key in found:
                break  # the chain leads in a circle
            found.add(key)
    return found
