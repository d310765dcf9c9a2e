# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which errors say that the system has run out of something: descriptors or memory.

They say nothing about the work at hand, and may be gone a moment later.  A daemon must not end for them.
"""

from __future__ import annotations

import errno

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_shortage(error: BaseException) -> bool:
    """Whether this error, or the one that it was raised from, tells of a shortage."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _SHORTAGES):
            return True
        cause = cause.__cause__
    return False
