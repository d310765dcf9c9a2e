"""What msgd tells the journal besides a line of text: which event it was, and whom it is about.

`logger.info("...", extra=fields(CONNECTED, PEER_PID=1234))`: with systemd's journal they become fields of the entry
(`journalctl MESSAGE_ID=...`, `journalctl PEER_UID=1000`); other logs have the text alone.
"""

from __future__ import annotations

READY = "e5fa546292364b71ab8348a19b18aabd"
STOPPING = "6da6ea7b4cc840499293017e11b10091"
RELOADED = "0d102828a0b5492fad030eefa2664399"
CLEANED_UP = "ee0e2798c34b43b4be83f7b93af13116"
CONNECTED = "d08fc07c041a4c6ebb0ae6dd717ecd59"
DISCONNECTED = "25c3d3a40c7a4f7b8b65ee869aaa0db0"
REFUSED = "0184dbaeafe84f668923ee3c9c80521a"
CONNECTION_FAILED = "1b47527d68804d3e97f275d0b9a2fbf4"
ADOPTED_ENDED = "0a1a9da4c42b40c3ad14fd7837fe6feb"
TYPE_REFUSED = "41bbe501ce6c4e7589b5c88eed3758d2"
DROPPED = "0129f9a666844bf2ad2f0084856f3fee"
HANDLER_FAILED = "736b678075514c16bd9219db3d26ec3c"
"""MESSAGE_IDs: one for each kind of event, never used for another."""


def fields(message_id: str, **others: object) -> dict[str, str]:
    """The journal's fields of an event, as logging's `extra`; names are upper case."""
    return {"MESSAGE_ID": message_id, **{name: str(value) for name, value in others.items()}}


def and_others(number: int) -> str:
    """What a line adds that stands for several events; nothing if it is about one."""
    return "" if number == 1 else f" (and {number - 1} more times)"
