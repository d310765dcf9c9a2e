"""systemd's files: the templates in systemd/, filled in with what was configured.

In a template `@NAME@` is the directory of that name. A line that begins with `@if-systemd ` or `@if-no-systemd ` is
there only if msgd talks to systemd, or only if it does not. Lines that the directories make the same are there once.
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
    "msgd.socket": "{unitdir}/msgd.socket",
    "sysusers.conf": "{prefix}/lib/sysusers.d/msgd.conf",
    "tmpfiles.conf": "{prefix}/lib/tmpfiles.d/msgd.conf",
    "sysctl.conf": "{prefix}/lib/sysctl.d/60-msgd.conf",
}
"""Where each goes; the template is the same name with .in."""

ONLY_WITH_SYSTEMD = frozenset({"msgd.socket"})
"""What is of no use to a msgd that does not talk to systemd: it could not take the socket over."""

_CONDITION = re.compile(r"^@if-(no-)?systemd ")
_DIRECTORY = re.compile(r"@([a-z]+)@")
_UNQUOTABLE = re.compile(r'["\\]')


class Unit(NamedTuple):
    """A file for systemd."""

    name: str
    path: str
    text: str


def units(root: Path, directories: Mapping[str, str], *, with_systemd: bool) -> Iterator[Unit]:
    """The files of the tree at `root`, filled in; ConfigureError if a directory cannot stand in them."""
    for name, path in INSTALLED_AS.items():
        if name in ONLY_WITH_SYSTEMD and not with_systemd:
            continue
        template = (root / TEMPLATES / f"{name}.in").read_text()
        yield Unit(name, path.format_map(directories), fill_in(template, directories, with_systemd=with_systemd))


def fill_in(template: str, directories: Mapping[str, str], *, with_systemd: bool) -> str:
    """The text that a template makes."""

    def value(match: re.Match[str]) -> str:
        directory = directories[match[1]]
        if _UNQUOTABLE.search(directory):
            raise ConfigureError(f"{directory!r} cannot stand in a systemd unit: it holds a quote or a backslash")
        return directory.replace("%", "%%")

    lines: list[str] = []
    for line in template.splitlines(keepends=True):
        condition = _CONDITION.match(line)
        if condition is None or (condition[1] is None) == with_systemd:
            text = _CONDITION.sub("", line)
            filled_in = _DIRECTORY.sub(value, text)
            if filled_in == text or filled_in not in lines:
                lines.append(filled_in)
    return "".join(lines)
