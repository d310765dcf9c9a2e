"""How long a receiver spin before it sleeps, by what comes of it and by who else wants to run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from msgd.backends import spin
from msgd.backends.spin import Looks
from tests.support.harness import Channel, Child


def numbers(one: Looks, found: list[bool]) -> list[int]:
    """How often it is about to look after each of these calls."""
    counted = []
    for is_found in found:
        one(lambda is_found=is_found: is_found)  # type: ignore[misc]
        counted.append(one.number)
    return counted


def test_what_is_found_is_returned_at_once() -> None:
    came: Iterator[str] = iter(("", "", "a message", "another"))
    assert Looks()(lambda: next(came)) == "a message"
    assert list(came) == ["another"]


def test_in_vain_it_looks_as_often_as_it_is_told() -> None:
    one = Looks()
    one.number = 5
    calls: list[int] = []
    assert one(lambda: calls.append(1)) is None
    assert len(calls) == 5


def test_it_looks_longer_while_it_finds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "_processors_are_free", lambda: True)
    few, many = spin._FEW, spin._MANY
    one = Looks()
    assert numbers(one, [True] * 5) == [2 * few, 4 * few, 8 * few, many, many]
    assert numbers(one, [False] * 5) == [many // 2, many // 4, many // 8, few, few]


def test_from_time_to_time_it_looks_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "_processors_are_free", lambda: True)
    counted = numbers(Looks(), [False] * 100)
    assert [call for call, number in enumerate(counted, 1) if number == spin._MANY] == [32, 64, 96]


@pytest.mark.parametrize("crowded", [0, 64])
def test_it_looks_no_more_than_pays_where_others_want_to_run(monkeypatch: pytest.MonkeyPatch, crowded: int) -> None:
    monkeypatch.setattr(spin, "_processors_are_free", lambda: False)
    one = Looks(crowded)
    numbers(one, [True] * spin._CHECK_AFTER)
    assert set(numbers(one, [True] * 100)) == {crowded}
    assert numbers(one, [False] * 5)[-1] == min(crowded, spin._FEW)


def test_busy_processes_are_seen() -> None:
    """One more than there are processors, and this one."""

    def turn(channel: Channel) -> None:
        channel.send("turning")
        while True:
            pass

    busy = [Child(turn) for _ in range(len(os.sched_getaffinity(0)) + 1)]
    for child in busy:
        child.hear()
    assert not spin._processors_are_free()
    for child in busy:
        child.kill()
