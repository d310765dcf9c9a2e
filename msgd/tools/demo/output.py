# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Print the steps of the demo and their results."""

from __future__ import annotations

import os
import sys

_DIM, _BOLD, _GREEN, _RED, _PLAIN = "\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[0m"


class Output:
    """Prints the steps and numbers them.  The text is coloured on a terminal, unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._step = 0

    def _print(self, colour: str, text: str) -> None:
        print(f"{colour}{text}{_PLAIN}" if self._coloured else text, flush=True)

    def step(self, text: str) -> None:
        """Announce the next step."""
        self._step += 1
        self._print(_BOLD, f"{self._step}. {text}")

    def detail(self, text: str) -> None:
        """Print the result of a step, each line indented."""
        for line in text.splitlines():
            self._print(_DIM, f"   {line}")

    def success(self, text: str) -> None:
        """Report that the demo succeeded."""
        self._print(_GREEN, text)

    def failure(self, text: str) -> None:
        """Report why the demo failed."""
        self._print(_RED, f"FAILED: {text}")
