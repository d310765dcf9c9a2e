# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the programs import before they do their work: nothing that is slow to import, and few modules of msgd's.

docs/architecture.md has the rule.  Times are not measured here: they depend on the machine.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.daemons import ENVIRONMENT, PATIENCE, Place

# -S: what the .pth files of this machine import is not msgd's.
OBSERVER = """
import sys
before = set(sys.modules)
sys.path[:] = sys.argv[1].split(":")
program = __import__(sys.argv[2], fromlist=["main"])
try:
    status = program.main(sys.argv[3:])
except SystemExit as ended:
    status = ended.code
print("STATUS", status, *sys.modules.keys() - before)
"""

SLOW = {
    "ast",
    "asyncio",
    "bz2",
    "concurrent",
    "dataclasses",
    "difflib",
    "dis",
    "email",
    "hashlib",
    "importlib.metadata",
    "inspect",
    "ipaddress",
    "json",
    "lzma",
    "msgd.aio",
    "msgd.client",
    "msgd.cluster",
    "msgd.config.values",
    "msgd.daemon",
    "msgd.pubsub",
    "multiprocessing",
    "pathlib",
    "rich",
    "shutil",
    "subprocess",
    "tempfile",
    "urllib",
}
"""Modules that none of the programs needs for its plain work."""

STARTS = {
    "msgcontrol": ("msgd.tools.msgcontrol.main", [], ["msgd", "ping"], 110),
    "msgcontrol --help": ("msgd.tools.msgcontrol.main", ["--help"], [], 100),
    "msgcontrol --version": ("msgd.tools.msgcontrol.main", ["--version"], [], 100),
    "msgstatus": ("msgd.tools.msgstatus.main", [], [], 95),
    "msgparm": ("msgd.tools.msgparm", [], [], 45),
}


@pytest.mark.parametrize("start", STARTS)
def test_no_slow_module_is_imported(place: Place, start: str) -> None:
    module, options, words, most = STARTS[start]
    place.msgd()
    path = ":".join(filter(None, sys.path))
    command = [sys.executable, "-S", "-P", "-c", OBSERVER, path, module, *options, "-s", str(place.smb_conf), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False)
    status, *loaded = done.stdout.rpartition("STATUS ")[2].split()
    assert status == "0", done.stdout + done.stderr
    assert not {name for name in loaded if not SLOW.isdisjoint((name, name.partition(".")[0]))}
    own = [name for name in loaded if name.partition(".")[0] == "msgd"]
    assert len(own) <= most, own
