# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Draw results: bars beside those of the 2006 page, or curves over message sizes or the number of processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgd.bench.results import Result, Row

CURVES = ("size", "scale")
"""The benchmarks that are drawn as curves over their parameter."""

_SUFFIXES = (".png", ".svg", ".pdf")
_WIDTH = 8.0
_DPI = 80
_LOGARITHMIC = 30
"""The scale is logarithmic if the longest bar is more than this many times the shortest."""

_TODAY, _PAGE = "#2a6f97", "#c9a227"


def missing(path: Path) -> str:
    """Return the reason why no picture can be written to this file; an empty string if it can."""
    if path.suffix.lower() not in _SUFFIXES:
        return f"a picture's name ends in {', '.join(_SUFFIXES)}"
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed (Debian's python3-matplotlib, or pip install matplotlib)"
    return ""


def draw(result: Result, path: Path) -> None:
    """Draw the result into a file for which missing() gives no reason.  Raises OSError."""
    from matplotlib.figure import Figure

    rows = [row for row in result.rows if row.spread(result.figures[0].name) is not None]
    if result.benchmark in CURVES:
        drawing = Figure(figsize=(_WIDTH, 4.5), layout="constrained")
        _draw_curves(drawing.subplots(1, len(result.figures), squeeze=False)[0], result, rows)
    else:
        drawing = Figure(figsize=(_WIDTH, 1.4 + 0.36 * len(rows)), layout="constrained")
        with_page = any(row.page_2006 is not None for row in rows)
        columns = drawing.subplots(1, 2, sharey=True, squeeze=False)[0] if with_page else [drawing.subplots()]
        _draw_bars(columns[0], result, rows)
        if with_page:
            _draw_percentages(columns[1], result, rows)
    labelled, labels = _legend(drawing)
    if labels:
        drawing.legend(labelled, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    drawing.suptitle(result.title, fontsize="medium", wrap=True)
    drawing.savefig(path, dpi=_DPI)


def _legend(drawing: Any) -> tuple[list[Any], list[str]]:
    """The labelled objects of all panels, and their labels, each label once."""
    labelled = {
        label: handle for axes in drawing.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    return list(labelled.values()), list(labelled)


def _label(row: Row) -> str:
    return ", ".join([row.subject, *(f"{value} {name}" for name, value in row.parameters.items())])


def _draw_bars(axes: Any, result: Result, rows: Sequence[Row]) -> None:
    """The medians, with whiskers from the minimum to the maximum."""
    figure = result.figures[0]
    spreads = [spread for row in rows if (spread := row.spread(figure.name))]
    medians = [spread.median for spread in spreads]
    places = range(len(rows))
    axes.barh(
        places,
        medians,
        xerr=[
            [spread.median - spread.minimum for spread in spreads],
            [spread.maximum - spread.median for spread in spreads],
        ],
        color=_TODAY,
        ecolor="#555555",
        capsize=2,
    )
    axes.set_yticks(places, [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{figure.name} ({figure.unit})")
    if medians and max(medians) > _LOGARITHMIC * min(medians) > 0:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", labelsize="small")


def _draw_percentages(axes: Any, result: Result, rows: Sequence[Row]) -> None:
    """For each row with a figure of the 2006 page, draw two bars: the percentage of the base now, and in 2006."""
    bases = {tuple(row.parameters.items()): row.page_2006 for row in result.rows if row.subject == result.base}
    for place, row in enumerate(rows):
        today, base = result.percentage(row), bases.get(tuple(row.parameters.items()))
        if row.page_2006 is not None and today is not None and base:
            page = 100 * row.page_2006 / base
            axes.barh(place - 0.2, today, height=0.38, color=_TODAY, label="now")
            axes.barh(place + 0.2, page, height=0.38, color=_PAGE, label="2006")
    axes.set_xlabel(f"% of {result.base}")


def _draw_curves(columns: Sequence[Any], result: Result, rows: Sequence[Row]) -> None:
    """Draw a panel for each figure, with a curve and the range of the runs for each subject."""
    for axes, figure in zip(columns, result.figures, strict=True):
        for subject in dict.fromkeys(row.subject for row in rows):
            points = [
                (max(1, int(next(iter(row.parameters.values())))), spread)
                for row in rows
                if row.subject == subject and (spread := row.spread(figure.name)) and spread.median
            ]
            at = [x for x, _ in points]
            (line,) = axes.plot(at, [spread.median for _, spread in points], marker="o", markersize=3, label=subject)
            axes.fill_between(
                at,
                [spread.minimum for _, spread in points],
                [spread.maximum for _, spread in points],
                color=line.get_color(),
                alpha=0.15,
            )
        axes.set_xscale("log", base=2 if result.benchmark == "size" else 10)
        if result.benchmark == "size":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(next(iter(rows[0].parameters)) if rows else "")
        axes.set_ylabel(f"{figure.name} ({figure.unit})")
