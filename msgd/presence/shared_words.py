# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The 64 words of memory that a process shares with others, in its lock file."""

from __future__ import annotations

import mmap
import os
import struct

from msgd.presence.lock_file import LockFile, lock_holder, open_lock_file
from msgd.presence.lock_text import TEXT_MAX, Process, parse_text

LOCK_FILE_SIZE = 1024
"""Bytes of a lock file with shared words: the text, filled up with newlines, and the words."""


def share_words(lock_file: LockFile, first: int) -> memoryview:
    """Give the file, still without text, its 64 shared words, the first as given.  Release the view at the end."""
    words = struct.pack("Q", first).ljust(LOCK_FILE_SIZE - TEXT_MAX, b"\0")
    return shared_words(lock_file.extend(words))


def map_words(lock_dir_fd: int, pid: int) -> tuple[Process, mmap.mmap, int] | None:
    """The entry of another process with its shared words mapped read-only, if it lives and shares any.

    The last is a descriptor of its lock file: as long as lock_holder() of that is `pid`, it is this very process.
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
    """The shared words in a mapped lock file; each is read and written in one step."""
    return memoryview(memory)[TEXT_MAX:].cast("Q")
