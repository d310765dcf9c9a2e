# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The state table of a gateway connection: the ways through it, and what each state allows."""

from __future__ import annotations

import itertools

import pytest

from msgd.daemon.gateway.state import CLIENT_TABLE, OUR_TABLE, Client, ConnectionState, Event, Ours


def after(*events: Event) -> ConnectionState:
    state = ConnectionState()
    for event in events:
        state.on(event)
    return state


def reachable() -> set[Ours]:
    found, unvisited = {Ours.SERVING}, [Ours.SERVING]
    while unvisited:
        for following in OUR_TABLE.get(unvisited.pop(), {}).values():
            if following not in found:
                found.add(following)
                unvisited.append(following)
    return found


def test_every_state_is_reachable_and_all_but_closed_have_a_way_on() -> None:
    assert reachable() == set(Ours)
    assert set(OUR_TABLE) == set(Ours) - {Ours.CLOSED}
    assert set(CLIENT_TABLE) == set(Client)


def test_gone_closes_from_every_state() -> None:
    assert {row[Event.GONE] for row in OUR_TABLE.values()} == {Ours.CLOSED}


def test_closed_is_final() -> None:
    for event in Event:
        state = after(Event.GONE, event)
        assert state.is_closed
        assert not any(
            (state.does_requests, state.takes_messages, state.may_say, state.takes_input, state.reads(has_room=True))
        )


def test_what_cannot_happen_is_a_bug() -> None:
    for events in (
        (Event.RELEASE,),
        (Event.DRAIN,),
        (Event.FLUSHED,),
        (Event.HOLD, Event.HOLD),
        (Event.BYE, Event.BYE),
    ):
        with pytest.raises(KeyError):
            after(*events)


@pytest.mark.parametrize("end", list(itertools.permutations((Event.RELEASE, Event.DRAIN))))
def test_a_held_send_and_a_full_backlog_end_independently(end: tuple[Event, Event]) -> None:
    state = after(Event.HOLD, Event.FILL)
    assert (state.does_requests, state.takes_messages, state.is_full) == (False, False, True)
    state.on(end[0])
    assert not state.does_requests
    state.on(end[1])
    assert state.does_requests


def test_reading_stops_where_a_line_cannot_grow_or_the_backlog_is_full() -> None:
    assert after().reads(has_room=False)
    assert after(Event.HOLD).reads(has_room=True)
    assert not after(Event.HOLD).reads(has_room=False)
    assert not after(Event.FILL).reads(has_room=True)
    assert not after(Event.EOF).reads(has_room=True)


def test_after_the_last_word_input_is_read_to_be_discarded() -> None:
    state = after(Event.HOLD, Event.BYE)
    assert state.has_last_word
    assert state.reads(has_room=False)
    assert not state.may_say
    assert not state.takes_input
    state.on(Event.FLUSHED)
    assert state.reads(has_room=False)
    state.on(Event.EOF)
    assert state.is_closed


def test_the_last_word_of_a_client_that_has_finished_is_flushed_before_the_end() -> None:
    state = after(Event.EOF, Event.BYE)
    assert not state.reads(has_room=True)
    state.on(Event.FLUSHED)
    assert state.reads(has_room=True)
    assert not state.is_closed


def test_a_client_that_finishes_is_served_until_nothing_is_left() -> None:
    state = after(Event.HOLD, Event.EOF)
    assert state.is_finished
    assert not state.does_requests
    state.on(Event.RELEASE)
    assert state.does_requests
    state.on(Event.COMPLETE)
    assert state.is_closed
