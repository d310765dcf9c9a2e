# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A short storm over each messaging type, in each variant; `make storm` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from msgd import Message, ServerID
from tests.backends.variants import Variant, compiled_in
from tests.storm.books import Books, text
from tests.storm.members import NUMBERED
from tests.storm.storm import run


@pytest.mark.parametrize("variant", compiled_in(), ids=lambda variant: variant.name)
def test_short_storm(variant: Variant, scratch: Path) -> None:
    run(variant, scratch, seconds=1, processes=12, seed=1, say=lambda line: None)


ONE, OTHER = ServerID(pid=1, unique_id=11), ServerID(pid=2, unique_id=22)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ([0, 1, 3], "messages are missing, 3 instead of 2"),
        ([1], "messages are missing, 1 instead of 0"),
        ([0, 1, 1], "a message again or out of order, 1 instead of 2"),
        ([0, 2, 1], "a message again or out of order, 1 instead of 3"),
    ],
)
def test_books_see(numbers: list[int], fault: str) -> None:
    """The storm itself: what is lost, doubled or reordered is a fault."""
    books = Books(OTHER)
    for number in numbers:
        books.note(Message(NUMBERED, ONE, OTHER, text(number, OTHER)))
    assert books.faults[-1].endswith(fault)


def test_books_see_a_message_for_an_earlier_process() -> None:
    books = Books(OTHER)
    books.note(Message(NUMBERED, ONE, OTHER, text(0, OTHER._replace(unique_id=23))))
    assert "a message for the unique id 23" in books.faults[0]


def test_books_see_other_bytes() -> None:
    books = Books(OTHER)
    books.note(Message(NUMBERED, ONE, OTHER, text(0, OTHER) + b"?"))
    assert "other bytes than were sent" in books.faults[0]
