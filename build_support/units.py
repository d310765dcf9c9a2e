# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The files for systemd: the templates in systemd/, filled in with the configured directories.

Rule 1. `@NAME@` in a template stands for the directory of that name.
Rule 2. A line that begins with `@if-systemd ` is kept only if msgd talks to systemd, and one that begins with
        `@if-no-systemd ` only if it does not.
Rule 3. A template can make two units: `@if-single ` is kept in the one for the machine's own directory, and
        `@if-instance ` in the one for any number of others (`@.service`).  A line can have several conditions.
Rule 4. Lines that become equal because two directories are the same are kept once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from build_support.report import ConfigureError

TEMPLATES = Path("systemd")

INSTALLED_AS: Mapping[str, str] = {
    "msgd.service": "{unitdir}/msgd.service",
    "msgd@.service": "{unitdir}/msgd@.service",
    "msgd.socket": "{unitdir}/msgd.socket",
    "sysusers.conf": "{prefix}/lib/sysusers.d/msgd.conf",
    "tmpfiles.conf": "{prefix}/lib/tmpfiles.d/msgd.conf",
    "sysctl.conf": "{prefix}/lib/sysctl.d/60-msgd.conf",
}
"""The path of each installed file. Its template has the same name, without an `@`, and .in."""

ONLY_WITH_SYSTEMD = frozenset({"msgd.socket"})
"""The files that need a msgd that talks to systemd. Another msgd could not take over the socket."""

_CONDITION = re.compile(r"^@if-([a-z-]+) ")
_DIRECTORY = re.compile(r"@([a-z]+)@")
_UNQUOTABLE = re.compile(r'["\\]')


class Unit(NamedTuple):
    """A file for systemd."""

    name: str
    path: str
    text: str


def units(root: Path, directories: Mapping[str, str], *, with_systemd: bool) -> Iterator[Unit]:
    """Yield the filled-in files of the tree at `root`; ConfigureError if a directory cannot be written in one."""
    for name, path in INSTALLED_AS.items():
        if name in ONLY_WITH_SYSTEMD and not with_systemd:
            continue
        template = (root / TEMPLATES / f"{name.replace('@', '')}.in").read_text()
        text = fill_in(template, directories, with_systemd=with_systemd, instance="@" in name)
        yield Unit(name, path.format_map(directories), text)


def fill_in(template: str, directories: Mapping[str, str], *, with_systemd: bool, instance: bool = False) -> str:
    """Return the text of a template with everything filled in."""
    met = {"systemd": with_systemd, "no-systemd": not with_systemd, "instance": instance, "single": not instance}

    def value(match: re.Match[str]) -> str:
        directory = directories[match[1]]
        if _UNQUOTABLE.search(directory):
            raise ConfigureError(f"{directory!r} cannot be written in a unit of systemd: it has a quote or a backslash")
        return directory.replace("%", "%%")

    lines: list[str] = []
    for line in template.splitlines(keepends=True):
        is_kept, text = True, line
        while condition := _CONDITION.match(text):
            is_kept = is_kept and met[condition[1]]
            text = text[condition.end() :]
        if is_kept:
            filled_in = _DIRECTORY.sub(value, text)
            if filled_in == text or filled_in not in lines:
                lines.append(filled_in)
    return "".join(lines)
