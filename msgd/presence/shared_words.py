# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The 64 words of memory that a process can share with others, in its lock file.

A transport may need memory of a process that others can read, for example to see whether it sleeps.  The lock file is
the right place for it: the words live and die with the entry, and whoever has mapped them knows whose they are.

    offset 0    the text of the lock file (lock_text.py), padded with newlines to TEXT_MAX (512) bytes
    offset 512  64 words of 8 bytes, in native byte order; only the owner of the file writes them

What a word means is the transport's business.

Rule 1. A word is read and written in one access, so a reader sees the old value or the new one, never a mixture.
Rule 2. Mapped words belong to one process for ever, because a lock file is never handed on (Rule 4 of lock_file.py).
    They keep their last values when the process dies.  Whoever must know whether it has died asks for the holder of
    the lock, through the descriptor that map_words() returns.
"""

from __future__ import annotations

import mmap
import os
import struct

from msgd.presence.lock_file import LockFile, lock_holder, open_lock_file
from msgd.presence.lock_text import TEXT_MAX, Process, parse_text

_WORDS = 64
_WORD = struct.Struct("Q")
LOCK_FILE_SIZE = TEXT_MAX + _WORDS * _WORD.size
"""Bytes of a lock file with shared words."""


def share_words(lock_file: LockFile, first: int) -> memoryview:
    """Add the shared words to this process's lock file, which has no text yet; all are 0 except the first.

    Release the view before the lock file.  Raises OSError.
    """
    return shared_words(lock_file.extend(_WORD.pack(first).ljust(_WORDS * _WORD.size, b"\0")))


def map_words(lock_dir_fd: int, pid: int) -> tuple[Process, mmap.mmap, int] | None:
    """The entry of another process, its lock file mapped read-only, and a descriptor of that file.

    As long as lock_holder() of the descriptor is `pid`, the process is alive, and it is the same one.  The caller
    closes mapping and descriptor.  None if the process is not alive or shares no words.  Raises TransportError and
    OSError.
    """
    fd = open_lock_file(lock_dir_fd, pid)
    if fd is None:
        return None
    try:
        if lock_holder(fd) != pid or os.fstat(fd).st_size < LOCK_FILE_SIZE:
            return None
        process = parse_text(pid, os.pread(fd, TEXT_MAX, 0))
        return process and (process, mmap.mmap(fd, LOCK_FILE_SIZE, prot=mmap.PROT_READ), os.dup(fd))
    finally:
        os.close(fd)


def shared_words(memory: mmap.mmap) -> memoryview:
    """The 64 words in a mapped lock file, as integers (Rule 1)."""
    return memoryview(memory)[TEXT_MAX:].cast("Q")
