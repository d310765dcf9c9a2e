"""configure's command line: the options, the directories that follow from them, and the line that says them again."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from build_support.report import ConfigureError

SOCKET_PATH_LIMIT = 107
"""The bytes of an AF_UNIX path: sizeof(sun_path) less the NUL."""
LONGEST_SOCKET_NAME = f"msg.sock/{2**22}"
"""What stands below the lock directory for a process with the largest pid Linux gives out."""


class DirectoryOption(NamedTuple):
    """A directory the user may set. `system` is its default instead when the prefix is /usr."""

    name: str
    flag: str
    help: str
    default: str
    system: str = ""


INSTALLATION_DIRECTORIES = (
    DirectoryOption("prefix", "--prefix", "install below here", "/usr/local"),
    DirectoryOption("exec_prefix", "--exec-prefix", "install programs below here", "{prefix}"),
    DirectoryOption("bindir", "--bindir", "users' programs", "{exec_prefix}/bin"),
    DirectoryOption("sbindir", "--sbindir", "the daemon", "{exec_prefix}/sbin"),
    DirectoryOption("sysconfdir", "--sysconfdir", "configuration of this machine", "{prefix}/etc", "/etc"),
    DirectoryOption("mandir", "--mandir", "manual pages", "{prefix}/share/man"),
    DirectoryOption("unitdir", "--with-unitdir", "systemd's units", "{prefix}/lib/systemd/system"),
    DirectoryOption("localstatedir", "--localstatedir", "changing data", "{prefix}/var", "/var"),
)
RUN_TIME_DIRECTORIES = (
    DirectoryOption("configdir", "--with-configdir", "smb.conf", "{sysconfdir}/msgd"),
    DirectoryOption("lockdir", "--with-lockdir", "lock files and sockets", "{localstatedir}/run/msgd", "/run/msgd"),
    DirectoryOption("privatedir", "--with-privatedir", "root's own files", "{localstatedir}/lib/msgd/private"),
    DirectoryOption("piddir", "--with-piddir", "pid files", "{lockdir}"),
    DirectoryOption("logdir", "--with-logdir", "log files", "{localstatedir}/log/msgd"),
)
DIRECTORIES = (*INSTALLATION_DIRECTORIES, *RUN_TIME_DIRECTORIES)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigureError(f"{message} (./configure.py --help lists the options)")


@dataclass(frozen=True)
class Options:
    """What the user asked for. None is what was left to the defaults."""

    directories: dict[str, str]
    """Each directory in force, by its name in DIRECTORIES."""
    messaging: tuple[str, ...] | None
    systemd: bool | None
    python: str | None
    bootstrap: str | None
    quiet: bool
    line: str
    """The configure line: the options that were given and describe the result, always written the same way."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="configure.py",
        usage="./configure.py [OPTION]...",
        description="Configure msgd: probe this machine and write the registry of what is compiled in.",
        epilog="Directories must be absolute. Then: make, make check, make install.",
        add_help=False,
        allow_abbrev=False,
    )
    general = parser.add_argument_group("General")
    general.add_argument("--help", "-h", action="help", help="show this help and exit")
    general.add_argument("--quiet", "-q", action="store_true", help="do not print the results of the checks")
    general.add_argument(
        "--bootstrap",
        nargs="?",
        const="tree",
        choices=("tree", "check"),
        help="first make build/venv and install what is missing; =check: with what the test-suite uses",
    )
    for title, rows in (
        ("Installation directories", INSTALLATION_DIRECTORIES),
        ("Run-time directories", RUN_TIME_DIRECTORIES),
    ):
        group = parser.add_argument_group(title)
        for row in rows:
            default = row.default.format_map({other.name: other.name.upper() for other in DIRECTORIES})
            text = f"{row.help} [{default}{f'; {row.system} if the prefix is /usr' if row.system else ''}]"
            group.add_argument(row.flag, dest=row.name, metavar="DIR", help=text)
    features = parser.add_argument_group("Features")
    features.add_argument(
        "--with-messaging",
        dest="messaging",
        metavar="LIST",
        help="messaging modules to compile in, separated by commas; the first is the run-time default [what is found]",
    )
    systemd = features.add_mutually_exclusive_group()
    systemd.add_argument(
        "--with-systemd", dest="systemd", action="store_true", default=None, help="talk to systemd [if found]"
    )
    systemd.add_argument("--without-systemd", dest="systemd", action="store_false", default=None)
    features.add_argument(
        "--with-python", dest="python", metavar="PATH", help="the interpreter to run msgd with [searched for]"
    )
    return parser


def parse(arguments: Sequence[str]) -> Options:
    """Options of a command line; ConfigureError for an unknown option or a value that cannot be."""
    given = vars(_parser().parse_args(arguments))
    chosen = {row.name: _directory(row.flag, given[row.name]) for row in DIRECTORIES if given[row.name] is not None}
    messaging = None if given["messaging"] is None else tuple(name.strip() for name in given["messaging"].split(","))
    python = given["python"]
    if python and os.sep in python:
        python = os.path.abspath(python)
    words = [f"{row.flag}={chosen[row.name]}" for row in DIRECTORIES if row.name in chosen]
    if messaging is not None:
        words.append(f"--with-messaging={','.join(messaging)}")
    if given["systemd"] is not None:
        words.append("--with-systemd" if given["systemd"] else "--without-systemd")
    if python is not None:
        words.append(f"--with-python={python}")
    return Options(
        directories=_derive(chosen),
        messaging=messaging,
        systemd=given["systemd"],
        python=python,
        bootstrap=given["bootstrap"],
        quiet=given["quiet"],
        line=shlex.join(["./configure.py", *words]),
    )


def parse_line(line: str, *more: str) -> Options:
    """Options of a configure line, `more` of them said after it."""
    return parse([*shlex.split(line)[1:], *more])


def _normal(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _directory(flag: str, value: str) -> str:
    if not value.startswith("/"):
        raise ConfigureError(f"{flag}: the directory must be absolute, not {value!r}")
    if not value.isprintable():
        raise ConfigureError(f"{flag}: the directory holds unprintable characters: {value!r}")
    return _normal(value)


def _derive(chosen: dict[str, str]) -> dict[str, str]:
    directories: dict[str, str] = {}
    for row in DIRECTORIES:
        template = row.system if row.system and directories["prefix"] == "/usr" else row.default
        directories[row.name] = chosen.get(row.name) or _normal(template.format_map(directories))
    socket_path = f"{directories['lockdir']}/{LONGEST_SOCKET_NAME}"
    if (length := len(os.fsencode(socket_path))) > SOCKET_PATH_LIMIT:
        raise ConfigureError(
            f"the lock directory is too long: sockets in it, such as {socket_path}, would have names of {length} bytes,"
            f" and AF_UNIX allows {SOCKET_PATH_LIMIT}"
        )
    return directories
