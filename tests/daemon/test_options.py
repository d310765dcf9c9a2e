# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd's command line, and its complaints."""

from __future__ import annotations

import pytest

from msgd import _registry, native
from tests.support.daemons import Place, one_line


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(place: Place, option: str) -> None:
    done = place.run("msgd.daemon", option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Version {_registry.VERSION}\n", "")


@pytest.mark.parametrize("option", ["-b", "--build-options"])
def test_build_options(place: Place, option: str) -> None:
    done = place.run("msgd.daemon", option)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Configured with: {_registry.CONFIGURE_LINE}\n" in done.stdout
    assert f"   LOCKDIR: {_registry.LOCKDIR}\n" in done.stdout
    assert f"   compiled hot path: {native.describe()}\n" in done.stdout
    for module in _registry.MESSAGING_MODULES:
        assert f"   {module.name}: {module.description}\n" in done.stdout


def test_help_teaches(place: Place) -> None:
    done = place.run("msgd.daemon", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("-F", "-D", "-i", "-b", "-s", "-d", "-l", "-V", "examples:", "SIGHUP", "Exit status"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-x"], "unrecognized arguments: -x"),
        (["-d", "loud"], "'loud': not a log level"),
        (["-d", "11"], "'11': not from 0 to 10"),
        (["-s"], "expected one argument"),
        (["start"], "unrecognized arguments: start"),
    ],
)
def test_wrong_usage(place: Place, options: list[str], complaint: str) -> None:
    failed = place.run("msgd.daemon", *options)
    assert failed.returncode == 2
    line = one_line(failed)
    assert line.startswith("msgd: ")
    assert complaint in line
    assert line.endswith("(see msgd --help)")


@pytest.mark.parametrize("how", ["-D", "-F", "-i"])
def test_missing_configuration(place: Place, how: str) -> None:
    place.smb_conf.unlink()
    failed = place.run_msgd(how)
    assert failed.returncode == 1
    assert one_line(failed).startswith(f"msgd: {place.smb_conf}: ")


@pytest.mark.parametrize("how", ["-D", "-F", "-i"])
def test_every_fault_of_a_configuration_is_a_line(place: Place, how: str) -> None:
    place.configure("messaging type = pigeon", "msgd:max message size = big")
    failed = place.run_msgd(how)
    assert (failed.returncode, failed.stdout) == (1, "")
    first, second = failed.stderr.splitlines()
    assert first.startswith(f"msgd: {place.smb_conf}:5: messaging type = pigeon: ")
    assert ", ".join(module.name for module in _registry.MESSAGING_MODULES) in first
    assert second.startswith(f"msgd: {place.smb_conf}:6: msgd:max message size")
