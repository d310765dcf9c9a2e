# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The subjects of the measurements: the messaging types and their variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgd._registry import MESSAGING_MODULES
from msgd.config import Config
from msgd.config.values import ConfigValues


class Subject(NamedTuple):
    """A messaging type, with the parameters that make it a variant."""

    name: str
    messaging_type: str
    description: str
    overrides: ConfigValues = {}  # noqa: RUF012 (nobody changes it)

    def config(self, base: Config, directory: Path) -> Config:
        """Return `base` with this subject's parameters, and with everything that processes share below `directory`."""
        places: ConfigValues = {
            "messaging_type": self.messaging_type,
            "lock_directory": str(directory / "lock"),
            "private_dir": str(directory / "private"),
            "pid_directory": str(directory / "pid"),
            "socket_directory": str(directory / "lock" / "msg.sock"),
        }
        return base.replace(**(places | self.overrides))


SUBJECTS = (
    Subject("tdb", "tdb", "mmap and mutexes"),
    Subject("tdb-nommap", "tdb", "use mmap = no", {"use_mmap": False}),
    Subject("tdb-fcntl", "tdb", "msgd:tdb mutexes = no", {"tdb_mutexes": False}),
    Subject("dgram", "dgram", "AF_UNIX datagrams"),
    Subject("stream", "stream", "AF_UNIX streams"),
)
"""Every subject, in the order of the tables.  The first of each messaging type has the default parameters."""

PLAIN = ("tdb", "dgram", "stream")
"""The subjects with the default parameters."""


def compiled_in() -> tuple[str, ...]:
    """The names of the subjects whose messaging type is compiled in."""
    types = {module.name for module in MESSAGING_MODULES}
    return tuple(subject.name for subject in SUBJECTS if subject.messaging_type in types)


def choose(names: Sequence[str]) -> list[Subject]:
    """Return the subjects with these names.

    Raises ValueError, which lists the available ones, if a name is unknown or not compiled in.
    """
    by_name = {subject.name: subject for subject in SUBJECTS}
    available = compiled_in()
    for name in names:
        if name not in available:
            problem = "not compiled in" if name in by_name else "unknown"
            raise ValueError(f"messaging type {name!r} is {problem}; available: {', '.join(available)}")
    return [by_name[name] for name in dict.fromkeys(names)]
