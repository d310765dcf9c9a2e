# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fuzz one target of test_parsers.py, guided by coverage: `python -m tests.fuzz.guided TARGET SECONDS`.

It needs atheris.  It is a process of its own because atheris.Fuzz() ends the process: with 0 if nothing was found.
"""

from __future__ import annotations

import sys
from typing import Any

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
from hypothesis import given

with atheris.instrument_imports(include=["msgd"]):
    from tests.fuzz.test_parsers import TARGETS


def main(target: str, seconds: str) -> None:
    """Fuzz this target for so many seconds."""
    strategy, function = TARGETS[target]
    fuzzed: Any = given(strategy)(function)
    options = [f"-max_total_time={seconds}", "-verbosity=0", f"-artifact_prefix=build/{target}-"]
    atheris.Setup([sys.argv[0], *options], fuzzed.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
