# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Opening messages.tdb: its name, its modes, and what is done with a file that is no tdb file."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time

import tdb

from msgd import events
from msgd.backends.tdb.libtdb import MUTEX_LOCKING, tdb_errors
from msgd.config import Config
from msgd.errors import BackendUnavailable, TransportError, UnsafeDirectory
from msgd.presence import Presence, RendezvousDirectory
from msgd.presence.private_lock import MESSAGES_FILE, PrivateLock

Inode = tuple[int, int]
"""Device and inode of a file: no other has them as long as this one is open."""
NO_FILE = ((0, 0), 0)

logger = logging.getLogger("msgd")

FILE_NAME = "messages.tdb"
DAMAGED = ".damaged."
"""What is put behind the name of a file that is set aside, with a number."""
_MAGIC = b"TDB file\n"
_MUTEX_CHAINS = 89
"""Number of hash chains of a file with mutexes: the largest number whose mutexes fit into the file's first page.

libtdb writes the first page when it makes the file.  A second page would be a hole, and a full disk would then be a
SIGBUS.  The number differs from that of a file without mutexes (131), so that the two kinds can be told apart.
"""


def read_messages_file(config: Config, directory: RendezvousDirectory) -> dict[bytes, bytes]:
    """All records, for a process that only looks at the file; empty if there is no file.

    Raises BackendUnavailable, TransportError.
    """
    try:
        database = open_file(config, directory, 0)
    except BackendUnavailable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.EIO):
            return {}  # EIO: libtdb has just emptied it, as no process has it open
        raise
    try:
        with tdb_errors():
            database.lock_all()
            try:
                return {key: database.get(key) or b"" for key in list(database.keys())}
            finally:
                database.unlock_all()
    finally:
        database.close()


def open_file(config: Config, directory: Presence | RendezvousDirectory, open_flags: int) -> tdb.Tdb:
    """Open the file in the configured mode.  Raises BackendUnavailable, with the OSError, if any, as its cause."""
    flags, chains = tdb.CLEAR_IF_FIRST, 0
    if not config.use_mmap:
        flags |= tdb.NOMMAP
    elif config.tdb_mutexes:
        flags, chains = flags | MUTEX_LOCKING, _MUTEX_CHAINS
    path = os.path.join(config.lock_directory, FILE_NAME)
    others = "living processes use it with another `msgd:tdb mutexes` or `use mmap`: give all of them the same"
    try:
        database = tdb.Tdb(
            f"/proc/self/fd/{directory.directory_fd}/{FILE_NAME}",
            chains,
            flags,
            os.O_RDWR | os.O_NOFOLLOW | open_flags,
            0o600,
        )
    except PermissionError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}; is its file system full? Perhaps {others}") from error
    if chains and database.hash_size != chains:  # libtdb silently falls back to fcntl locks if it finds them in use
        database.close()
        raise BackendUnavailable(f"{path}: {others}")
    return database


def set_aside_if_damaged(directory_fd: int, path: str) -> None:
    """Rename a file that is not a tdb file, so that processes can start.

    Under a lock: of two processes that start, the second must not set aside the file that the first has just made.
    """
    with PrivateLock(directory_fd, os.path.dirname(path)).held(MESSAGES_FILE):
        _rename_if_damaged(directory_fd, path)


def _rename_if_damaged(directory_fd: int, path: str) -> None:
    try:
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafeDirectory(f"{path}: {error.strerror}; it must be a tdb file, remove it") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{path} is not a regular file; remove it")
        start = os.pread(fd, len(_MAGIC), 0)
    finally:
        os.close(fd)
    if start and start != _MAGIC:
        aside = _rename(directory_fd)
        logger.error(
            "%s is not a tdb file; it has been set aside as %s, and a new one is made", path, aside,
            extra=events.fields(events.FILE_DAMAGED, FILE=path),
        )  # fmt: skip


def set_aside(directory_fd: int, path: str, inode: Inode) -> None:
    """Rename the file, which living processes use, because it is damaged; do nothing if it has another inode by now.

    Raises TransportError, UnsafeDirectory.
    """
    with PrivateLock(directory_fd, os.path.dirname(path)).held(MESSAGES_FILE):
        try:
            if identity_of(directory_fd)[0] == inode:
                aside = _rename(directory_fd)
                logger.error(
                    "%s was damaged while processes used it; it has been set aside as %s, and a new one is made. What"
                    " waited in it is lost", path, aside, extra=events.fields(events.FILE_DAMAGED, FILE=path),
                )  # fmt: skip
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror}") from error


def identity_of(directory_fd: int) -> tuple[Inode, int]:
    """The file that has the name now, and its size; NO_FILE if there is none.  Raises OSError."""
    try:
        status = os.stat(FILE_NAME, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return NO_FILE
    return (status.st_dev, status.st_ino), status.st_size


def _rename(directory_fd: int) -> str:
    aside = f"{FILE_NAME}{DAMAGED}{time.time_ns()}"
    os.rename(FILE_NAME, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    return aside
