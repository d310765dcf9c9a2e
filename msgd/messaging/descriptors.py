# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The descriptors that have come with a message: they have one owner at a time, and what nobody takes is closed."""

from __future__ import annotations

import contextlib
import os

from msgd.wire.header import Message


class Descriptors(tuple[int, ...]):
    """Open descriptors; a tuple of their numbers.  They are closed by close(), or with the object, unless taken."""

    is_taken = False

    def take(self) -> tuple[int, ...]:
        """Hand them over: from now on the caller closes them.  Returns nothing if they have been taken before."""
        if self.is_taken:
            return ()
        self.is_taken = True
        return tuple(self)

    def close(self) -> None:
        """Close them, unless they are taken.  A second call does nothing."""
        for fd in self.take():
            with contextlib.suppress(OSError):  # a handler has closed it by its number
                os.close(fd)

    def __del__(self) -> None:
        self.close()


def own_fds(message: Message) -> tuple[Message, Descriptors]:
    """The message with its descriptors in one owner's hands, and the owner."""
    fds = Descriptors(message.take_fds())
    return message._replace(fds=fds), fds
