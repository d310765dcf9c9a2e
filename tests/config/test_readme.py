"""README: its program is run, and its table of parameters is the code's (a failure says what belongs there)."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from msgd._registry import MESSAGING_MODULES
from msgd.config import PARAMETERS
from tests.support.daemons import ENVIRONMENT, PATIENCE

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("messaging_type", [module.name for module in MESSAGING_MODULES])
def test_the_service_whose_workers_talk(messaging_type: str) -> None:
    """One worker flushes when it alone is told, and all four when all are; in the end none of them is left."""
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
        )  # the pipes end with the last worker
        assert not list(Path(directory, "msg.sock").iterdir())
        assert not list(Path(directory, "msg.lock").iterdir())
    flushed = Counter(re.findall(r"\((\d+), b'42 entries'\)", done.stdout))
    assert sorted(flushed.values()) == [1, 1, 1, 2]


def expected_rows() -> list[str]:
    """One row a parameter, as markdown."""
    rows = []
    for parameter in PARAMETERS:
        configured = parameter.name in ("messaging type", "lock directory", "private dir", "pid directory")
        default = "as configured" if configured else f"`{parameter.default}`" if parameter.default else ""
        rows.append(f"| `{parameter.name}` | {default} | {parameter.help} |")
    return rows


def test_the_table_of_parameters_is_the_code_s() -> None:
    section = README.read_text().partition("\n## Parameters\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `.*` \| .* \| .* \|$", section, re.MULTILINE)
    expected = expected_rows()
    assert rows == expected, "README's rows should be:\n" + "\n".join(expected)
