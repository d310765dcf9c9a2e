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
Rule 3. take_head() looks whether the head is still there.  If it is not, a signal's handler has dispatched and has done
the work, and what was made ready is worth nothing.
Rule 4. A step allocates nothing that the garbage collector tracks.  Before Python 3.12, an allocation may collect
garbage in the middle of a call into C, and a finalizer or a callback in gc.callbacks that is written in Python lets
handlers in.  The compiled twins switch the collector off for the moment.  Python's own recvmsg() allocates between the
receive and the queue: a handler that dispatches there can get messages out of order.  (The collector ignores what a
handler raises.)

Rejected: to block the signals, which costs two system calls and leaves out those that arrive in another thread; and to
catch the exception and finish, because the next signal may come at that moment.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, compress, repeat
from operator import call, is_
from typing import Any, TypeVar

from msgd.native import native

T = TypeVar("T")

Step = Callable[[], object]

_do_nothing: Step = bool
"""Takes no argument, and returns what nobody looks at."""

_exhaust = deque[object](maxlen=0).extend
"""Takes everything from an iterator, and keeps nothing."""


def do(steps: Iterable[Step]) -> None:
    """Do the steps."""
    _exhaust(map(call, steps))


def head_of(queue: deque[T]) -> T | None:
    """The head of the queue; None if it is empty, where a handler may have emptied it since the caller's look."""
    try:
        return queue[0]
    except IndexError:
        return None


def take_head(queue: deque[Any], head: object, steps: Iterable[Step]) -> bool:
    """Take the head off the queue and do the steps, if it is still this one.  Returns whether it was."""
    done: list[bool] = []
    all_steps: Iterator[Step] = iter([queue.popleft, *steps, partial(done.append, True)])
    is_there = map(is_, map(next, map(iter, (queue,)), (None,)), (head,))
    do(chain.from_iterable(compress((all_steps,), is_there)))
    return bool(done)


def giving(queue: deque[Any], pair: list[Any], give: Callable[[Any], object]) -> Iterator[object]:
    """Each next() takes the head off the queue and gives `pair[1]`, if the head is `pair[0]`; else it does nothing.

    It is take_head() for the path of every message.
    """
    taken = map(give, map(pair.__getitem__, map(bool, map(deque.popleft, repeat(queue)))))  # a head is true: 1
    is_there = map(is_, map(next, map(iter, repeat(queue)), repeat(None)), map(pair.__getitem__, repeat(0)))
    return map(call, map((_do_nothing, taken.__next__).__getitem__, is_there))


def if_empty(queue: deque[Any], received: Iterator[Any]) -> Iterator[object]:
    """Each next() puts what `received` gives into the queue, if the queue is empty; else it does nothing."""
    taken = map(queue.append, received)
    return map(call, map((taken.__next__, _do_nothing).__getitem__, map(bool, repeat(queue))))


def _move_all(messages: deque[T], put: Callable[[T], object]) -> None:
    """Take everything out of the queue, the oldest first, and put each to its next place.

    `put` is a function or method of a built-in type: one in Python would let handlers in, and what they raise would
    cost the message at hand.
    """
    with contextlib.suppress(IndexError):
        _exhaust(map(put, map(deque.popleft, repeat(messages, len(messages)))))


move_all = _move_all if native is None else native.move_all
