"""Opening the directories in which processes meet.

A process trusts what it finds there (whose lock file is locked, which socket is whose), so nobody but root, this
user and the configured users may be able to put anything there.  Each directory is opened once, checked through the
descriptor, and everything inside is then reached relative to that descriptor, without following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

from msgd.errors import TransportError, UnsafeDirectory

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_directory(path: str, mode: int, trusted_uids: Collection[int]) -> int:
    """Open the directory `path`, made with `mode` (and its parents with 0755) where it is missing.

    Links on the way to it are followed: that path is the administrator's.  Raises UnsafeDirectory, TransportError.
    """
    try:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            os.makedirs(parent, 0o755, exist_ok=True)
        return _open_checked(path, mode, trusted_uids, None, 0, path)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; it must be a directory this user can use") from error


def open_subdirectory(parent_fd: int, parent: str, name: str, mode: int, trusted_uids: Collection[int]) -> int:
    """Open `name` in an opened directory whose path is `parent`, made with `mode` where it is missing.

    A link in its place is refused.  Raises UnsafeDirectory, TransportError.
    """
    path = os.path.join(parent, name)
    try:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            raise UnsafeDirectory(f"{path} is a symbolic link; remove it: a real directory is made in its place")
    except FileNotFoundError:
        pass
    try:
        return _open_checked(name, mode, trusted_uids, parent_fd, os.O_NOFOLLOW, path)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; it must be a directory this user can use") from error


def open_existing(path: str, *, follow_links: bool = True) -> int:
    """Open a directory to look into it, whoever owns it; it is not made, and nothing in it is trusted.

    Raises UnsafeDirectory if others can write there, which no process of msgd's would put up with; TransportError.
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
    made = False
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
        made = True
    except FileExistsError:
        pass
    except PermissionError:
        if not os.path.isdir(path):
            raise
    fd = os.open(name, _OPEN_DIRECTORY | flags, dir_fd=parent_fd)
    try:
        if made:
            os.fchmod(fd, mode)  # mkdir's mode has lost the umask's bits
        status = os.fstat(fd)
        if status.st_uid not in trusted_uids:
            raise UnsafeDirectory(
                f"{path} belongs to uid {status.st_uid}; it must belong to root or to uid {os.geteuid()}"
                " (or name its owner in msgd:trusted users)"
            )
        _check_mode(status, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_mode(status: os.stat_result, path: str) -> None:
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise UnsafeDirectory(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}; others must not be able to write there:"
            f" chmod go-w {path}"
        )
