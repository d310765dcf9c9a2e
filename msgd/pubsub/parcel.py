# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What is to be published, packed but for its number."""

from __future__ import annotations

from typing import NamedTuple

from msgd.errors import MessageTooLarge
from msgd.wire.pubsub import HEADER_SIZE, Data, Kind, pack_data, topic_bytes


class Parcel(NamedTuple):
    """A publication without its number: the fields that pack_publish() takes behind it."""

    topic: bytes
    kind: Kind
    payload: bytes


def pack_parcel(topic: str, data: Data, max_message_size: int) -> Parcel:
    """Check and pack what is to be published.  Raises MessageTooLarge, TypeError, ValueError."""
    parcel = Parcel(topic_bytes(topic), *pack_data(data))
    length = HEADER_SIZE + len(parcel.topic) + len(parcel.payload)
    if length > max_message_size:
        raise MessageTooLarge(
            f"a publication of {length} bytes; msgd:max message size is {max_message_size}: raise it or split the data"
        )
    return parcel
