# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Opening the directories in which processes meet.

A process trusts what it finds in these directories: which lock file is locked, which socket belongs to which pid.

Rule 1. Only root, this user and the configured users may be able to create anything in them.  A directory that others
    can write to is refused, and so, for a member, is one with another owner.
Rule 2. Each directory is opened once and checked through its descriptor.  Everything inside is reached relative to
    that descriptor, without following links, so the directory that was checked is the directory that is used.
Rule 3. Links on the way to the lock directory are followed, since the administrator chose that path.  A link in the
    place of a subdirectory is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection

from msgd.config import Config
from msgd.errors import TransportError, UnsafeDirectory

LOCK_SUBDIRECTORY = "msg.lock"
"""The directory of the lock files, inside the lock directory (Samba's messages_dgm)."""

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class MemberDirectories:
    """The directories that a member uses, created where they are missing, and open until close().

    `directory_fd` is the lock directory (0755), `lock_dir_fd` that of the lock files (0755), `socket_dir_fd` that of
    the sockets (0700).  Raises UnsafeDirectory, TransportError.
    """

    def __init__(self, config: Config, trusted_uids: Collection[int]) -> None:
        path = config.lock_directory
        with contextlib.ExitStack() as opened:
            self.directory_fd = close_later(opened, open_directory(path, 0o755, trusted_uids))
            self.lock_dir_fd = close_later(
                opened, open_subdirectory(self.directory_fd, path, LOCK_SUBDIRECTORY, 0o755, trusted_uids)
            )
            self.socket_dir_fd = close_later(opened, self._open_socket_directory(config, trusted_uids))
            self._opened = opened.pop_all()

    def _open_socket_directory(self, config: Config, trusted_uids: Collection[int]) -> int:
        parent, name = os.path.split(config.socket_directory)
        if parent == config.lock_directory:
            return open_subdirectory(self.directory_fd, parent, name, 0o700, trusted_uids)
        return open_directory(config.socket_directory, 0o700, trusted_uids)

    def close(self) -> None:
        """Close the directories.  A second call does nothing."""
        self._opened.close()


def close_later(opened: contextlib.ExitStack, fd: int) -> int:
    """Have `opened` close the descriptor.  Returns the descriptor."""
    opened.callback(os.close, fd)
    return fd


def open_directory(path: str, mode: int, trusted_uids: Collection[int]) -> int:
    """Open the directory `path`, creating it with `mode`, and its parents with 0755, where they are missing.

    Follows links on the way (Rule 3).  Raises UnsafeDirectory, TransportError.
    """
    try:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            os.makedirs(parent, 0o755, exist_ok=True)
        return _open_checked(path, mode, trusted_uids, None, 0, path)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; it must be a directory this user can use") from error


def open_subdirectory(parent_fd: int, parent: str, name: str, mode: int, trusted_uids: Collection[int]) -> int:
    """Open `name` in the open directory whose path is `parent`, creating it with `mode` if it is missing.

    Refuses a link (Rule 3).  Raises UnsafeDirectory, TransportError.
    """
    path = os.path.join(parent, name)
    try:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            raise UnsafeDirectory(f"{path} is a symbolic link; remove it: a real directory is created in its place")
    except FileNotFoundError:
        pass
    try:
        return _open_checked(name, mode, trusted_uids, parent_fd, os.O_NOFOLLOW, path)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; it must be a directory this user can use") from error


def open_existing(path: str, *, follow_links: bool = True) -> int:
    """Open a directory for reading, whoever owns it.  It is not created, and its contents are not trusted.

    Raises UnsafeDirectory if others can write to it, since no msgd process would use it then; TransportError.
    """
    try:
        fd = os.open(path, _OPEN_DIRECTORY | (0 if follow_links else os.O_NOFOLLOW))
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}") from error
    try:
        _check_mode(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_checked(
    name: str, mode: int, trusted_uids: Collection[int], parent_fd: int | None, flags: int, path: str
) -> int:
    is_new = _make_directory(name, mode, parent_fd, path)
    fd = os.open(name, _OPEN_DIRECTORY | flags, dir_fd=parent_fd)
    try:
        if is_new:
            os.fchmod(fd, mode)  # the umask has cleared bits of the mode given to mkdir
        status = os.fstat(fd)
        _check_owner(status, trusted_uids, path)
        _check_mode(status, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_directory(name: str, mode: int, parent_fd: int | None, path: str) -> bool:
    """Create the directory.  Returns False if it exists."""
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        return False
    except PermissionError:
        if not os.path.isdir(path):
            raise
        return False
    return True


def _check_owner(status: os.stat_result, trusted_uids: Collection[int], path: str) -> None:
    if status.st_uid not in trusted_uids:
        raise UnsafeDirectory(
            f"{path} belongs to uid {status.st_uid}; it must belong to root or to uid {os.geteuid()}"
            " (or name its owner in msgd:trusted users)"
        )


def _check_mode(status: os.stat_result, path: str) -> None:
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise UnsafeDirectory(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}; others must not be able to write there:"
            f" chmod go-w {path}"
        )
