# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""configure's command line: the options, the directories that follow from them, and the line that repeats them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from build_support.report import ConfigureError

SOCKET_PATH_LIMIT = 107
"""The longest path of an AF_UNIX socket in bytes: sizeof(sun_path) without the NUL."""
LONGEST_SOCKET_NAME = f"msg.sock/{2**22}"
"""The longest name of a socket below the lock directory: that of the process with the largest pid on Linux."""


class DirectoryOption(NamedTuple):
    """A directory that the user may set. If the prefix is /usr, `system` is its default instead."""

    name: str
    flag: str
    help: str
    default: str
    system: str = ""


PRIVATE_PACKAGE = "{prefix}/lib/msgd"
"""Where the package is unless --with-pythondir says otherwise: on no interpreter's path."""

INSTALLATION_DIRECTORIES = (
    DirectoryOption("prefix", "--prefix", "install under this directory", "/usr/local"),
    DirectoryOption("exec_prefix", "--exec-prefix", "install programs under this directory", "{prefix}"),
    DirectoryOption("bindir", "--bindir", "programs for users", "{exec_prefix}/bin"),
    DirectoryOption("sbindir", "--sbindir", "the daemon", "{exec_prefix}/sbin"),
    DirectoryOption("sysconfdir", "--sysconfdir", "configuration", "{prefix}/etc", "/etc"),
    DirectoryOption("mandir", "--mandir", "manual pages", "{prefix}/share/man"),
    DirectoryOption("docdir", "--docdir", "documents", "{prefix}/share/doc/msgd"),
    DirectoryOption("unitdir", "--with-unitdir", "units of systemd", "{prefix}/lib/systemd/system"),
    DirectoryOption("pythondir", "--with-pythondir", "the package; one that python searches", PRIVATE_PACKAGE),
    DirectoryOption("localstatedir", "--localstatedir", "variable data", "{prefix}/var", "/var"),
    DirectoryOption("runstatedir", "--runstatedir", "data of running processes", "{localstatedir}/run", "/run"),
)
RUN_TIME_DIRECTORIES = (
    DirectoryOption("configdir", "--with-configdir", "smb.conf", "{sysconfdir}/msgd"),
    DirectoryOption("lockdir", "--with-lockdir", "lock files and sockets", "{runstatedir}/msgd"),
    DirectoryOption("privatedir", "--with-privatedir", "files for root only", "{localstatedir}/lib/msgd/private"),
    DirectoryOption("piddir", "--with-piddir", "pid files", "{lockdir}"),
    DirectoryOption("logdir", "--with-logdir", "log files", "{localstatedir}/log/msgd"),
)
DIRECTORIES = (*INSTALLATION_DIRECTORIES, *RUN_TIME_DIRECTORIES)

IGNORED_WITH_VALUE = (
    *("--build", "--host", "--target", "--cache-file", "--srcdir", "--program-prefix", "--program-suffix"),
    *("--datarootdir", "--datadir", "--includedir", "--oldincludedir", "--infodir", "--libdir", "--libexecdir"),
    *("--localedir", "--sharedstatedir", "--htmldir", "--dvidir", "--pdfdir", "--psdir"),
)
IGNORED_ALONE = (
    *("--disable-option-checking", "--disable-silent-rules", "--enable-silent-rules", "--disable-maintainer-mode"),
    *("--disable-dependency-tracking", "--enable-dependency-tracking"),
)
"""What debhelper, rpm and other tools pass to every configure script, and which msgd has no use for."""

_VARIABLE = re.compile(r"\$\{([a-z_]+)\}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigureError(f"{message} (./configure.py --help lists the options)")


@dataclass(frozen=True)
class Options:
    """What the user asked for. None means that a choice was left to configure."""

    directories: dict[str, str]
    """Each directory that is in force, by its name in DIRECTORIES."""
    messaging: tuple[str, ...] | None
    systemd: bool | None
    cluster: bool
    compiled: str
    """Whether to compile the hot path: auto, yes or no."""
    developer: bool
    """Whether processes obey the messages that make them fail or sleep."""
    python: str | None
    bootstrap: str | None
    quiet: bool
    line: str
    """The configure line: the options that determine the result, always written in the same way."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="configure.py",
        usage="./configure.py [OPTION]...",
        description="Configure msgd: probe this machine, and write the registry of what is compiled in.",
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
        help="first make build/venv and install what is missing; =check: also the linters and what the tests use",
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
        help="messaging modules to compile in, separated by commas; the first is the run-time default [all possible]",
    )
    systemd = features.add_mutually_exclusive_group()
    systemd.add_argument(
        "--with-systemd", dest="systemd", action="store_true", default=None, help="talk to systemd [if found]"
    )
    systemd.add_argument("--without-systemd", dest="systemd", action="store_false", default=None)
    cluster = features.add_mutually_exclusive_group()
    cluster.add_argument(
        "--with-cluster",
        dest="cluster",
        action="store_true",
        default=True,
        help="let smb.conf say clustering = yes; needs nothing here [yes]",
    )
    cluster.add_argument("--without-cluster", dest="cluster", action="store_false")
    features.add_argument(
        "--enable-compiled",
        dest="compiled",
        choices=("auto", "yes", "no"),
        default="auto",
        help="compile the hot path; nothing needs it [auto: if there are a C compiler and Python.h]",
    )
    features.add_argument(
        "--enable-developer",
        dest="developer",
        action="store_true",
        help="obey and send the messages that make a process fail or sleep; for tests only",
    )
    features.add_argument(
        "--with-python", dest="python", metavar="PATH", help="the interpreter to run msgd with [the best that is found]"
    )
    ignored = parser.add_argument_group("Taken and ignored, as packaging tools pass them")
    ignored.add_argument(*IGNORED_WITH_VALUE, metavar="VALUE", help=argparse.SUPPRESS)
    ignored.add_argument(*IGNORED_ALONE, action="store_true", help=argparse.SUPPRESS)
    return parser


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line; ConfigureError for an unknown option or a value that is not valid."""
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
    if not given["cluster"]:
        words.append("--without-cluster")
    if given["compiled"] != "auto":
        words.append(f"--enable-compiled={given['compiled']}")
    if given["developer"]:
        words.append("--enable-developer")
    if python is not None:
        words.append(f"--with-python={python}")
    return Options(
        directories=_derive(chosen),
        messaging=messaging,
        systemd=given["systemd"],
        cluster=given["cluster"],
        compiled=given["compiled"],
        developer=given["developer"],
        python=python,
        bootstrap=given["bootstrap"],
        quiet=given["quiet"],
        line=shlex.join(["./configure.py", *words]),
    )


def parse_line(line: str, *more: str) -> Options:
    """The options of a configure line, followed by `more`."""
    return parse([*shlex.split(line)[1:], *more])


def _normal(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _directory(flag: str, value: str) -> str:
    if not value.startswith(("/", "${")):
        raise ConfigureError(f"{flag}: the directory must be absolute, not {value!r}")
    if not value.isprintable():
        raise ConfigureError(f"{flag}: the directory has unprintable characters: {value!r}")
    return _normal(value) if value.startswith("/") else value


def _derive(chosen: dict[str, str]) -> dict[str, str]:
    """All directories: those that were chosen, and the defaults of the others, which follow from them."""
    directories: dict[str, str] = {}
    for row in DIRECTORIES:
        template = row.system if row.system and directories["prefix"] == "/usr" else row.default
        given = chosen.get(row.name) or template.format_map(directories)
        directories[row.name] = _normal(_expand(row.flag, given, directories))
    socket_path = f"{directories['lockdir']}/{LONGEST_SOCKET_NAME}"
    if (length := len(os.fsencode(socket_path))) > SOCKET_PATH_LIMIT:
        raise ConfigureError(
            f"the lock directory is too long: the path of a socket in it, such as {socket_path}, would have {length}"
            f" bytes, and AF_UNIX allows {SOCKET_PATH_LIMIT}"
        )
    return directories


def _expand(flag: str, value: str, directories: Mapping[str, str]) -> str:
    """The directory, with `${prefix}` and other directories before it in the table filled in."""

    def directory(match: re.Match[str]) -> str:
        if match[1] not in directories:
            raise ConfigureError(
                f"{flag}: {match[0]} is not one of {', '.join(f'${{{name}}}' for name in directories)}"
            )
        return directories[match[1]]

    return _VARIABLE.sub(directory, value)
