# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Hypothesis strategies for the objects of the wire."""

from __future__ import annotations

from hypothesis import strategies as st

from msgd import ServerID
from msgd.wire.server_id import PID_MAX

UINT32_MAX = 0xFFFFFFFF
UINT64_MAX = 0xFFFFFFFFFFFFFFFF

uint32 = st.integers(0, UINT32_MAX)
uint64 = st.integers(0, UINT64_MAX)
server_ids = st.builds(ServerID, st.integers(1, PID_MAX), uint32, uint32, uint64)
"""Addresses that a process can have."""
wire_server_ids = st.builds(ServerID, uint64, uint32, uint32, uint64)
"""Any value that fits the 24 bytes."""
