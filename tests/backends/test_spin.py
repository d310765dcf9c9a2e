# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How long a receiver spins before it sleeps: by its last results, and by how busy the processors are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from msgd.backends import spin as module
from msgd.backends.spin import Spinner
from tests.support.harness import Channel, Child


def numbers(spin: Spinner, results: list[bool]) -> list[int]:
    """The number of polls for the next call, after a call whose second poll and those behind it have this result."""
    counted = []
    for result in results:
        looks = iter((False,))
        spin(lambda result=result, looks=looks: next(looks, result))  # type: ignore[misc]
        counted.append(spin.number)
    return counted


def test_first_result_is_returned_at_once() -> None:
    results: Iterator[str] = iter(("", "", "a message", "another"))
    assert Spinner()(lambda: next(results)) == "a message"
    assert list(results) == ["another"]


def test_number_of_polls_without_a_result() -> None:
    spin = Spinner()
    spin.number = 5
    calls: list[int] = []
    assert spin(lambda: calls.append(1)) is None
    assert len(calls) == 5


def test_success_spins_longer_and_failure_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_processors_are_idle", lambda: True)
    few, many = module._FEW, module._MANY
    spin = Spinner()
    assert numbers(spin, [True] * 5) == [2 * few, 4 * few, 8 * few, many, many]
    assert numbers(spin, [False] * 5) == [many // 2, many // 4, many // 8, few, few]


def test_what_was_there_before_is_no_success() -> None:
    spin = Spinner()
    before = spin.number
    assert spin(lambda: True)
    assert spin.many(lambda times: 1) == 1
    assert spin.number == before


def test_many_polls_in_one_call() -> None:
    """The compiled twin says how often it has polled until it found something."""
    spin = Spinner()
    few, asked = spin.number, list[int]()

    def poll(found: int | None) -> Callable[[int], int | None]:
        def polled(times: int) -> int | None:
            asked.append(times)
            return found

        return polled

    assert spin.many(poll(7)) == 7
    assert spin.many(poll(None)) is None
    assert spin.many(poll(0)) == 0
    spin.many(poll(0))
    assert asked == [few, 2 * few, 2 * few, few]


def test_maximum_every_32_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_processors_are_idle", lambda: True)
    counted = numbers(Spinner(), [False] * 100)
    assert [call for call, number in enumerate(counted, 1) if number == module._MANY] == [32, 64, 96]


@pytest.mark.parametrize("crowded", [0, 64])
def test_bound_while_no_processor_is_idle(monkeypatch: pytest.MonkeyPatch, crowded: int) -> None:
    monkeypatch.setattr(module, "_processors_are_idle", lambda: False)
    spin = Spinner(crowded)
    numbers(spin, [True] * module._CHECK_EVERY)
    assert set(numbers(spin, [True] * 100)) == {crowded}
    assert numbers(spin, [False] * 7)[-1] == 0


def test_busy_processes_are_detected() -> None:
    """One more than there are processors, and this one."""

    def work(channel: Channel) -> None:
        channel.send("working")
        while True:
            pass

    busy = [Child(work) for _ in range(len(os.sched_getaffinity(0)) + 1)]
    for child in busy:
        child.hear()
    assert not module._processors_are_idle()
    for child in busy:
        child.kill()
