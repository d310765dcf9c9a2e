# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What libtdb's Python module has no names for: a flag, the error codes, and how they become errors of msgd.

The module raises RuntimeError(code, text) for every error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgd.errors import TransportError

MUTEX_LOCKING = 4096
"""TDB_MUTEX_LOCKING, a flag of tdb_open()."""

CORRUPT, IO_ERROR, LOCK_FAILED, NO_RECORD = 1, 2, 3, 8
"""TDB_ERR_CORRUPT, TDB_ERR_IO, TDB_ERR_LOCK and TDB_ERR_NOEXIST: the first argument of a RuntimeError."""


def missing_record() -> RuntimeError:
    """The error to raise if the record of a living process is missing: the file is damaged.

    If a chain is broken, libtdb reports no damage; it only does not find the records behind the break.
    """
    return RuntimeError(CORRUPT, "a record is missing")


def transport_error(error: RuntimeError) -> TransportError:
    """An error of the module as an error of msgd."""
    return TransportError(f"messages.tdb: {error.args[-1]}; is its file system full?")


@contextlib.contextmanager
def tdb_errors() -> Iterator[None]:
    """Turn the module's errors into TransportError."""
    try:
        yield
    except RuntimeError as error:
        raise transport_error(error) from error
