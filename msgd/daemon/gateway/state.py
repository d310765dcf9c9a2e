# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The state of a gateway connection: what may happen next, and nothing else.  No I/O, no clock.

Rule 1.  A connection has two sides, each with its own state.  The client's side says whether the client may still ask
for something, ours what we do for it.  The pair of them is all there is: nobody else keeps a flag.

Rule 2.  Whoever sees something happen reports it as an Event.  CLIENT_TABLE and OUR_TABLE say which state follows.  An
event that a state has no entry for is a bug and raises KeyError.

Rule 3.  Whoever wants to do something asks a property of ConnectionState, never a state by name.

Rule 4.  CLOSED is final: events are ignored in it, since several of them may be reported in one turn of the loop.

Our side:

              HOLD ->
    SERVING ------------ HELD
       |    <- RELEASE     |
       | FILL, DRAIN       | FILL, DRAIN        any of these four -- BYE --> LAST_WORD
       |                   |                    LAST_WORD -- FLUSHED --> LINGERING
      FULL ------- HELD_AND_FULL                LINGERING -- EOF --> CLOSED
            <- RELEASE

COMPLETE leads from SERVING to CLOSED, and GONE leads there from everywhere.

Why LINGERING: closing a socket that holds unread bytes resets the connection, and the client would lose the last word
with it.  So we close our sending side, then read and discard until the client closes or its time is over.

Rejected: one enumeration for the connection as a whole.  Requests being held up, the client being behind and the client
having closed its side are independent of each other, so it would have twice the states and three times the entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class Client(Enum):
    """The client's side."""

    TALKING = auto()
    """It may still send something."""
    FINISHED = auto()
    """It has closed its sending side, or all of the connection."""


class Ours(Enum):
    """Our side."""

    SERVING = auto()
    """Requests are done and messages are taken in."""
    HELD = auto()
    """A `send` waits for room in its receiver's queue; the requests behind it wait, so that they stay in order."""
    FULL = auto()
    """The client's backlog is over its bound: no request is done and no message is taken in until it drains."""
    HELD_AND_FULL = auto()
    """Both."""
    LAST_WORD = auto()
    """The `bye` is the last line of the backlog; what the client sends is discarded."""
    LINGERING = auto()
    """The `bye` has left and our sending side is closed; what the client sends is discarded."""
    CLOSED = auto()
    """The connection is over."""


class Event(Enum):
    """What can happen to a connection."""

    EOF = auto()
    """The client has closed its sending side."""
    HOLD = auto()
    """A `send` has to wait for room in its receiver's queue."""
    RELEASE = auto()
    """That `send` has been answered."""
    FILL = auto()
    """The client's backlog has grown over its bound."""
    DRAIN = auto()
    """The client's backlog is within its bound again."""
    COMPLETE = auto()
    """The client has finished, and nothing is left to do for it."""
    BYE = auto()
    """The `bye` has joined the backlog."""
    FLUSHED = auto()
    """The `bye` has left."""
    GONE = auto()
    """The client has hung up, or the time for its last word is over."""


CLIENT_TABLE: Mapping[Client, Mapping[Event, Client]] = {
    Client.TALKING: {Event.EOF: Client.FINISHED},
    Client.FINISHED: {Event.EOF: Client.FINISHED},
}
"""What follows a state of the client's side; only EOF concerns it."""

OUR_TABLE: Mapping[Ours, Mapping[Event, Ours]] = {
    Ours.SERVING: {
        Event.HOLD: Ours.HELD,
        Event.FILL: Ours.FULL,
        Event.COMPLETE: Ours.CLOSED,
        Event.BYE: Ours.LAST_WORD,
        Event.GONE: Ours.CLOSED,
        Event.EOF: Ours.SERVING,
    },
    Ours.HELD: {
        Event.RELEASE: Ours.SERVING,
        Event.FILL: Ours.HELD_AND_FULL,
        Event.BYE: Ours.LAST_WORD,
        Event.GONE: Ours.CLOSED,
        Event.EOF: Ours.HELD,
    },
    Ours.FULL: {
        Event.DRAIN: Ours.SERVING,
        Event.BYE: Ours.LAST_WORD,
        Event.GONE: Ours.CLOSED,
    },
    Ours.HELD_AND_FULL: {
        Event.RELEASE: Ours.FULL,
        Event.DRAIN: Ours.HELD,
        Event.BYE: Ours.LAST_WORD,
        Event.GONE: Ours.CLOSED,
    },
    Ours.LAST_WORD: {
        Event.RELEASE: Ours.LAST_WORD,
        Event.FLUSHED: Ours.LINGERING,
        Event.GONE: Ours.CLOSED,
        Event.EOF: Ours.LAST_WORD,
    },
    Ours.LINGERING: {
        Event.RELEASE: Ours.LINGERING,
        Event.GONE: Ours.CLOSED,
        Event.EOF: Ours.CLOSED,
    },
}
"""What follows a state of our side."""


class ConnectionState:
    """The state of one connection; see the rules above."""

    def __init__(self) -> None:
        self.client = Client.TALKING
        self.ours = Ours.SERVING
        self.why = "it has closed"
        """Once the connection is over, or the last word is said: the reason, for the log."""

    def on(self, event: Event) -> None:
        """Take note of what has happened.  Raises KeyError if it cannot happen in this state."""
        if self.ours is Ours.CLOSED:
            return
        if event is Event.EOF:
            self.client = CLIENT_TABLE[self.client][event]
        self.ours = OUR_TABLE[self.ours][event]

    @property
    def does_requests(self) -> bool:
        """Whether the next request may be done."""
        return self.ours is Ours.SERVING

    @property
    def takes_messages(self) -> bool:
        """Whether the messaging context may be dispatched."""
        return self.ours not in (Ours.FULL, Ours.HELD_AND_FULL, Ours.CLOSED)

    @property
    def may_say(self) -> bool:
        """Whether a line for the client may join the backlog: until the last word has."""
        return self.ours in (Ours.SERVING, Ours.HELD, Ours.FULL, Ours.HELD_AND_FULL)

    @property
    def takes_input(self) -> bool:
        """Whether bytes from the client are kept.  After the last word they are discarded."""
        return self.may_say

    @property
    def has_last_word(self) -> bool:
        """Whether the last word waits to leave."""
        return self.ours is Ours.LAST_WORD

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self.ours is Ours.CLOSED

    @property
    def is_full(self) -> bool:
        """Whether the client's backlog is over its bound."""
        return self.ours in (Ours.FULL, Ours.HELD_AND_FULL)

    @property
    def is_finished(self) -> bool:
        """Whether the client asks for nothing more."""
        return self.client is Client.FINISHED

    def reads(self, *, has_room: bool) -> bool:
        """Whether to read from the client; `has_room` says whether a line may still grow.

        Where it does not read, the connection must watch for a hangup instead.
        """
        if self.ours is Ours.LINGERING:
            return True
        if self.ours is Ours.HELD and not has_room:
            return False
        return self.client is Client.TALKING and self.ours in (Ours.SERVING, Ours.HELD, Ours.LAST_WORD)
