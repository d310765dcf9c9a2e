# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of msgcontrol's subprograms.  One more is one more row, from a file beside this."""

from __future__ import annotations

from msgd.tools.msgcontrol.subprogram import Subprogram
from msgd.tools.msgcontrol.subprograms import events, monitor, topics

SUBPROGRAMS: tuple[Subprogram, ...] = (events.EVENTS, monitor.MONITOR, *topics.TOPICS)
