# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the documentation shows works: the programs of docs/api.md and docs/pubsub.md, and examples/, are run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msgd._registry import MESSAGING_MODULES
from tests.support.daemons import ENVIRONMENT, PATIENCE

ROOT = Path(__file__).parents[1]
TYPES = [module.name for module in MESSAGING_MODULES]


def programs(page: str, *names: str) -> dict[str, str]:
    """The programs of a page, by the names given here."""
    text = (ROOT / "docs" / page).read_text()
    return dict(zip(names, re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL), strict=True))


PROGRAMS = programs("api.md", "messaging", "requests", "threads", "asyncio")
PUBSUB_PROGRAMS = programs("pubsub.md", "sync", "cache", "asyncio")
PUBSUB_EXPECTED = {
    "sync": "prices.eur {'rate': 1.1}\nTrue\n",
    "cache": "looking up 7\nlooking up 7\n",
    "asyncio": "prices.eur 1.1\n",
}
EXPECTED = {
    "messaging": r"hello from pid \d+\n",
    "requests": r"b'QUIET'\n3\nTrue\n",
    "threads": re.escape(f"{[b'%d%d' % (n, n) for n in range(8)]}\n"),
    "asyncio": r"\[b'one!', b'two!'\]\nb'news'\n",
}


def run(*command: str) -> str:
    """What the program prints; it must exit with 0 and say nothing on stderr but what msgd logs."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("messaging_type", TYPES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_of_the_page(scratch: Path, name: str, messaging_type: str) -> None:
    program = PROGRAMS[name].replace(
        "lock_directory=DIRECTORY)", f'lock_directory=DIRECTORY, messaging_type="{messaging_type}")'
    )
    assert re.fullmatch(EXPECTED[name], run("-c", program.replace("DIRECTORY", repr(str(scratch / "run")))))


@pytest.mark.parametrize("name", PUBSUB_PROGRAMS)
def test_program_of_the_pubsub_page(scratch: Path, name: str) -> None:
    if name == "cache":
        pytest.importorskip("cachetools", reason="cachetools is not installed")
    output = run("-c", PUBSUB_PROGRAMS[name].replace("DIRECTORY", repr(str(scratch / "run"))))
    assert output == PUBSUB_EXPECTED[name]


def test_prefork_service() -> None:
    output = run("examples/prefork_service.py", "3").splitlines()
    assert len(output) == 4
    assert all(re.fullmatch(r"worker \d+ dropped \d+ entries", line) for line in output[:3])
    assert output[3] == "3 workers have ended"


def test_asyncio_service() -> None:
    output = run("examples/asyncio_service.py").splitlines()
    assert output[0] == "squares: " + " ".join(str(n * n) for n in range(20))
    assert output[-1] == "the server has ended"


def test_passing_descriptors() -> None:
    assert run("examples/passing_descriptors.py") == "written by the child\n"


@pytest.mark.parametrize(
    "linter",
    [
        ("hadolint", "examples/containers/Dockerfile"),
        ("check-jsonschema", "--builtin-schema=vendor.compose-spec", "examples/containers/compose.yaml"),
    ],
    ids=lambda linter: linter[0],
)
def test_containers(linter: tuple[str, ...]) -> None:
    """No container runtime has to be here: linters read the files."""
    program = shutil.which(linter[0], path=Path(sys.executable).parent)
    if program is None:
        pytest.skip(f"{linter[0]} is not installed")
    done = subprocess.run(
        [program, *linter[1:]], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
