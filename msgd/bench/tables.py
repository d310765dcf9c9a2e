# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Print results as tables: in colour on a terminal if rich is installed, otherwise as aligned plain text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import NamedTuple

from msgd.bench.results import Figure, Result, Row


class Table(NamedTuple):
    """A table as text cells.  `text_columns` are left-aligned; `styles` has a rich style for each row."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int]
    styles: Sequence[str]


def number(value: float) -> str:
    """Format a figure with as many digits as are significant."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def table_of(result: Result) -> Table:
    """Return the table of a result, with a line for each row."""
    first, *others = result.figures
    parameters = list(dict.fromkeys(name for row in result.rows for name in row.parameters))
    with_page = any(row.page_2006 is not None for row in result.rows)
    headings = ["", *parameters, f"{first.name} ({first.unit})", "min", "max", f"% of {result.base}"]
    for figure in others:
        headings.append(f"{figure.name} ({figure.unit})")
        if figure.name in result.compared:
            headings.append(f"% of {result.base}")
    headings += result.counts
    headings += ["2006", "2006 %"] if with_page else []
    headings += ["note"]
    rows, styles = [], []
    for row in result.rows:
        cells = [row.subject, *(_cell(row.parameters.get(name)) for name in parameters), *_main_cells(result, row)]
        for figure in others:
            cells.append(_median(row, figure))
            if figure.name in result.compared:
                cells.append(_share(result, row, figure))
        cells += [_cell(row.total(name)) for name in result.counts]
        cells += _page_cells(result, row) if with_page else []
        rows.append([*cells, _note(row)])
        styles.append("red" if row.failures else "dim" if row.missing else "")
    return Table(result.title, headings, rows, frozenset((0, len(headings) - 1)), styles)


def _cell(value: int | str | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _main_cells(result: Result, row: Row) -> list[str]:
    spread = row.spread(result.figures[0].name)
    if row.failures:
        return ["FAILED", "", "", ""]
    if spread is None:
        return ["-", "", "", ""]
    return [*(number(value) for value in spread), _share(result, row, result.figures[0])]


def _share(result: Result, row: Row, figure: Figure) -> str:
    percentage = result.percentage(row, figure.name)
    return "" if percentage is None else f"{percentage:.0f} %"


def _median(row: Row, figure: Figure) -> str:
    spread = row.spread(figure.name)
    return "" if spread is None else number(spread.median)


def _page_cells(result: Result, row: Row) -> list[str]:
    if row.page_2006 is None:
        return ["", ""]
    whole = next(
        (
            other.page_2006
            for other in result.rows
            if other.subject == result.base and other.parameters == row.parameters
        ),
        None,
    )
    return [number(row.page_2006), f"{100 * row.page_2006 / whole:.0f} %" if whole else ""]


def _note(row: Row) -> str:
    return "; ".join(row.failures) or (f"not measured: {row.missing}" if row.missing else row.note)


def plain(table: Table) -> str:
    """Return the table as plain text with aligned columns."""
    lines = [list(table.headings), *map(list, table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headings))]
    lines.insert(1, ["-" * width for width in widths])
    text = [table.title, ""]
    for line in lines:
        cells = (
            cell.ljust(width) if column in table.text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        text.append("  ".join(cells).rstrip())
    return "\n".join(text) + "\n"


def show(table: Table) -> None:
    """Print the table on stdout."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        _show_rich(table)
    else:
        print(plain(table))


def _show_rich(table: Table) -> None:
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    drawn = rich.table.Table(title=table.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    last = len(table.headings) - 1
    for column, heading in enumerate(table.headings):
        drawn.add_column(
            heading,
            justify="left" if column in table.text_columns else "right",
            style="bold cyan" if column == 0 else "",
            no_wrap=column != last,
            overflow="fold",
        )
    for cells, style in zip(table.rows, table.styles, strict=True):
        drawn.add_row(*map(rich.text.Text, cells), style=style)
    rich.console.Console().print(drawn)
