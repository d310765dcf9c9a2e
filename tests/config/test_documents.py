# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The documents at the root: README's program is run, docs/parameters.md is up to date, and links lead to files."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from msgd._registry import MESSAGING_MODULES
from msgd.tools.manual import markdown
from tests.support.daemons import ENVIRONMENT, PATIENCE

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.mark.parametrize("messaging_type", [module.name for module in MESSAGING_MODULES])
def test_the_service_whose_workers_talk(messaging_type: str) -> None:
    """One worker flushes when it alone is told to, and all four when all are told to. No process is left at the end."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="m") as directory:
        settings = f'lock_directory="{directory}", messaging_type="{messaging_type}"'
        assert program.count('lock_directory="/run/myservice"') == 1
        done = subprocess.run(
            [sys.executable, "-c", program.replace('lock_directory="/run/myservice"', settings)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=PATIENCE,
            check=True,
        )  # the pipes reach their end when the last worker exits
        assert not list(Path(directory, "msg.sock").iterdir())
        assert not list(Path(directory, "msg.lock").iterdir())
    flushed = Counter(re.findall(r"\((\d+), b'42 entries'\)", done.stdout))
    assert sorted(flushed.values()) == [1, 1, 1, 2]


def test_tell_every_worker() -> None:
    """The process that publishes subscribes as well, and so hears itself."""
    (program,) = re.findall(r"^```py\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="m") as directory:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=ENVIRONMENT | {"XDG_RUNTIME_DIR": directory},
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout.splitlines() == ["prices.eur {'rate': 1.1}", "True"]
    assert done.stderr == ""


def test_the_parameters_document_is_up_to_date() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text() == markdown.page(), "run `make docs`"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert README.read_text().count("\n") < 150
