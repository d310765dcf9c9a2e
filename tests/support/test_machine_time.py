# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The clock of the tests' bounds: it counts what the machine has worked."""

from __future__ import annotations

import time

from tests.support.machine_time import MOST, MachineTime


def test_it_goes_on_while_the_machine_works() -> None:
    with MachineTime() as clock:
        began, moment = time.monotonic(), clock.now()
        while clock.since(moment) < 0.1:
            pass
        assert time.monotonic() - began >= 0.1 - MOST


def test_it_stands_still_while_a_processor_does() -> None:
    with MachineTime() as clock:
        standing = clock.counting[-1]
        standing.stop()
        moment, began = clock.now(), time.monotonic()
        while time.monotonic() - began < 0.3:
            assert clock.since(moment) == 0
        standing.resume()
        while not clock.since(moment):
            pass
        assert clock.since(moment) <= MOST + time.monotonic() - began - 0.3
