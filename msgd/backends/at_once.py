# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Steps that no signal's handler can come between.

A handler may raise at any moment, or dispatch; and what has been received must be in exactly one place all the time.
Python runs the handlers of signals between two instructions of its interpreter, never inside of a call into C.  So the
functions here make one call into C of several steps.  Rules for those who use them:

Rule 1. A step is a function of a built-in type, or a functools.partial of one, with arguments that are ready.  One that
is written in Python would let handlers in.
Rule 2. What is received goes into a queue in the same call (`next(map(queue.append, map(receive, ...)))`), and stays at
its head until everything that follows from it is ready.  Up to then nothing is changed, so it can all be done again.
Rule 3. Whoever finds the queue empty gets IndexError: a signal's handler has dispatched, and has done the work.

Rejected: to block the signals, which costs two system calls and leaves out those that arrive in another thread; and to
catch the exception and finish, because the next signal may come at that moment.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, compress, repeat
from operator import call
from typing import TypeVar

from msgd.native import native

T = TypeVar("T")

Step = Callable[[], object]

_exhaust = deque[object](maxlen=0).extend
"""Takes everything from an iterator, and keeps nothing."""


def do(steps: Iterable[Step]) -> None:
    """Do the steps."""
    _exhaust(map(call, steps))


def take_head(queue: deque[T], steps: Iterable[Step]) -> None:
    """Take the head off the queue, which must not be false, and do the steps.

    Raises IndexError, and does nothing, if the queue is empty.
    """
    _exhaust(map(call, chain.from_iterable(compress((steps,), map(deque.popleft, (queue,))))))


def _move_all(messages: deque[T], put: Callable[[T], object]) -> None:
    """Take everything out of the queue, the oldest first, and put each to its next place."""
    with contextlib.suppress(IndexError):
        _exhaust(map(put, map(deque.popleft, repeat(messages, len(messages)))))


move_all = _move_all if native is None else native.move_all
