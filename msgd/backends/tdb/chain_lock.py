# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lock of one hash chain of an open tdb file, which libtdb has and its Python module does not offer.

Several calls on one record must be one step to other processes.  The Python module offers only the lock over the whole
file for that.  It takes the mutex of every chain and two system calls, and it holds up every process that uses the
file, whatever record that process works on.  tdb_chainlock() takes one mutex, and makes no system call if nobody else
uses that chain.

How the handle of the open file is found.  The module's object holds a pointer to libtdb's handle right behind the head
that every Python object has.  The pointer is trusted only if it leads to the file's own name, since the first member of
a handle points to that.  It is followed through /proc/self/mem: there a wrong pointer is an error, not a crash.  The
functions are taken from the library that the module itself is linked with.  Wherever any of this is different, the lock
over the whole file is used instead; it is slower and just as correct.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import tdb

from msgd.backends.tdb.libtdb import LOCK_FAILED

_POINTER = ctypes.sizeof(ctypes.c_void_p)

_CALLED = ("tdb_chainlock", "tdb_chainunlock", "tdb_parse_record", "tdb_store", "tdb_append")
"""The functions that the compiled hot path calls, in the order of its struct tdb_library."""


class ChainLock(NamedTuple):
    """The lock of the hash chain of one record.  Do not use it after the file is closed.

    acquire() blocks until the lock is held.  Both functions return 0 or None on success, and -1 on failure.
    """

    acquire: Callable[[], int | None]
    release: Callable[[], int | None]

    def lock(self) -> None:
        """Acquire the lock; raise RuntimeError, as the module does, if that fails."""
        if self.acquire():
            raise RuntimeError(LOCK_FAILED, "a record cannot be locked")


class ChainLocks:
    """The chain locks of one open file."""

    def __init__(self, database: tdb.Tdb) -> None:
        self._database = database
        self._handle = _handle(database)

    @property
    def are_single(self) -> bool:
        """Whether each lock covers one chain only; if not, each is the lock over the whole file."""
        return self._handle is not None

    def addresses(self) -> tuple[int, ...] | None:
        """Where libtdb's handle is, and the functions that the compiled hot path calls with it; None if not known."""
        if self._handle is None or self._handle.value is None:
            return None
        try:
            module = ctypes.PyDLL(tdb.__file__)
            found = [ctypes.cast(getattr(module, name), ctypes.c_void_p).value or 0 for name in _CALLED]
        except (OSError, AttributeError):
            return None
        return self._handle.value, *found

    def of(self, key: bytes) -> ChainLock:
        """The lock of the chain to which the record `key` belongs, whether the record exists or not."""
        if self._handle is None:
            return ChainLock(self._database.lock_all, self._database.unlock_all)
        datum = _Datum(key, len(key))
        return ChainLock(*(functools.partial(function, self._handle, datum) for function in _functions()))


class _Datum(ctypes.Structure):
    """libtdb's TDB_DATA.  It keeps the key alive."""

    _fields_ = (("dptr", ctypes.c_char_p), ("dsize", ctypes.c_size_t))


@functools.cache
def _functions() -> tuple[Callable[..., int], Callable[..., int]]:
    """tdb_chainlock and tdb_chainunlock.  Raises OSError or AttributeError if they are not there."""
    module = ctypes.PyDLL(tdb.__file__)  # keeps the GIL, as the module's own calls do
    lock, unlock = module.tdb_chainlock, module.tdb_chainunlock
    for function in (lock, unlock):
        function.argtypes, function.restype = (ctypes.c_void_p, _Datum), ctypes.c_int
    return lock, unlock


def _handle(database: tdb.Tdb) -> ctypes.c_void_p | None:
    """libtdb's handle of the open file; None if it cannot be found."""
    start = object.__basicsize__
    if type(database).__basicsize__ < start + _POINTER:
        return None
    name = os.fsencode(database.filename) + b"\0"
    address = ctypes.c_size_t.from_address(id(database) + start).value
    try:
        _functions()
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            name_address = int.from_bytes(os.pread(memory, _POINTER, address), sys.byteorder)
            is_handle = os.pread(memory, len(name), name_address) == name
        finally:
            os.close(memory)
    except (OSError, OverflowError, AttributeError):
        return None
    return ctypes.c_void_p(address) if is_handle else None
