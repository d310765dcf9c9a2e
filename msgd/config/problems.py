# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What is wrong in a smb.conf, where, and what follows from it.

Rule 1. A line that is Samba's never stops msgd.  What Samba passes over, msgd passes over (PASSED_OVER); where Samba
        refuses the whole file, msgd uses the rest of it (REFUSED), because a Samba that runs already runs on.
Rule 2. A line that is msgd's own (`msgd:...`, `messaging type`) stops msgd (OWN), because nobody else would notice it.
Rule 3. msgparm shows all of them.  Its exit status is 1 for REFUSED and OWN, as testparm's is for what Samba refuses.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

_MOST_SHOWN = 200


class Weight(IntEnum):
    """What follows from a problem (see the rules above)."""

    PASSED_OVER = 0
    REFUSED = 1
    OWN = 2


class Origin(NamedTuple):
    """Where something is written: a file, by the name that was passed, and a line, counted from 1.

    Line 0 stands for the whole file, where there are no lines (registry.tdb).
    """

    path: str
    line: int

    def __str__(self) -> str:
        """Return `FILE:LINE`, as compilers do."""
        return f"{self.path}:{self.line}" if self.line else self.path


class Problem(NamedTuple):
    """What is wrong, and where.  Problems are sorted by file and line."""

    origin: Origin
    text: str
    weight: Weight = Weight.OWN

    def __str__(self) -> str:
        """Return `FILE:LINE: text`, the line to show."""
        return f"{self.origin}: {self.text}"


def shown(text: str) -> str:
    """Return text from a file in a form that fits one line and holds nothing that a terminal would interpret."""
    short = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return short if short.isprintable() else ascii(short)[1:-1]
