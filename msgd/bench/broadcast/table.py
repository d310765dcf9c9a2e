# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The list of the other systems, in the order of the table."""

from __future__ import annotations

from msgd.bench.broadcast.base import Broadcaster
from msgd.bench.broadcast.floor import BroadcastFloor
from msgd.bench.broadcast.nats_server import Nats
from msgd.bench.broadcast.redis_publish import RedisPublish
from msgd.bench.broadcast.zeromq import ZeroMqPublish

PUBSUB_PEERS: tuple[Broadcaster, ...] = (ZeroMqPublish(), RedisPublish(), Nats())
"""Those that have topics."""

BROADCAST_PEERS: tuple[Broadcaster, ...] = (*PUBSUB_PEERS, BroadcastFloor())
