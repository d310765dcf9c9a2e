# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The stream transport: AF_UNIX connections that carry messages both ways, kept in a cache.

A message goes from a sender to the endpoint of its receiver through these files:

    backend.py      send()                         the face that the Backend contract asks for
    outgoing.py     written at once, gathered, or queued
    connection.py   write()                        one socket: a stream out, a stream in
    wire/stream.py  pack_frame() ... FrameReader   the bytes
    connection.py   receive()
    incoming.py     receive()                      order across streams, delivery to the endpoint

Beside that way stand

    connecting.py   which connection a process is written to on
    peers.py        the table of the processes written to, and what waits for each
    pool.py         the table of the connections: how many there may be, how one ends
    listener.py     the listening socket: accepting
    poller.py       epoll, the timer, spinning before sleep

Imports go down only: backend; incoming and outgoing; listener and connecting; pool; peers and poller; connection.

The rules, and the proofs of the subtle ones, are at the head of the file that keeps them: ending a connection
(pool.py), simultaneous connect and a full backlog (connecting.py), gathering (outgoing.py), order across connections
(incoming.py).
"""

from msgd.backends.stream.backend import StreamBackend as BACKEND

__all__ = ["BACKEND"]
