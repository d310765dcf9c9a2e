# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Run msgbench in the test's process.  Its workers are forked, so a test's patches apply in them too."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from msgd import _registry
from msgd.bench import subjects
from msgd.bench.main import main


class Done(NamedTuple):
    """The outcome of a run of msgbench: exit status, stdout, stderr, and the result from --json (empty if none)."""

    status: int
    out: str
    err: str
    result: dict[str, Any]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by subject; the last row if a subject has several."""
        return {row["subject"]: row for row in self.result["rows"]}


class Msgbench:
    """Runs msgbench with a scratch directory and short runs."""

    def __init__(self, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._scratch = scratch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        """Run msgbench with exactly these arguments."""
        status = main(arguments)
        out, err = self._capsys.readouterr()
        return Done(status, out, err, {})

    def measure(self, command: str, *arguments: str) -> Done:
        """Run a command that measures, for a twentieth of a second unless the arguments say otherwise."""
        file = self._scratch / "result.json"
        short = ("--seconds", "0.05", "--runs", "1", "--patience", "20", "--directory", str(self._scratch), "-q")
        done = self(command, *short, "--json", str(file), *arguments)
        return done._replace(result=json.loads(file.read_bytes())["results"][0] if file.exists() else {})


@pytest.fixture
def msgbench(scratch: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Msgbench]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield Msgbench(scratch, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


LOSSY = "lossy"


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a subject whose backend, a test double, loses one message in a thousand."""
    module = _registry.MessagingModule(_registry.MESSAGING_MODULES[0].name, "tests.bench.lossy", "loses messages")
    for user in ("msgd.messaging.loading", "msgd.bench.subjects"):
        monkeypatch.setattr(f"{user}.MESSAGING_MODULES", (module,))
    monkeypatch.setattr(subjects, "SUBJECTS", (subjects.Subject(LOSSY, module.name, "loses messages"),))
    return LOSSY
