# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of msgcontrol's subprograms.  One more is one more row, and a file beside this, which is imported if it is
asked for.
"""

from __future__ import annotations

from msgd.tools.msgcontrol.subprogram import Actions, Subprogram


def _events() -> Actions:
    from msgd.tools.msgcontrol.subprograms.events import EVENTS

    return EVENTS


def _monitor() -> Actions:
    from msgd.tools.msgcontrol.subprograms.monitor import MONITOR

    return MONITOR


def _publish() -> Actions:
    from msgd.tools.msgcontrol.subprograms.topics import PUBLISH

    return PUBLISH


def _subscribe() -> Actions:
    from msgd.tools.msgcontrol.subprograms.topics import SUBSCRIBE

    return SUBSCRIBE


def _topics() -> Actions:
    from msgd.tools.msgcontrol.subprograms.topics import TOPICS

    return TOPICS


SUBPROGRAMS: tuple[Subprogram, ...] = (
    Subprogram(
        "events",
        "events auth|dsdb|password|group [--json] [--count N]",
        "print Samba's audit events as they happen",
        _events,
    ),
    Subprogram(
        "monitor",
        "monitor [--type TYPE] [--from PROCESS] [--to PROCESS] [--json | --pcap FILE]",
        "show the messages of the processes that allow it (msgd:monitor = yes), until Ctrl-C",
        _monitor,
    ),
    Subprogram("publish", "publish TOPIC [DATA]", "publish to a topic", _publish),
    Subprogram("subscribe", "subscribe TOPIC", "print what is published", _subscribe),
    Subprogram("topics", "topics", "show who subscribes to which topics", _topics),
)
