# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Read what Samba's registry sets: `include = registry` and `config backend = registry` in a smb.conf.

Samba keeps it in the file registry.tdb in its state directory, under a key for each section:

    SAMBA_REGVAL\\HKLM\\SOFTWARE\\SAMBA\\SMBCONF\\GLOBAL and a NUL

The value is the number of values (u32), and for each its name with a NUL, its type (u32), its length (u32) and its
bytes.  Strings (type 1) and lists of strings (type 7) are UTF-16 with NULs.  All numbers are little-endian.  Samba's
`net conf setparm global NAME VALUE` writes such a value; `net conf setincludes` writes the list `includes`.  This was
read from files that Samba 4.17 wrote.

Rule 1. The file is opened read-only and closed again at once.  libtdb's read locks make a writer's change visible
        whole.  Only Samba's own user may open the file, so no stranger can hold a lock of it.
Rule 2. libtdb refuses a file that the process has open already, so one thread reads at a time.
Rule 3. A file of another version, or one that does not fit the description above, is refused, and not half read.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

_GLOBAL = b"SAMBA_REGVAL\\HKLM\\SOFTWARE\\SAMBA\\SMBCONF\\GLOBAL\0"
_VERSION_KEY = b"INFO/version\0"
_VERSION = 3
_NUMBER = struct.Struct("<I")
_TYPE_AND_LENGTH = struct.Struct("<II")
_STRING, _STRINGS = 1, 7
_INCLUDES = "includes"

_one_at_a_time = threading.Lock()


def read_registry(path: str) -> list[tuple[str, str]]:
    """Return the names and values in the registry's [global], in their order; includes come last, as in Samba.

    Raises FileNotFoundError if there is no registry, other OSError if it cannot be opened, ValueError if it cannot be
    understood.
    """
    try:
        import tdb  # slow to import, and rarely needed
    except ImportError:
        raise ValueError("it cannot be read without Python's tdb module: install python3-tdb") from None
    with _one_at_a_time:
        database = tdb.Tdb(path, 0, tdb.DEFAULT, os.O_RDONLY)
        try:
            version, values = database.get(_VERSION_KEY), database.get(_GLOBAL)
        except RuntimeError as error:
            raise ValueError(f"it cannot be read ({error}); is it damaged?") from None
        finally:
            database.close()
    if version != _NUMBER.pack(_VERSION):
        raise ValueError(f"it is not a registry of version {_VERSION}, which Samba 4 writes")
    return [] if values is None else _settings(values)


def _settings(data: bytes) -> list[tuple[str, str]]:
    settings: list[tuple[str, str]] = []
    includes: list[tuple[str, str]] = []
    try:
        for name, kind, content in _values(data):
            if name.lower() == _INCLUDES and kind == _STRINGS:
                includes += (("include", text) for text in content.decode("utf-16-le").split("\0") if text)
            elif kind == _STRING:
                settings.append((name, content.decode("utf-16-le").rstrip("\0")))
            else:
                raise ValueError
    except (struct.error, ValueError):  # ValueError: no NUL, not UTF-16, or another type
        raise ValueError("its [global] is not in the form that Samba writes; is it damaged?") from None
    return settings + includes


def _values(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    (number,) = _NUMBER.unpack_from(data)
    position = _NUMBER.size
    for _ in range(number):
        end = data.index(b"\0", position)
        name = data[position:end].decode("utf-8")
        kind, length = _TYPE_AND_LENGTH.unpack_from(data, end + 1)
        position = end + 1 + _TYPE_AND_LENGTH.size + length
        if position > len(data):
            raise ValueError
        yield name, kind, data[position - length : position]
