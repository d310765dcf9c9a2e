# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Where the processes of a service meet to publish: the directory, and the messaging type.

Rule 1.  A directory that is named counts: the argument, then MSGD_DIRECTORY.
Rule 2.  Otherwise it is one of the user's own, in the first of these: XDG_RUNTIME_DIR, /run/user/UID, /tmp/msgd-UID.
The first two count only if they belong to the user and nobody else can write there: a service that has changed its user
still has the variable of the other.  In /tmp anybody can make a directory of that name first, so one that is a link,
or that another user owns or can write to, is refused.
Rule 3.  TMPDIR does not count: it may differ between the processes that are to meet.
"""

from __future__ import annotations

import os
import re
import stat

from msgd._registry import MESSAGING_MODULES
from msgd.config import Config
from msgd.errors import TransportError
from msgd.presence.open_directory import open_subdirectory

DEFAULT_NAME = "default"

_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", re.ASCII)
_PREFERRED = ("dgram", "stream")
"""A background dispatcher works with these; what is left is tdb, which needs the main thread."""


def place(directory: str | os.PathLike[str] | Config | None, name: str | None) -> Config:
    """The configuration of the directory that these arguments name.

    Raises ValueError for a name that cannot be one, UnsafeDirectory, TransportError.
    """
    if isinstance(directory, Config):
        return directory
    if directory is None:
        directory = os.environ.get("MSGD_DIRECTORY") or private_directory(DEFAULT_NAME if name is None else name)
    path = os.path.abspath(os.fspath(directory))
    compiled = [module.name for module in MESSAGING_MODULES]
    preferred = [one for one in _PREFERRED if one in compiled]
    return Config(lock_directory=path, messaging_type=(preferred or compiled)[0])


def private_directory(name: str) -> str:
    """A directory for processes of this user alone (Rule 2); it need not exist yet, but for the one in /tmp."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a directory: it takes up to 32 letters, digits, `_`, `-` and `.`")
    uid = os.geteuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if os.path.isabs(base) and _is_own(base, uid):
            return os.path.join(base, "msgd", name)
    base = f"msgd-{uid}"
    try:
        shared = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(f"/tmp: {error.strerror}; name a directory in MSGD_DIRECTORY") from error
    try:
        os.close(open_subdirectory(shared, "/tmp", base, 0o700, frozenset((0, uid))))
    finally:
        os.close(shared)
    return os.path.join("/tmp", base, name)


def _is_own(path: str, uid: int) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
