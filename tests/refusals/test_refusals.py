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

from msgd import Config, Message, Messaging, MsgdError
from tests.backends.variants import compiled_in
from tests.refusals.inside import KINDS
from tests.support.daemons import ENVIRONMENT
from tests.support.harness import PATIENCE, TEXT, Channel, Child

TYPES = sorted({variant.messaging_type for variant in compiled_in(None)})

LIMIT = 10 << 20
"""Bytes of memory that the receiver may have besides what it has."""


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


@pytest.mark.parametrize("messaging_type", [one for one in TYPES if one != "tdb"])
def test_a_message_that_does_not_fit_into_memory(scratch: Path, messaging_type: str) -> None:
    """It is dropped, counted and told; what is behind it arrives, and so does the next long one that fits."""
    config = Config(lock_directory=str(scratch / "lock"), messaging_type=messaging_type)

    def receive(channel: Channel) -> None:
        received: list[int] = []

        def take(message: Message) -> None:
            received.append(len(message.data))

        with Messaging(config) as messaging:
            messaging.register(TEXT, take)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, resource.RLIM_INFINITY))
            channel.send(messaging.server_id)
            while len(received) < 2:
                messaging.dispatch(PATIENCE)
            channel.send((received, messaging.statistics().drops))

    with Messaging(config) as messaging, Child(receive) as receiver:
        dst = receiver.hear()
        for length in (16 << 20, 5, 1 << 20):
            messaging.send(dst, TEXT, bytes(length))
        while not receiver.channel.poll(0):
            messaging.dispatch(0.01)
        assert receiver.hear() == ([5, 1 << 20], {"no memory left": 1})


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
