# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""MSGD_NO_SKIP=1: a test that would be skipped fails in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support.project import ROOT

SKIPPED = "import pytest\n\n@pytest.mark.skip(reason='not today')\ndef test():\n    pass\n"
SKIPPED_WHOLE = "import pytest\n\npytest.skip('not here', allow_module_level=True)\n"


@pytest.mark.parametrize(("no_skip", "status"), [("0", 0), ("1", 1)])
def test_skipping(tmp_path: Path, no_skip: str, status: int) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(SKIPPED)
    (tmp_path / "test_two.py").write_text(SKIPPED_WHOLE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--continue-on-collection-errors",
            "--rootdir=.",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env={**os.environ, "MSGD_NO_SKIP": no_skip},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    reasons = ("skipped in CI: Skipped: not today" in done.stdout, "skipped in CI: Skipped: not here" in done.stdout)
    assert reasons == (bool(status), bool(status))
