# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The part of a context that knows the other nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgd.errors import MsgdError
from msgd.messaging.arguments import Data, Type, data_bytes, message_type_number
from msgd.messaging.border import refusals_documented
from msgd.messaging.broadcasting import to_other_nodes
from msgd.messaging.endpoint import Endpoint
from msgd.wire.server_id import ServerID

if TYPE_CHECKING:
    from msgd.wire.ctdb import Node


class Elsewhere:
    """Messaging's calls about other nodes.  Without `clustering = yes` there are none."""

    server_id: ServerID
    _endpoint: Endpoint

    def _check_usable(self) -> None:
        raise NotImplementedError

    def nodes(self) -> list[Node]:
        """The nodes of the cluster, this one included, as they were last known; empty before ctdbd has answered."""
        with self._endpoint.lock:
            self._check_usable()
            cluster = self._endpoint.cluster
            return [] if cluster is None else list(cluster.nodes.values())

    @refusals_documented
    def send_to_other_nodes(self, message_type: Type, data: Data = b"") -> Mapping[int, MsgdError | None]:
        """Send to all processes of the other nodes, and to none of this one.

        By node that is connected: None if its processes were sent the message, or why not.  How many they are, ctdb
        cannot tell.  Raises ForkedContext, ContextClosed; ValueError for a malformed type.
        """
        message = message_type_number(message_type), data_bytes(data)
        return to_other_nodes(self._endpoint, self.server_id, [message])
