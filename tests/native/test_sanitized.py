# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The tests of the twins once more, with every access to memory and all arithmetic of the extension checked.

The extension is compiled with gcc's AddressSanitizer and UndefinedBehaviorSanitizer, and with warnings as errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import compiled
from build_support.project import ROOT
from build_support.report import Report

FLAGS = (
    "-O1",
    "-g",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)

# The package imports the extension by its name; this is put in its place before that.
LOAD = """\
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("msgd._native", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("msgd._native", loader))
loader.exec_module(module)
sys.modules["msgd._native"] = module
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""

TESTS = (
    "test_frames.py", "test_records.py", "test_own_record.py", "test_datagrams.py", "test_sending.py",
    "test_delivery.py",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_twins_with_sanitizers(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        compiler = compiled.compiler(sys.executable, Report(log))
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    if compiler is None or not os.path.isabs(library.stdout.strip()):
        pytest.skip("no gcc with AddressSanitizer (Debian: gcc)")
    extension = tmp_path / f"_native{compiler.suffix}"
    sources = [str(path) for path in sorted((ROOT / compiled.SOURCES).glob("*.c"))]
    made = subprocess.run(compiler.line(sources, str(extension), FLAGS), capture_output=True, text=True, check=False)
    assert not made.returncode, made.stderr
    environment = os.environ | {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # so that each object is a block of its own
    }
    environment.pop("MSGD_PURE", None)
    tests = [str(Path(__file__).with_name(name)) for name in TESTS]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(extension), "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout
