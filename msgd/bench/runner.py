# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Run the cases of a benchmark in turn, A B C A B C, so that a temporary disturbance affects all of them alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgd.bench.progress import showing
from msgd.bench.results import Figure, Outcome, Row
from msgd.bench.subjects import Subject
from msgd.bench.workers import RunFailed, Team
from msgd.config import Config
from msgd.errors import MsgdError

Run = Callable[[Team, Path], Outcome]
Parameters = Mapping[str, int | str]


class Session(NamedTuple):
    """What all benchmarks have in common.

    `config` holds the parameters before a subject overrides some.  Scratch directories are made in `directory`.  A run
    measures for `seconds`.  If no message arrives for `patience` seconds, one is taken to be lost.  The processes are
    bound to `cpus` in turn; if there are none, they are not bound.
    """

    config: Config
    directory: Path
    seconds: float
    runs: int
    patience: float
    cpus: Sequence[int] = ()
    quiet: bool = False


class Case(NamedTuple):
    """A row of the table, and the function that makes one run for it."""

    row: Row
    run: Run


def cases_of(
    session: Session,
    subjects: Sequence[Subject],
    run: Callable[[Team, Config, Parameters], Outcome],
    parameters: Sequence[Parameters] = ({},),
) -> list[Case]:
    """Return a case for each subject with each set of parameters."""

    def case(subject: Subject, chosen: Parameters) -> Case:
        row = Row(subject.name, chosen, note=subject.description)
        return Case(row, lambda team, directory: run(team, subject.config(session.config, directory), chosen))

    return [case(subject, chosen) for chosen in parameters for subject in subjects]


def interleave(session: Session, title: str, figure: Figure, cases: Sequence[Case]) -> list[Row]:
    """Run each case that is not missing `session.runs` times, and return all rows with their outcomes."""
    present = [case for case in cases if not case.row.missing]
    with showing(title, session.runs * len(present), quiet=session.quiet) as progress:
        for number in range(1, session.runs + 1):
            for row, run in present:
                label = f"{_label(row)}, run {number} of {session.runs}"
                progress.begin(label, session.seconds)
                with (
                    tempfile.TemporaryDirectory(dir=session.directory, prefix="msgbench") as directory,
                    Team(session.cpus, progress.tick) as team,
                ):
                    try:
                        outcome = run(team, Path(directory))
                    except (RunFailed, MsgdError) as error:
                        outcome = Outcome(failure=str(error).strip())
                row.outcomes.append(outcome)
                progress.end(label, outcome, figure)
    return [case.row for case in cases]


def _label(row: Row) -> str:
    return " ".join([row.subject, *(f"{name}={value}" for name, value in row.parameters.items())])
