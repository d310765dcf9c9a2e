# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The tables of what can be compiled in and what that needs. To add a transport, add one row to MODULES."""

from __future__ import annotations

from typing import NamedTuple


class Requirement(NamedTuple):
    """A Python module, and the Debian package that provides it."""

    module: str
    package: str


class Module(NamedTuple):
    """A messaging module that can be compiled in."""

    name: str
    import_path: str
    description: str
    requirements: tuple[Requirement, ...] = ()


class SuitePackage(NamedTuple):
    """A Debian package that the test suite uses: one program of it, and the tests that are skipped without it."""

    package: str
    program: str
    tests: str


TDB = Requirement("tdb", "python3-tdb")

MODULES: tuple[Module, ...] = (
    Module("dgram", "msgd.backends.dgram", "AF_UNIX datagrams, as Samba 4.2 and later"),
    Module("tdb", "msgd.backends.tdb", "records in messages.tdb and SIGUSR1, as Samba 3.0", (TDB,)),
    Module("stream", "msgd.backends.stream", "AF_UNIX stream connections, kept in a cache"),
)
"""All messaging modules, the preferred one first."""

SYSTEMD = Requirement("systemd.daemon", "python3-systemd")
RUN_TIME = (Requirement("iniconfig", "python3-iniconfig"), Requirement("daemon", "python3-daemon"))
"""What msgd cannot run without."""
DEBIAN = (TDB, *RUN_TIME, SYSTEMD)
"""What --bootstrap installs for the distribution's interpreter. An interpreter that has the first is preferred."""
PIP = Requirement("ensurepip", "python3-venv")
"""What --bootstrap=check also installs: the linters and the test runner come from PyPI."""

TEST_PACKAGES = (
    SuitePackage("samba", "smbd", "tests/interop"),
    SuitePackage("samba-common-bin", "testparm", "tests/interop"),
    SuitePackage("smbclient", "smbclient", "tests/interop"),
    SuitePackage("winbind", "winbindd", "tests/interop"),
    SuitePackage("tdb-tools", "tdbtool", "tests/interop"),
    SuitePackage("ctdb", "ctdbd", "tests/cluster"),
    SuitePackage("iproute2", "ip", "tests/cluster"),
    SuitePackage("dbus", "dbus-daemon", "the tests against D-Bus"),
    SuitePackage("redis-server", "redis-server", "msgbench beside Redis"),
    SuitePackage("nats-server", "nats-server", "msgbench beside NATS"),
    SuitePackage("socat", "socat", "the tests with socat as the peer"),
    SuitePackage("groff-base", "groff", "the tests of the manual pages"),
    SuitePackage("systemd", "systemd-analyze", "the tests of systemd's units"),
    SuitePackage("systemd-container", "systemd-nspawn", "the tests in a systemd container"),
    SuitePackage("dpkg-dev", "dpkg-buildpackage", "tests/packages"),
    SuitePackage("debhelper", "dh", "tests/packages"),
    SuitePackage("python3-dev", "python3-config", "tests/native, tests/packages"),
    SuitePackage("dh-python", "dh_python3", "tests/packages"),
    SuitePackage("lintian", "lintian", "tests/packages"),
    SuitePackage("rpm", "rpmbuild", "tests/packages"),
    SuitePackage("rpmlint", "rpmlint", "tests/packages"),
    SuitePackage("debootstrap", "debootstrap", ".ci/debian-13"),
)
"""The Debian packages whose programs the test suite runs. --bootstrap=check installs them."""


def modules_to_probe() -> tuple[str, ...]:
    """Every Python module that some choice of options depends on."""
    requirements = [*DEBIAN, *(requirement for module in MODULES for requirement in module.requirements)]
    return tuple(dict.fromkeys(requirement.module for requirement in requirements))
