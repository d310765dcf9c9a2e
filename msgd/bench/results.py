# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The results of a benchmark: figures and counts of single runs, rows of runs, and the whole result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Figure(NamedTuple):
    """A quantity that is measured."""

    name: str
    unit: str
    less_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one run: the figures and the counts by name, and what went wrong; empty if nothing did."""

    figures: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    failure: str = ""


class Spread(NamedTuple):
    """The median, minimum and maximum of several runs."""

    median: float
    minimum: float
    maximum: float


@dataclass(slots=True)
class Row:
    """All runs of one subject with one set of parameters.

    `missing` says why the subject was not measured; it is empty if it was.  `page_2006` is the figure of the 2006 page,
    if the page has one.
    """

    subject: str
    parameters: Mapping[str, int | str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    note: str = ""
    missing: str = ""
    page_2006: float | None = None

    @property
    def failures(self) -> list[str]:
        """The failure of each run that failed, with the number of the run."""
        return [f"run {number}: {one.failure}" for number, one in enumerate(self.outcomes, 1) if one.failure]

    def total(self, count: str) -> int | None:
        """The sum of a count over the runs that have it; None if no run has it."""
        values = [outcome.counts[count] for outcome in self.outcomes if count in outcome.counts]
        return sum(values) if values else None

    def spread(self, figure: str) -> Spread | None:
        """The spread of a figure over the runs that have it; None if no run has it."""
        values = [outcome.figures[figure] for outcome in self.outcomes if figure in outcome.figures]
        return Spread(statistics.median(values), min(values), max(values)) if values else None


@dataclass(slots=True)
class Result:
    """The result of one benchmark.

    The first of `figures` is the one that percentages and pictures show.  `base` names the subject that is 100 %.
    `counts` names the counts that the table shows.  `settings` are those that it was run with.
    `compared` names further figures that the table shows as percentages of the base too.
    """

    benchmark: str
    title: str
    figures: tuple[Figure, ...]
    rows: list[Row]
    settings: Mapping[str, object] = field(default_factory=dict)
    base: str = "tdb"
    counts: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether any run failed."""
        return any(row.failures for row in self.rows)

    def percentage(self, row: Row, figure: str = "") -> float | None:
        """The row's median as a percentage of the base's with the same parameters; None if either is missing.

        The default is the first figure.
        """
        name = figure or self.figures[0].name
        own = row.spread(name)
        for other in self.rows:
            if other.subject == self.base and other.parameters == row.parameters:
                whole = other.spread(name)
                return 100 * own.median / whole.median if own and whole and whole.median else None
        return None
