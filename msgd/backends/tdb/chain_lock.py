"""The lock of one hash chain of an open tdb, which the Python module lacks and libtdb has.

What is done to one record in several calls must be one step to the others.  The module offers the lock over all of the
file for that: it takes every chain's mutex and two system calls, and holds up all who use the file, whatever their
record.  tdb_chainlock() takes one mutex, and no system call where nobody else is at that chain.

libtdb's handle of the open file stands in the module's object, right behind the head that every Python object has.
What stands there is believed only if it leads to the file's own name, which is the first thing a handle points to;
it is read through /proc/self/mem, which fails where a wrong pointer would crash.  The functions are those that the
module itself is linked with.  Wherever any of this is different, the lock over all of the file does the work, slower.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import tdb

_POINTER = ctypes.sizeof(ctypes.c_void_p)


class ChainLock(NamedTuple):
    """The lock of a record's chain: acquire() waits for it; both return 0 (or None), -1 if it cannot be had.

    Not to be used after the file is closed.
    """

    acquire: Callable[[], int | None]
    release: Callable[[], int | None]


class ChainLocks:
    """The chain locks of an open file."""

    def __init__(self, database: tdb.Tdb) -> None:
        self._database = database
        self._handle = _handle(database)

    @property
    def are_single(self) -> bool:
        """Whether a lock is one chain's; else each is the one over all of the file."""
        return self._handle is not None

    def of(self, key: bytes) -> ChainLock:
        """The lock of the chain that the record `key` is in, or would be."""
        if self._handle is None:
            return ChainLock(self._database.lock_all, self._database.unlock_all)
        datum = _Datum(key, len(key))
        return ChainLock(*(functools.partial(function, self._handle, datum) for function in _functions()))


class _Datum(ctypes.Structure):
    """libtdb's TDB_DATA; it keeps the key alive."""

    _fields_ = (("dptr", ctypes.c_char_p), ("dsize", ctypes.c_size_t))


@functools.cache
def _functions() -> tuple[Callable[..., int], Callable[..., int]]:
    """tdb_chainlock and tdb_chainunlock.  Raises OSError, AttributeError."""
    module = ctypes.PyDLL(tdb.__file__)  # no other thread of this process runs meanwhile, as in the module's own calls
    lock, unlock = module.tdb_chainlock, module.tdb_chainunlock
    for function in (lock, unlock):
        function.argtypes, function.restype = (ctypes.c_void_p, _Datum), ctypes.c_int
    return lock, unlock


def _handle(database: tdb.Tdb) -> ctypes.c_void_p | None:
    """The handle of the open file, None if it cannot be found."""
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
