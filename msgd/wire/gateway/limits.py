# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The fixed limits and defaults of the gateway's protocol (docs/gateway.md)."""

from __future__ import annotations

PROTOCOL = 1
"""The version in the answer to `hello`.  It grows when a client that keeps to docs/gateway.md could be misled."""

TAG_LENGTH = 64
"""Characters of an `id` that is a string."""

TAG_NUMBER = (1 << 53) - 1
"""The largest `id` that is a number: the largest that every JSON reader takes exactly."""

MAX_TYPES = 1024
"""Message types that one request may name, and that one client may be registered for."""

MAX_CALLS = 64
"""Calls of one client that may wait for their answers."""

MAX_TIMEOUT = 3600.0
"""Seconds that a `timeout` may be."""

CALL_TIMEOUT = 10.0
"""Seconds that `call` and `ping` wait by default."""

MAX_LINE = 1 << 31
"""Bytes of the longest line that a client takes: an event with the largest message that `msgd:max message size` may
allow."""

MAX_EVENTS = 100_000
"""Messages that may wait in a client to be received; with more of them it refuses to send requests."""
