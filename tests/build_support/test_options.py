# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The command line of configure.py: how directories follow from one another, and what is refused."""

from __future__ import annotations

import pytest

from build_support.options import LONGEST_SOCKET_NAME, SOCKET_PATH_LIMIT, parse, parse_line
from build_support.report import ConfigureError


def test_developer() -> None:
    assert not parse([]).developer
    asked = parse(["--enable-developer"])
    assert asked.developer
    assert asked.line == "./configure.py --enable-developer"
    assert parse_line(asked.line) == asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [],
            {
                "bindir": "/usr/local/bin",
                "sbindir": "/usr/local/sbin",
                "configdir": "/usr/local/etc/msgd",
                "lockdir": "/usr/local/var/run/msgd",
                "privatedir": "/usr/local/var/lib/msgd/private",
                "piddir": "/usr/local/var/run/msgd",
                "logdir": "/usr/local/var/log/msgd",
            },
        ),
        (
            ["--prefix=/usr"],
            {
                "bindir": "/usr/bin",
                "configdir": "/etc/msgd",
                "lockdir": "/run/msgd",
                "privatedir": "/var/lib/msgd/private",
                "piddir": "/run/msgd",
                "logdir": "/var/log/msgd",
            },
        ),
        (
            ["--prefix=/opt/m", "--sysconfdir", "/etc", "--localstatedir=/srv"],
            {"prefix": "/opt/m", "configdir": "/etc/msgd", "lockdir": "/srv/run/msgd", "logdir": "/srv/log/msgd"},
        ),
        (
            ["--exec-prefix=/opt/x", "--with-lockdir=/run/m/", "--with-configdir=/etc//samba"],
            {"bindir": "/opt/x/bin", "lockdir": "/run/m", "piddir": "/run/m", "configdir": "/etc/samba"},
        ),
        (
            ["--prefix=/opt/m", "--mandir=${prefix}/man", "--docdir=${prefix}//doc", "--runstatedir=/run"],
            {"mandir": "/opt/m/man", "docdir": "/opt/m/doc", "pythondir": "/opt/m/lib/msgd", "lockdir": "/run/msgd"},
        ),
    ],
    ids=["defaults", "usr", "state", "particular", "variables"],
)
def test_directories_follow_from_one_another(arguments: list[str], expected: dict[str, str]) -> None:
    directories = parse(arguments).directories
    assert {name: directories[name] for name in expected} == expected


def test_the_configure_line_repeats_the_options() -> None:
    options = parse(["--with-messaging", "dgram", "--quiet", "--without-systemd", "--bootstrap", "--prefix", "/a b"])
    assert options.line == "./configure.py '--prefix=/a b' --with-messaging=dgram --without-systemd"
    assert parse_line(options.line).directories == options.directories
    assert parse_line(options.line, "--prefix=/c").line.startswith("./configure.py --prefix=/c ")


DEBHELPER = (
    "--build=x86_64-linux-gnu --prefix=/usr --includedir=${prefix}/include --mandir=${prefix}/share/man"
    " --infodir=${prefix}/share/info --sysconfdir=/etc --localstatedir=/var --disable-option-checking"
    " --disable-silent-rules --libdir=${prefix}/lib/x86_64-linux-gnu --runstatedir=/run --disable-maintainer-mode"
    " --disable-dependency-tracking"
)


def test_the_options_of_packaging_tools_are_taken() -> None:
    options = parse(DEBHELPER.split())
    assert options.directories == parse(["--prefix=/usr"]).directories
    assert "ignored" not in options.line
    assert "--build" not in options.line
    assert "--host=" not in parse(["--host=arm-linux-gnueabihf"]).line


def test_the_length_of_the_lock_directory_is_limited_by_the_sockets_in_it() -> None:
    longest = "/" + "a" * (SOCKET_PATH_LIMIT - len(LONGEST_SOCKET_NAME) - 2)
    assert parse([f"--with-lockdir={longest}"]).directories["lockdir"] == longest
    with pytest.raises(ConfigureError, match=r"108 bytes.*allows 107"):
        parse([f"--with-lockdir={longest}a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--pref=/usr"], "unrecognized arguments"),
        (["stray"], "unrecognized arguments: stray"),
        (["--prefix"], "--prefix: expected one argument"),
        (["--prefix="], "--prefix: the directory must be absolute"),
        (["--with-lockdir=run/msgd"], "--with-lockdir: the directory must be absolute"),
        (["--with-logdir=/var/\nlog"], "--with-logdir: the directory has unprintable characters"),
        (["--bindir=${nowhere}/bin"], r"--bindir: \$\{nowhere\} is not one of \$\{prefix\}"),
        (["--bootstrap=all"], "--bootstrap: invalid choice"),
        (["--with-systemd", "--without-systemd"], "not allowed with"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigureError, match=message):
        parse(arguments)
