# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The list of all peers, in the order of the table."""

from __future__ import annotations

from msgd.bench.peers.asyncio_streams import AsyncioStreams
from msgd.bench.peers.base import Peer
from msgd.bench.peers.dbus import DBus
from msgd.bench.peers.iceoryx import Iceoryx
from msgd.bench.peers.multiprocessing_connection import MultiprocessingConnection
from msgd.bench.peers.nanomsg import Nng
from msgd.bench.peers.programs import DatagramFloor, Smbtorture, StreamFloor
from msgd.bench.peers.redis_server import Redis
from msgd.bench.peers.zeromq import ZeroMq

PEERS: tuple[Peer, ...] = (
    ZeroMq(),
    Nng(),
    MultiprocessingConnection(),
    AsyncioStreams(),
    Iceoryx(),
    Redis(),
    DBus(),
    DatagramFloor(),
    StreamFloor(),
    Smbtorture(),
)

TIMED_PEERS: tuple[Peer, ...] = tuple(peer for peer in PEERS if not isinstance(peer, DBus | Smbtorture))
"""Those that measure each round trip: D-Bus has a loop of its own, and smbtorture reports a rate only."""
