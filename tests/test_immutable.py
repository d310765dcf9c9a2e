# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Objects that are only read behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import pickle

import pytest

from msgd.errors import QueueFull
from msgd.immutable import Immutable
from msgd.pubsub import Publication
from msgd.results import Broadcast

BROADCAST = Broadcast(1, {7: QueueFull("it does not read")})


def test_nothing_can_be_set() -> None:
    with pytest.raises(AttributeError, match="delivered cannot be set: a Broadcast does not change"):
        BROADCAST.delivered = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="other cannot be set"):
        BROADCAST.other = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="delivered cannot be deleted"):
        del BROADCAST.delivered


def test_equal_are_those_of_one_class_with_equal_attributes() -> None:
    assert Broadcast(2) == Broadcast(2, {}, {})
    assert Broadcast(2) != Broadcast(3)
    assert Broadcast(2) != Publication(2)
    assert Publication(2) != Broadcast(2)
    assert Publication(2, acked={7: 1}) != Publication(2)


def test_it_is_shown_with_all_attributes() -> None:
    assert repr(Broadcast(2, nodes={1: None})) == "Broadcast(delivered=2, failures={}, nodes={1: None})"
    assert repr(Publication(2, acked={7: 1})).startswith("Publication(delivered=2, failures={}, nodes={}, acked={7: 1}")


@pytest.mark.parametrize("one", [Broadcast(2, {}, {1: None}), Publication(2, acked={7: 1})])
def test_copies_are_equal(one: Immutable) -> None:
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one
