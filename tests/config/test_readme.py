"""README's table of parameters is the one in the code; the test's message is what belongs there."""

from __future__ import annotations

import re
from pathlib import Path

from msgd.config import PARAMETERS

README = Path(__file__).parents[2] / "README.md"


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
