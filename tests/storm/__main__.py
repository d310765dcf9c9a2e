# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make storm`: a long storm over each messaging type in turn; exit status 1 with what went wrong."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from tests.backends.variants import compiled_in
from tests.storm.storm import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="for all messaging types together (default: 5)")
    parser.add_argument("--processes", type=int, default=72, help="in each directory (default: 72)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what is done when (default: the time)")
    parser.add_argument("--type", action="append", help="only this one of tdb, tdb-fcntl ... (may be repeated)")
    options = parser.parse_args()
    variants = [variant for variant in compiled_in() if options.type is None or variant.name in options.type]
    if not variants:
        parser.error(f"--type is one of {', '.join(variant.name for variant in compiled_in())}")
    for variant in variants:
        scratch = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
        try:
            run(
                variant,
                scratch,
                seconds=options.minutes * 60 / len(variants),
                processes=options.processes,
                seed=options.seed,
                say=lambda line: print(line, flush=True),
            )
        finally:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
