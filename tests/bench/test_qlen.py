# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""--qlen: the value set for a run is restored, however the run ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from msgd.bench import qlen, torture
from msgd.bench.main import main
from tests.bench.conftest import Msgbench
from tests.support.harness import Child


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the kernel's."""
    path = tmp_path / "max_dgram_qlen"
    path.write_text("10\n")
    monkeypatch.setattr(qlen, "PATH", path)
    return path


def test_value_is_set_and_restored(sysctl: Path) -> None:
    with qlen.changed(3) as in_force:
        assert in_force == 3
        assert sysctl.read_text() == "3\n"
    assert sysctl.read_text() == "10\n"


def test_value_is_left_alone(sysctl: Path) -> None:
    with qlen.changed(None) as in_force:
        assert in_force == 10
        sysctl.write_text("11\n")
    assert sysctl.read_text() == "11\n"


def test_value_is_reported(sysctl: Path, msgbench: Msgbench) -> None:
    done = msgbench.measure("torture", "--qlen", "4", "--types", "dgram", "--processes", "3")
    assert done.result["settings"]["net.unix.max_dgram_qlen"] == 4
    assert sysctl.read_text() == "10\n"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_value_is_restored_after_a_signal(
    sysctl: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    def body(channel: Connection) -> None:
        def interrupted(*arguments: object) -> None:
            channel.send(sysctl.read_text())
            with contextlib.suppress(EOFError):
                channel.recv()

        monkeypatch.setattr(torture, "interleave", interrupted)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        channel.send(main(["torture", "--qlen", "5", "--types", "dgram", "-q", "--directory", str(scratch)]))

    with Child(body) as child:
        assert child.hear() == "5\n"
        os.kill(child.pid, ending)
        assert child.hear() == 128 + ending
    assert sysctl.read_text() == "10\n"


@pytest.mark.usefixtures("sysctl")
def test_without_permission(msgbench: Msgbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(qlen, "_write", refuse)
    done = msgbench("torture", "--qlen", "5")
    assert done.status == 2
    assert "net.unix.max_dgram_qlen = 5: Permission denied; setting it needs root" in done.err
