# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Paths of AF_UNIX sockets: checking their length, and removing a socket."""

from __future__ import annotations

import os
import stat

from msgd.errors import ConfigError

SUN_PATH_MAX = 107
"""The most bytes of a path in an AF_UNIX address, not counting the NUL (unix(7))."""
_PID_DIGITS = 7
"""Digits of the largest pid: Linux's pid_max is at most 4194304 (proc(5))."""


def check_socket_directory(socket_directory: str) -> None:
    """Raise ConfigError if the path of a socket in the directory can be too long for an AF_UNIX address."""
    length = len(os.fsencode(socket_directory)) + 1 + _PID_DIGITS
    if length > SUN_PATH_MAX:
        raise ConfigError(
            f"msgd:socket directory = {socket_directory}: with /PID its sockets' paths have {length} bytes,"
            f" AF_UNIX takes at most {SUN_PATH_MAX}; choose a shorter directory"
        )


def check_socket_path(parameter: str, path: str) -> None:
    """Raise ConfigError if `path`, the value of `parameter`, is too long for an AF_UNIX address."""
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise ConfigError(f"{parameter} = {path}: AF_UNIX takes at most {SUN_PATH_MAX} bytes")


def remove_socket(directory_fd: int, name: str) -> bool:
    """Unlink `name` if it is a socket; anything else is not ours to remove.  Returns whether it was.

    Raises OSError.
    """
    try:
        if not stat.S_ISSOCK(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
            return False
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    return True
