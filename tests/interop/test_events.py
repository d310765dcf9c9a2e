# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol events beside a real smbd that is restarted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.interop.samba import Samba, missing
from tests.support.harness import PATIENCE


def log_in(samba: Samba, user: str) -> None:
    """Log in as a user that is not known, who is a guest."""
    login = ("-U", f"{user}%wrong", "-c", "exit", "//127.0.0.1/share")
    status, output = samba.run("smbclient", "-s", samba.file, "-p", samba.port, *login)
    assert status == 0, output


def test_events_over_a_restart_of_smbd() -> None:
    pytest.importorskip("tdb")
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    try:
        samba = Samba(directory)
        with samba:
            command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(samba.msgd_file)]
            words = ["events", "auth", "--json", "--count", "2"]
            with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
                assert one.stderr is not None
                assert "listening as auth_event" in one.stderr.readline()
                log_in(samba, "first")
                samba.__exit__()
                samba.__enter__()
                log_in(samba, "second")
                printed, errors = one.communicate(timeout=PATIENCE)
        assert one.returncode == 0, errors
        accounts = [json.loads(line)["Authentication"]["clientAccount"] for line in printed.splitlines()]
        assert accounts == ["first", "second"]
    finally:
        shutil.rmtree(directory)
