# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which message types a client may send (msgd:allow types)."""

from __future__ import annotations

import logging

from msgd.daemon.gateway.peer import Peer
from msgd.daemon.settings import Settings
from msgd.daemon.shared_pace import Told
from msgd.errors import NotAllowed
from msgd.events import TYPE_REFUSED, and_others, fields
from msgd.wire.message_types import type_name

logger = logging.getLogger("msgd.daemon")


class SendPermission:
    """What `peer` may send with the settings in force; refusals are logged once a second at most for each user."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self._peer = peer
        self._settings = settings

    def check(self, message_type: int) -> None:
        """Raise NotAllowed unless the client is root or the type is allowed."""
        if self._peer.uid == 0 or self._settings.type_rules.allow(message_type):
            return
        name = type_name(message_type)
        if number := self._settings.pace.due(Told.TYPE_REFUSED, self._peer.uid):
            about_it = fields(TYPE_REFUSED, **self._peer.fields, MESSAGE_TYPE=name, NUMBER=number)
            text = "%s may not send %s%s; msgd:allow types says which may"
            logger.warning(text, self._peer, name, and_others(number), extra=about_it)
        raise NotAllowed(f"{name} may not be sent by this user; msgd:allow types says which types may be")
