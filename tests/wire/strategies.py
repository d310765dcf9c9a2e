"""What hypothesis makes of the wire's objects."""

from __future__ import annotations

from hypothesis import strategies as st

from msgd import ServerID
from msgd.wire.server_id import PID_MAX

UINT32_MAX = 0xFFFFFFFF
UINT64_MAX = 0xFFFFFFFFFFFFFFFF

uint32 = st.integers(0, UINT32_MAX)
uint64 = st.integers(0, UINT64_MAX)
server_ids = st.builds(ServerID, st.integers(1, PID_MAX), uint32, uint32, uint64)
"""Addresses of processes that could be."""
wire_server_ids = st.builds(ServerID, uint64, uint32, uint32, uint64)
"""Whatever 24 bytes can say."""
