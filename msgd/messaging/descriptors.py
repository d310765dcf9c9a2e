# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The descriptors that have come with a message: they have one owner at a time, and what nobody takes is closed."""

from __future__ import annotations

import os
from functools import partial

from msgd.backends.at_once import do
from msgd.wire.header import Message


class Descriptors(tuple[int, ...]):
    """Open descriptors; a tuple of their numbers.

    After own(), they are closed by close(), or with the object, unless somebody has taken them.
    """

    _is_owner = False
    _is_kept = False

    def own(self) -> None:
        """From now on this object answers for them, and no other."""
        self._is_owner = True

    def keep(self) -> None:
        """Let close_unless_kept() pass: they stay open as long as the object."""
        self._is_kept = True

    @property
    def is_kept(self) -> bool:
        """Whether keep() was called."""
        return self._is_kept

    def take(self) -> tuple[int, ...]:
        """Hand them over: from now on the caller closes them.  Returns nothing if they have been taken before."""
        if not self._is_owner:
            return ()
        self._is_owner = False
        return tuple(self)

    def close(self) -> None:
        """Close them, unless they are taken.  A second call does nothing.

        It is one step, so that an exception of a signal's handler leaves none open.  closerange() passes over those
        that a handler has closed by their numbers.
        """
        if self._is_owner:
            do([partial(setattr, self, "_is_owner", False), *(partial(os.closerange, fd, fd + 1) for fd in self)])

    def __del__(self) -> None:
        self.close()


def own_fds(message: Message) -> tuple[Message, Descriptors]:
    """The message with its descriptors in another owner's hands, and that owner."""
    fds = Descriptors(message.take_fds())
    fds.own()
    return message._replace(fds=fds), fds


def with_descriptors(message: Message) -> Message:
    """The message, with Descriptors in place of the numbers that the transport has given; own() must follow.

    The step in between is the caller's: it puts this message in the place of the other.  If an exception comes before
    that, the other still has its open descriptors, which nobody closes twice.
    """
    return message if isinstance(message.fds, Descriptors) else message._replace(fds=Descriptors(message.fds))


def own(message: Message) -> None:
    """Let the message's Descriptors answer for them."""
    if isinstance(message.fds, Descriptors):
        message.fds.own()


def keep(message: Message) -> None:
    """Leave the descriptors of an answer open for the caller that waits for it."""
    if isinstance(message.fds, Descriptors):
        message.fds.keep()


def close_unless_kept(message: Message) -> None:
    """The handlers have run: close what none has taken, unless the message is an answer."""
    if isinstance(message.fds, Descriptors) and not message.fds.is_kept:
        message.fds.close()
