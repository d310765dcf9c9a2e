# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""gunicorn, with each kind of worker: changes are posted while workers are killed, reloaded and replaced."""

from __future__ import annotations

import os
import pwd
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from msgd.integrations.gunicorn import worker_exit
from msgd.pubsub import Gap, GapReason, PubSub
from tests.integrations.servers import (
    PATIENT,
    STORM,
    WORKERS,
    Server,
    check_workers,
    disturber,
    serving,
    started,
    storm,
)

pytestmark = pytest.mark.timeout(PATIENT)
for module in ("flask", "fastapi", "uvicorn_worker", "cachetools", "gevent"):
    pytest.importorskip(module, reason=f"{module} is not installed")


def command(*options: str) -> list[str]:
    common = ["gunicorn", "-c", "EXAMPLES/gunicorn.conf.py", "-w", str(WORKERS), "-b", "unix:SOCKET", "-p", "PIDFILE"]
    return [*common, "--graceful-timeout", "1", *options, "tests.integrations.audited:app"]


@pytest.mark.parametrize(
    ("example", "options"),
    [
        ("flask_app", []),
        ("flask_app", ["-k", "gthread", "--threads", "2", "--preload"]),
        ("flask_app", ["-k", "gevent"]),
        ("fastapi_app", ["-k", "uvicorn_worker.UvicornWorker"]),
    ],
    ids=["sync", "gthread-preload", "gevent", "uvicorn"],
)
def test_workers_are_complete_or_told(example: str, options: list[str]) -> None:
    limit = ["--max-requests", "40", "--max-requests-jitter", "20"]
    with serving(command(*limit, *options), EXAMPLE=example) as (server, auditor):
        posted = storm(server, range(1, STORM + 1), disturber(server))
        check_workers(server, auditor, posted)


def test_an_upgrade_of_gunicorn_itself() -> None:
    """SIGUSR2 starts a second master beside the first; the workers of both hear each other."""
    with serving(command("--preload"), EXAMPLE="flask_app") as (server, auditor):
        first = server.master()

        def disturb(number: int) -> None:
            if number == STORM // 4:
                os.kill(first, signal.SIGUSR2)
            elif number == STORM // 2:
                server.wait_for(lambda: (server.directory / "pid.2").exists(), "upgraded")
                os.kill(first, signal.SIGTERM)

        posted = storm(server, range(1, STORM + 1), disturb)
        server.wait_for(lambda: server.master() != first, "the master")
        check_workers(server, auditor, posted)


def test_a_preloaded_application_whose_workers_change_their_user() -> None:
    """The master is root and meets nobody; the workers meet in the private directory of theirs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    nobody = pwd.getpwnam("nobody").pw_uid
    options = command("--preload", "-u", "nobody", "-m", "0")
    environment = {"EXAMPLE": "flask_app", "MSGD_DIRECTORY": "", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(dir="/tmp") as private:
        os.chown(private, nobody, -1)
        with started(options, environment | {"XDG_RUNTIME_DIR": private}, nobody) as server:
            for price in ("10", "20"):
                server.ask("PUT", "/prices/7", price)
                await_price(server, price)


def await_price(server: Server, price: str) -> None:
    """Wait until each worker has been seen to answer with this price."""
    seen: set[int] = set()

    def all_have() -> bool:
        answer = server.ask("GET", "/prices/7")
        if answer.text == price:
            seen.add(answer.pid)
        return len(seen) == WORKERS

    server.wait_for(all_have, f"{price} everywhere")


def test_worker_exit_closes_what_a_worker_has_open_and_nothing_of_the_master(scratch: Path) -> None:
    heard: list[Gap] = []
    with PubSub(scratch / "lock") as pubsub, PubSub(scratch / "lock") as another:
        for one in (pubsub, another):
            one.subscribe("a", lambda event: None, on_gap=heard.append)
        worker_exit(None, SimpleNamespace(pid=os.getppid()))
        assert pubsub._hub is not None
        worker_exit(None, SimpleNamespace(pid=os.getpid()))
        assert pubsub._hub is another._hub is None
        assert pubsub.publish("a").delivered == 1
        assert heard == [Gap(GapReason.BEFORE)]
