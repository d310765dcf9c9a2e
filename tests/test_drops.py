# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Counting drops: a signal's handler that drops something in the middle of it waits for nobody."""

from __future__ import annotations

import logging

import pytest

from msgd.drops import Drops, Pace


def test_drop_within_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = Drops(logging.getLogger("msgd"))
    due = Pace.due

    def interrupted(self: Pace, reason: str, number: int = 1) -> int:
        monkeypatch.undo()
        drops("of a user not to be heard", "in a signal's handler")
        return due(self, reason, number)

    monkeypatch.setattr(Pace, "due", interrupted)
    drops("malformed or forged", "outside")
    assert drops.counts == {"malformed or forged": 1, "of a user not to be heard": 1}
