# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench compare: show what has changed between two --json files."""

from __future__ import annotations

from collections.abc import Sequence

from msgd.bench.results import Figure, Result, Row, Spread
from msgd.bench.tables import Table, number

_HEADINGS = ("benchmark", "", "parameters", "figure", "old", "new", "new / old", "")


def comparison(old: Sequence[Result], new: Sequence[Result]) -> tuple[Table, list[float]]:
    """Return a table of the rows that both have, and for each figure the factor by which it has improved."""
    before = {_key(result, row): row for result in old for row in result.rows}
    rows, styles, gains = [], [], []
    for result in new:
        for row in result.rows:
            for figure in result.figures:
                other = before.get(_key(result, row))
                spreads = (other.spread(figure.name) if other else None, row.spread(figure.name))
                if spreads[0] is None or spreads[1] is None or not spreads[0].median:
                    continue
                cells, gain, style = _compare(figure, spreads[0], spreads[1])
                parameters = " ".join(f"{name}={value}" for name, value in row.parameters.items())
                rows.append((result.benchmark, row.subject, parameters, f"{figure.name} ({figure.unit})", *cells))
                styles.append(style)
                gains.append(gain)
    return Table("new compared with old, medians", _HEADINGS, rows, frozenset((0, 1, 2, 3, 7)), styles), gains


def _compare(figure: Figure, old: Spread, new: Spread) -> tuple[tuple[str, ...], float, str]:
    ratio = new.median / old.median
    gain = (old.median / new.median if new.median else float("inf")) if figure.less_is_better else ratio
    if new.minimum <= old.maximum and old.minimum <= new.maximum:
        verdict, style = "the runs overlap", "dim"
    else:
        verdict, style = ("better", "green") if gain > 1 else ("worse", "red")
    return (number(old.median), number(new.median), f"{ratio:.2f}", verdict), gain, style


def _key(result: Result, row: Row) -> tuple[object, ...]:
    return (result.benchmark, row.subject, tuple(sorted(row.parameters.items())))
