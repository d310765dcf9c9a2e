# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Descriptors, memory, watches and locks run out at any point of any call: only errors of msgd's leave the library."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msgd import Config, Messaging, MsgdError
from tests.backends.variants import compiled_in
from tests.refusals.inside import KINDS
from tests.support.daemons import ENVIRONMENT, Running
from tests.support.harness import PATIENCE, TEXT, Channel, Child

TYPES = sorted({variant.messaging_type for variant in compiled_in(None)})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is needed to make system calls fail (Debian: gcc)")
    path = tmp_path_factory.mktemp("refuse") / "refuse.so"
    source = Path(__file__).with_name("refuse.c")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", path, source, "-ldl"], check=True)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("messaging_type", TYPES)
def test_each_call_fails_well(library: Path, scratch: Path, messaging_type: str, kind: str) -> None:
    """The first, the second, ... refusal in each public call; inside.py says what has to hold."""
    command = [sys.executable, "-m", "tests.refusals.inside", str(scratch), messaging_type, kind]
    environment = ENVIRONMENT | {"LD_PRELOAD": str(library)}
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=4 * PATIENCE, check=False
    )
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr


RECEIVER = """
import resource, sys
from pathlib import Path
from msgd import Config, Messaging
received = []
with Messaging(Config(lock_directory=sys.argv[1], messaging_type=sys.argv[2])) as messaging:
    messaging.register(int(sys.argv[3]), lambda message: received.append(len(message.data)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (10 << 20), resource.RLIM_INFINITY))
    print("ready", flush=True)
    while len(received) < 2:
        messaging.dispatch(30)
    print("got", received, dict(messaging.statistics().drops), flush=True)
"""
"""A process of its own, with 10 MiB of memory besides what it has: a forked one has free memory of its parent's."""


@pytest.mark.parametrize("messaging_type", TYPES)
def test_a_message_that_does_not_fit_into_memory(scratch: Path, messaging_type: str) -> None:
    """It is dropped, counted and told; what is behind it arrives, and so does the next long one that fits."""
    config = Config(lock_directory=str(scratch / "lock"), messaging_type=messaging_type)
    receiver = Running([sys.executable, "-c", RECEIVER, config.lock_directory, messaging_type, str(TEXT)])
    try:
        receiver.await_line("ready")
        with Messaging(config) as messaging:
            for length in (16 << 20, 5, 1 << 20):
                messaging.send(receiver.pid, TEXT, bytes(length))
            messaging.close(PATIENCE)
        assert receiver.await_line("got") == "got [5, 1048576] {'no memory left': 1}"
        assert "dropped 1 message, no memory left" in receiver.output
    finally:
        receiver.kill()


@pytest.mark.parametrize("messaging_type", TYPES)
@pytest.mark.parametrize("free", range(12))
def test_no_descriptors_left(scratch: Path, messaging_type: str, free: int) -> None:
    """With so few of them a context opens and works, or says what is missing."""
    config = Config(lock_directory=str(scratch / "lock"), messaging_type=messaging_type)

    def work(channel: Channel) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        for number in range(highest):
            try:
                os.fstat(number)
            except OSError:
                os.dup2(0, number)  # no gaps below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, hard))
        channel.send(outcome_of_everything(config))

    with Child(work) as child:
        outcome = child.hear()
    if messaging_type != "tdb":  # libtdb has words of its own for it
        assert outcome == "works" or "Too many open files" in outcome


def outcome_of_everything(config: Config) -> str:

    try:
        with Messaging(config) as messaging:
            messaging.send(os.getpid(), TEXT, b"to myself")
            messaging.dispatch()
            messaging.processes()
            messaging.clean_up()
    except MsgdError as error:
        return f"{type(error).__name__}: {error}"
    return "works"


def test_a_file_system_that_refuses_locks(library: Path, scratch: Path) -> None:
    """The error says so, and names the place; nothing is left there."""
    program = (
        "import ctypes, errno, sys\n"
        "from msgd import Config, Messaging, TransportError\n"
        "loaded = ctypes.CDLL(None)\n"
        "for name, value in (('refuse_errno', errno.ENOLCK), ('refuse_kinds', 4)):\n"
        "    ctypes.c_int.in_dll(loaded, name).value = value\n"
        "try:\n"
        "    Messaging(Config(lock_directory=sys.argv[1], messaging_type='dgram'))\n"
        "except TransportError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(scratch / "lock")]
    environment = ENVIRONMENT | {"LD_PRELOAD": str(library)}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=True).stdout
    assert said == (
        f"{scratch}/lock/msgd.lock: its file system refuses locks (No locks available);"
        " the directory must be on another\n"
    )
    assert not list((scratch / "lock" / "msg.lock").iterdir())
