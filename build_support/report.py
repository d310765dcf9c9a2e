"""What configure says, and where it writes it down: lines on the terminal, everything in build/config.log."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from typing import TextIO


class ConfigureError(Exception):
    """Configuring cannot go on. The message is the line the user gets, after `configure: error:`."""


class Report:
    """The two readers of a configure run: the user at the terminal and the log.

    Quiet is as autoconf has it: no results, but still what takes long and what the user has to know.
    """

    def __init__(self, log: TextIO, *, quiet: bool = False) -> None:
        self._log = log
        self._quiet = quiet

    def note(self, text: str) -> None:
        """For the log only."""
        print(text, file=self._log, flush=True)

    def say(self, text: str) -> None:
        self.note(text)
        print(text, flush=True)

    def result(self, text: str) -> None:
        self.note(text)
        if not self._quiet:
            print(text, flush=True)

    def checked(self, what: str, *, found: bool, detail: str = "") -> None:
        """One `checking for` line."""
        answer = "yes" if found else "no"
        self.result(f"checking for {what}... {answer}{f' ({detail})' if detail else ''}")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a short command, its output in the log. One that cannot be started counts as failed (status 127)."""
        self.note(f"$ {shlex.join(command)}")
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            done = subprocess.CompletedProcess(command, 127, "", f"{error}\n")
        self.note(f"{done.stdout}{done.stderr}exit status {done.returncode}")
        return done

    def follow(self, command: Sequence[str], progress: tuple[str, ...]) -> bool:
        """Run a long command, showing the lines of its output that begin with one of `progress`; did it succeed?"""
        self.say(f"$ {shlex.join(command)}")
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            self.note(str(error))
            return False
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                tell = self.say if line.startswith(progress) else self.note
                tell(f"  {line.rstrip()}")
        self.note(f"exit status {process.returncode}")
        return process.returncode == 0
