# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The events that msgd reports to the systemd journal: one MESSAGE_ID for each kind, and the fields that go with it.

Pass `extra=fields(CONNECTED, PEER_PID=1234)` to a logger.  The journal stores the fields with the entry, so that
`journalctl MESSAGE_ID=...` and `journalctl PEER_UID=1000` find it; every other log shows the text alone.
docs/errors-and-log.md says what each event means and what to do about it.
"""

from __future__ import annotations

READY = "e5fa546292364b71ab8348a19b18aabd"
STOPPING = "6da6ea7b4cc840499293017e11b10091"
RELOADED = "0d102828a0b5492fad030eefa2664399"
NOT_RELOADED = "a8993ed90056f050905a48abd7f4024a"
CLEANED_UP = "ee0e2798c34b43b4be83f7b93af13116"
CONNECTED = "d08fc07c041a4c6ebb0ae6dd717ecd59"
DISCONNECTED = "25c3d3a40c7a4f7b8b65ee869aaa0db0"
REFUSED = "0184dbaeafe84f668923ee3c9c80521a"
CONNECTION_FAILED = "1b47527d68804d3e97f275d0b9a2fbf4"
ADOPTED_ENDED = "0a1a9da4c42b40c3ad14fd7837fe6feb"
TYPE_REFUSED = "41bbe501ce6c4e7589b5c88eed3758d2"
DROPPED = "0129f9a666844bf2ad2f0084856f3fee"
SHORTAGE = "24039f6c729342acb3a12bc6567a182a"
HANDLER_FAILED = "736b678075514c16bd9219db3d26ec3c"
FILE_DAMAGED = "fb29eb96ce7cad8cd35eb890b4b5f7a7"
FILE_REPLACED = "6006f9c347096933b611ff0621d7bc71"
MISSED = "91bc5e5fd50c482194ba4fa4eba5d79a"
"""MESSAGE_IDs, as systemd defines them: 128 random bits in hex.  An id is never reused for another kind of event."""


def fields(message_id: str, **others: object) -> dict[str, str]:
    """Return the journal fields of an event, to be passed as logging's `extra`; the names are in upper case."""
    return {"MESSAGE_ID": message_id, **{name: str(value) for name, value in others.items()}}


def and_others(number: int) -> str:
    """Return what a log line adds if it stands for several events, and an empty string if it stands for one."""
    return "" if number == 1 else f" (and {number - 1} more times)"
