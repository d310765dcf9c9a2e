# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The output of configure: lines on the terminal, and everything in build/config.log."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from typing import TextIO


class ConfigureError(Exception):
    """Configuring cannot continue. The message is shown to the user as one line, after `configure: error:`."""


class Report:
    """Writes to the terminal and to the log.

    With `quiet`, as with autoconf, the results of the checks are not printed. What takes long and what the user must
    know still is.
    """

    def __init__(self, log: TextIO, *, quiet: bool = False) -> None:
        self._log = log
        self._quiet = quiet

    def note(self, text: str) -> None:
        """Write to the log only."""
        print(text, file=self._log, flush=True)

    def say(self, text: str) -> None:
        """Write to the log and to the terminal."""
        self.note(text)
        print(text, flush=True)

    def result(self, text: str) -> None:
        """Write to the log and, unless quiet, to the terminal."""
        self.note(text)
        if not self._quiet:
            print(text, flush=True)

    def checked(self, what: str, *, found: bool, detail: str = "") -> None:
        """Write the line `checking for WHAT... yes (DETAIL)` as a result."""
        answer = "yes" if found else "no"
        self.result(f"checking for {what}... {answer}{f' ({detail})' if detail else ''}")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a short command, and write its output to the log. If it cannot be started, its exit status is 127."""
        self.note(f"$ {shlex.join(command)}")
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            done = subprocess.CompletedProcess(command, 127, "", f"{error}\n")
        self.note(f"{done.stdout}{done.stderr}exit status {done.returncode}")
        return done

    def follow(self, command: Sequence[str], progress: tuple[str, ...]) -> bool:
        """Run a long command and return whether it succeeded. Lines that begin with one of `progress` are shown."""
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
