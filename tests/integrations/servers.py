# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Real servers with several workers, clients that change data through them, and the audit of what each worker knows."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import pytest

from msgd.pubsub import Event, PubSub
from tests.support.daemons import TREE

WORKERS = 4
STORM = int(os.environ.get("MSGD_STORM", "0")) or 120
"""Changes that one test makes."""

PATIENT = 120 + STORM // 10
"""Seconds that a test with a storm may take."""

CLIENTS = 3
PATIENCE = 30.0
EXAMPLES = os.path.join(TREE, "examples", "web")


def program(name: str) -> str:
    """The path of a server, or the test is skipped."""
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return shutil.which(name, path=here) or pytest.skip(f"{name} is not installed")


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.host)


class Answer(NamedTuple):
    """What a worker has answered."""

    pid: int
    text: str


class Posted(NamedTuple):
    """A change that a worker has confirmed: when it was asked for, of which product, and by which worker."""

    at: float
    product: int
    pid: int


class Server:
    """A server on a Unix socket, in a directory of its own."""

    def __init__(self, directory: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.socket = str(directory / "http")
        self.lock = str(directory / "lock")
        self.log = directory / "log"
        words = {"SOCKET": self.socket, "PIDFILE": str(directory / "pid"), "EXAMPLES": EXAMPLES}
        for word, value in words.items():
            command = [one.replace(word, value) for one in command]
        self._command = [program(command[0]), *command[1:]]
        paths = os.pathsep.join((TREE, EXAMPLES))
        self._environment = (
            os.environ
            | {
                "PYTHONPATH": paths,
                "HOME": str(directory),
                "MSGD_DIRECTORY": self.lock,
                "PRICES": str(directory / "prices.db"),
            }
            | dict(environment)
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=directory,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def master(self) -> int:
        """The pid of the process that has the workers: another one after SIGUSR2."""
        pidfile = self.directory / "pid"
        return int(pidfile.read_text()) if pidfile.exists() else self._process.pid

    def children(self) -> set[int]:
        """The processes that the master has started."""
        try:
            return {
                int(pid) for pid in Path(f"/proc/{self.master()}/task/{self.master()}/children").read_text().split()
            }
        except FileNotFoundError:
            return set()

    def ask(self, method: str, path: str, body: str | None = None) -> Answer:
        """One request.  Raises OSError or HTTPException if the worker ends meanwhile."""
        with closing(_Connection(self.socket)) as connection:
            connection.request(method, path, body, {"Connection": "close", "Host": "localhost"})
            response = connection.getresponse()
            text = response.read().decode()
        if response.status != 200:
            raise AssertionError(f"{method} {path}: {response.status} {text}\n{self.log.read_text()}")
        return Answer(int(response.headers["X-Worker"]), text)

    def is_listening(self) -> bool:
        """Whether it answers, whatever it says."""
        try:
            with closing(_Connection(self.socket)) as connection:
                connection.request("GET", "/prices/0", headers={"Connection": "close", "Host": "localhost"})
                connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Ask again and again until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, f"not {what}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9 of everything that it has started: it leads a session of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Auditor:
    """A PubSub of the test's own process, which asks the auditors of the workers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._pubsub = PubSub(server.lock)
        self._pubsub.subscribe("audited", self._note)

    def _note(self, event: Event) -> None:
        self._answers.put(event.data)

    def audit(self) -> dict[int, dict[str, Any]]:
        """What each worker knows, by pid: of those whose auditor has answered."""
        acked = self._pubsub.publish("audit", wait="acked", include_self=False).acked
        wanted = sum(1 for callbacks in acked.values() if callbacks)
        found: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < wanted and time.monotonic() < deadline:
            try:
                answer = self._answers.get(timeout=1)
            except Empty:
                break  # it was killed after it had acknowledged: its answer is lost with it
            found[answer["pid"]] = answer
        return found

    def close(self) -> None:
        self._pubsub.close()


@contextmanager
def started(command: list[str], environment: Mapping[str, str], uid: int | None = None) -> Iterator[Server]:
    """A server that listens, in a directory that is this user's."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    if uid is not None:
        os.chown(directory, uid, -1)
    server = Server(directory, command, environment)
    try:
        server.wait_for(server.is_listening, "listening")
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory)


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[tuple[Server, Auditor]]:
    """A server, once all of its workers hear."""
    with started(command, environment) as server, closing(Auditor(server)) as auditor:
        await_workers(server, auditor)
        yield server, auditor


def await_workers(server: Server, auditor: Auditor) -> dict[int, dict[str, Any]]:
    """Wait until there are as many workers as there should be, and all of them answer."""
    found: dict[int, dict[str, Any]] = {}

    def is_complete() -> bool:
        nonlocal found
        found = {pid: one for pid, one in auditor.audit().items() if pid != server.master()}
        return len(found) == WORKERS and set(found) <= server.children()

    server.wait_for(is_complete, f"{WORKERS} workers")
    return found


def storm(server: Server, products: range, disturb: Callable[[int], None] = lambda product: None) -> list[Posted]:
    """Have several clients change the prices of these products, each once; disturb(product) is called before each."""
    numbers, posted, lock = iter(products), [], threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                with lock:
                    product = next(numbers, None)
                    if product is None:
                        return
                    disturb(product)
                at = time.monotonic()
                try:
                    server.ask("GET", f"/prices/{product}")  # it is in a worker's memory, with the old price
                    answer = server.ask("PUT", f"/prices/{product}", str(product * 10))
                except (OSError, http.client.HTTPException):
                    continue  # its worker was killed: nobody knows what became of it
                posted.append(Posted(at, product, answer.pid))
        except BaseException as error:
            errors.append(error)
            raise

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not errors, errors
    assert len(posted) >= len(products) // 2
    return posted


def disturber(server: Server) -> Callable[[int], None]:
    """In turn: SIGHUP, kill -9 of a worker, kill -9 of another one, and again."""
    every = min(STORM // 4, 250)

    def disturb(number: int) -> None:
        turn, rest = divmod(number, every)
        if rest:
            return
        if turn % 3 == 0:
            os.kill(server.master(), signal.SIGHUP)
        else:
            for pid in sorted(server.children())[:1]:
                os.kill(pid, signal.SIGKILL)

    return disturb


def missing(posted: list[Posted], worker: dict[str, Any]) -> set[int]:
    """What was published since the worker subscribed, or was told of a gap, and has not come there."""
    wanted = {one.product for one in posted if one.at > worker["since"] and one.pid != worker["pid"]}
    return wanted - set(worker["heard"])


def check_workers(server: Server, auditor: Auditor, posted: list[Posted]) -> None:
    """Every worker is complete or told of a gap, and what changes after the storm reaches all that live on."""
    after_storm = _settled(server, auditor, posted)
    later = storm(server, range(STORM + 1, STORM + 21))
    in_the_end = _settled(server, auditor, later)
    for pid in after_storm.keys() & in_the_end.keys():
        assert {one.product for one in later if one.pid != pid} <= set(in_the_end[pid]["heard"])
    for one in [*posted[:: max(1, len(posted) // 20)], *later]:
        for _ in range(WORKERS):
            assert server.ask("GET", f"/prices/{one.product}").text == str(one.product * 10)


def _settled(server: Server, auditor: Auditor, posted: list[Posted]) -> dict[int, dict[str, Any]]:
    """What the workers know once each is complete or told of a gap."""
    found: dict[int, dict[str, Any]] = {}

    def is_settled() -> bool:
        nonlocal found
        found = await_workers(server, auditor)
        return not any(missing(posted, worker) for worker in found.values())

    server.wait_for(is_settled, "complete or told of a gap")
    return found
