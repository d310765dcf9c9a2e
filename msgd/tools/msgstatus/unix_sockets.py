# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Ask the kernel what waits in the Unix sockets of others (sock_diag(7), as `ss -x` does).

For a datagram socket the kernel tells the length of the first datagram only, for a connection all bytes, and for a
listening socket the number of connections that wait to be accepted.  Any user may ask.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_AND_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_32_BITS = 0xFFFFFFFF
_SHOW_VFS, _SHOW_RQLEN = 0x2, 0x10
_DIAG_VFS, _DIAG_RQLEN = 1, 4

_NLMSG = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE_SIZE = 16
"""struct unix_diag_msg: family, type, state, padding, inode, cookie."""
_ATTRIBUTE = struct.Struct("=HH")
_PAIR = struct.Struct("=II")
_MINOR_BITS = 20
_BUFFER = 1 << 16
_PATIENCE = 2.0
"""Seconds.  The kernel answers at once."""


def waiting_by_path() -> dict[tuple[int, int], int]:
    """Return how much waits in each socket that is bound to a path, by path_key() of that path.

    Connections that were accepted count for the path of the listening socket.  Raises OSError, also if this kernel has
    no unix_diag.
    """
    waiting: Counter[tuple[int, int]] = Counter()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_PATIENCE)
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, _32_BITS, 0, _SHOW_VFS | _SHOW_RQLEN, 0, 0)
        head = _NLMSG.pack(_NLMSG.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_AND_DUMP, 1, 0)
        netlink.send(head + body)
        is_more = True
        while is_more:
            is_more = False
            for kind, data in _messages(netlink.recv(_BUFFER)):
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", data)[0], "the kernel has no unix_diag")
                is_more = kind != _NLMSG_DONE
                if is_more:
                    _count(data, waiting)
    return dict(waiting)


def path_key(status: os.stat_result) -> tuple[int, int]:
    """Return inode and device as the kernel writes them here: 32 bits of each."""
    device = os.major(status.st_dev) << _MINOR_BITS | os.minor(status.st_dev)
    return status.st_ino & _32_BITS, device


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _NLMSG.size:
        length, kind, _, _, _ = _NLMSG.unpack_from(data)
        yield kind, data[_NLMSG.size : length]
        data = data[(length + 3) & ~3 :]


def _count(data: bytes, waiting: Counter[tuple[int, int]]) -> None:
    attributes = dict(_attributes(data[_MESSAGE_SIZE:]))
    if _DIAG_VFS in attributes and _DIAG_RQLEN in attributes:
        inode, device = _PAIR.unpack_from(attributes[_DIAG_VFS])
        waiting[inode, device] += _PAIR.unpack_from(attributes[_DIAG_RQLEN])[0]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(max(length, _ATTRIBUTE.size) + 3) & ~3 :]
