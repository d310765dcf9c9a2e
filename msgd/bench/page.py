# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench page: put tables and pictures of --json files into a page.

A place for a table is marked with comments:

    <!-- msgbench ping -->
    the previous table
    <!-- end -->

The table and the picture of the `ping` result replace what is between them.
`<!-- msgbench machine -->` marks the place for the description of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgd.bench import plot
from msgd.bench.results import Result
from msgd.bench.tables import Table, table_of

_PLACE = re.compile(r"(<!-- msgbench ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MACHINE = "machine"


def fill(page: Path, results: Sequence[Result], ran_on: Mapping[str, Any]) -> None:
    """Fill in the marked places for which there is a result, and draw the pictures next to the page.

    Raises OSError, and ValueError if the page has no place for a result.
    """
    by_name = {result.benchmark: result for result in results}
    text = page.read_text()
    without_place = by_name.keys() - {match[2] for match in _PLACE.finditer(text)}
    if without_place:
        raise ValueError(f"it has no place <!-- msgbench {min(without_place)} -->")

    def filled(match: re.Match[str]) -> str:
        name = match[2]
        if name == _MACHINE:
            return f"{match[1]}\n{_describe(ran_on)}\n{match[3]}"
        result = by_name.get(name)
        if result is None:
            return match[0]
        picture = page.with_name(f"{page.stem}-{name}.png")
        plot.draw(result, picture)
        table = table_of(result)
        return f"{match[1]}\n{markdown(table)}\n![{table.title}]({picture.name})\n\n{match[3]}"

    page.write_text(_PLACE.sub(filled, text))


def markdown(table: Table) -> str:
    """Return the table in Markdown, with its title above it."""
    rules = [":---" if column in table.text_columns else "---:" for column in range(len(table.headings))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.headings, rules, *table.rows)]
    return f"**{table.title}**\n\n" + "\n".join(lines) + "\n"


def _describe(ran_on: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in ran_on["packages"].items())
    lines = [f"{name}: {value}" for name, value in ran_on.items() if name not in ("packages", "configured")]
    return "".join(f"- {line}\n" for line in [*lines, f"packages: {packages}"])
