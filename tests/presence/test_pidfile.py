# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Pid files: there is one holder at a time, and a file that is not ours is never removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from msgd.errors import AlreadyRunning, TransportError, UnsafeDirectory
from msgd.presence.pidfile import PidFile, read_pid
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, Running
from tests.support.strangers import locking, needs_root, stranger

HOLDER = """
import os, sys
from msgd.presence.pidfile import PidFile
with PidFile(sys.argv[1], "msgd", {os.geteuid()}):
    print("held", flush=True)
    sys.stdin.readline()
"""

STARTER = """
import os, sys
from msgd.errors import AlreadyRunning
from msgd.presence.pidfile import PidFile
directory, marker, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
held = 0
for _ in range(turns):
    try:
        with PidFile(directory, "msgd", {os.geteuid()}):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails if two processes hold the file at once
            os.unlink(marker)
            held += 1
    except AlreadyRunning:
        pass
print(held)
"""


def pid_file(place: Place) -> PidFile:
    return PidFile(str(place.pid_file.parent), "msgd", {os.geteuid()})


def start_holder(place: Place) -> Running:
    holder = Running([sys.executable, "-c", HOLDER, str(place.pid_file.parent)])
    holder.await_line("held")
    return holder


def test_file_exists_while_held(place: Place) -> None:
    with pid_file(place):
        assert place.pid_file.read_text() == f"{os.getpid()}\n"
        assert place.pid_file.stat().st_mode & 0o777 == 0o644
        assert place.pid_file.parent.stat().st_mode & 0o777 == 0o755
    assert not place.pid_file.exists()


def test_held_file_is_found_and_cannot_be_taken(place: Place) -> None:
    directory = str(place.pid_file.parent)
    assert read_pid(directory, "msgd") is None
    holder = start_holder(place)
    try:
        assert read_pid(directory, "msgd") == holder.pid
        with pytest.raises(AlreadyRunning, match=rf"pid {holder.pid}: it holds {place.pid_file}"):
            pid_file(place).acquire()
        assert read_pid(directory, "msgd") == holder.pid
        holder.say("go")
        assert holder.wait() == 0
    finally:
        holder.kill()
    assert read_pid(directory, "msgd") is None
    assert not place.pid_file.exists()


def test_stale_file_is_taken_over(place: Place) -> None:
    place.pid_file.parent.mkdir()
    place.pid_file.write_text(f"{2**22}999999999\n")
    assert read_pid(str(place.pid_file.parent), "msgd") is None
    with pid_file(place):
        assert place.pid_file.read_text() == f"{os.getpid()}\n"


def test_lock_held_by_another_pid_than_the_written_one_does_not_count(place: Place) -> None:
    holder = start_holder(place)
    try:
        place.pid_file.write_text("1\n")
        assert read_pid(str(place.pid_file.parent), "msgd") is None
    finally:
        holder.kill()


@needs_root
def test_a_read_lock_of_a_stranger_keeps_nobody_from_starting(place: Place) -> None:
    """Everybody can take one on the file of a dead daemon.  The next daemon gets a file that was never locked."""
    place.pid_file.parent.mkdir()
    directory = str(place.pid_file.parent)
    start_holder(place).kill()
    assert place.pid_file.exists()
    with stranger(place.directory, locking(place.directory)) as holder:
        assert str(place.pid_file) in holder.hear()
        place.pid_file.write_text(f"{holder.pid}\n")
        assert read_pid(directory, "msgd") is None
        with pid_file(place):
            assert place.pid_file.read_text() == f"{os.getpid()}\n"
        assert not place.pid_file.exists()


def test_one_holder_at_a_time(place: Place) -> None:
    place.pid_file.parent.mkdir()
    command = [sys.executable, "-c", STARTER, str(place.pid_file.parent), str(place.directory / "marker"), "400"]
    starters = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    held = [int(starter.communicate(timeout=PATIENCE)[0]) for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 4
    assert sum(held) > 0
    assert not place.pid_file.exists()


def test_file_that_replaced_ours_is_not_removed(place: Place) -> None:
    with pid_file(place):
        place.pid_file.unlink()
        place.pid_file.write_text("somebody else's\n")
    assert place.pid_file.read_text() == "somebody else's\n"


def test_forked_child_leaves_the_file(place: Place) -> None:
    with pid_file(place) as held:
        child = os.fork()
        if child == 0:
            held.release()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert place.pid_file.exists()


def test_something_else_than_a_regular_file_is_refused(place: Place) -> None:
    place.pid_file.parent.mkdir()
    os.mkfifo(place.pid_file)
    assert read_pid(str(place.pid_file.parent), "msgd") is None
    with pytest.raises(UnsafeDirectory, match="not a regular file"):
        pid_file(place).acquire()
    place.pid_file.unlink()
    target = place.directory / "target"
    target.write_text("precious")
    place.pid_file.symlink_to(target)
    with pytest.raises(TransportError, match=str(place.pid_file)):
        pid_file(place).acquire()
    with pytest.raises(TransportError, match=str(place.pid_file)):
        read_pid(str(place.pid_file.parent), "msgd")
    assert target.read_text() == "precious"
    place.pid_file.unlink()


def test_no_descriptor_leaks(place: Place) -> None:
    place.pid_file.parent.mkdir()
    before = os.listdir("/proc/self/fd")
    os.mkfifo(place.pid_file)
    with pytest.raises(UnsafeDirectory):
        pid_file(place).acquire()
    place.pid_file.unlink()
    with pid_file(place):
        pass
    read_pid(str(place.pid_file.parent), "msgd")
    assert os.listdir("/proc/self/fd") == before


def test_directory_that_others_can_write_to_is_refused(place: Place) -> None:
    place.pid_file.parent.mkdir()
    place.pid_file.parent.chmod(0o777)
    with pytest.raises(UnsafeDirectory, match="0777"):
        pid_file(place).acquire()
    assert not Path(place.pid_file).exists()
