# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Show progress on stderr while a benchmark runs: a bar on a terminal, a line for each run elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator

from msgd.bench.results import Figure, Outcome
from msgd.bench.tables import number


class Progress:
    """Shows nothing.  The base of the other classes; --quiet uses it."""

    def begin(self, label: str, expected: float) -> None:
        """Show that a run begins, which should take `expected` seconds."""

    def tick(self) -> None:
        """Show the time that has passed."""

    def end(self, label: str, outcome: Outcome, figure: Figure) -> None:
        """Show the outcome of the run."""


class Lines(Progress):
    """Prints a line for each run."""

    def end(self, label: str, outcome: Outcome, figure: Figure) -> None:
        value = outcome.figures.get(figure.name)
        text = f"{number(value)} {figure.unit}" if value is not None else "no figure"
        sys.stderr.write(f"{label}: {f'FAILED: {outcome.failure}' if outcome.failure else text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def showing(title: str, runs: int, *, quiet: bool) -> Iterator[Progress]:
    """Show the progress of this many runs in the way that suits stderr."""
    if quiet:
        yield Progress()
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(title, runs) as bar:
            yield bar
    else:
        yield Lines()


@contextlib.contextmanager
def _bar(title: str, runs: int) -> Iterator[Progress]:
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.fields[title]}", style="bold"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}"),
    )
    # No refresh thread, because this process forks.
    shown = rich.progress.Progress(
        *columns, console=rich.console.Console(stderr=True), auto_refresh=False, transient=True
    )
    task = shown.add_task("", total=runs, title=title)

    class Bar(Progress):
        done = 0
        began = expected = 0.0

        def begin(self, label: str, expected: float) -> None:
            self.began, self.expected = time.monotonic(), max(expected, 0.01)
            shown.update(task, description=label)
            shown.refresh()

        def tick(self) -> None:
            part = min(0.99, (time.monotonic() - self.began) / self.expected)
            shown.update(task, completed=self.done + part)
            shown.refresh()

        def end(self, label: str, outcome: Outcome, figure: Figure) -> None:
            self.done += 1
            shown.update(task, completed=self.done)
            shown.refresh()

    with shown:
        yield Bar()
