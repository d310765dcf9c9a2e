# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A backend that reports one message in a thousand as sent without sending it."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from msgd import SendStatus
from msgd._registry import MESSAGING_MODULES
from msgd.backends.base import Backend

_ONE_IN = 1000

_Real: type[Backend] = importlib.import_module(MESSAGING_MODULES[0].import_path).BACKEND


class LossyBackend(_Real):  # type: ignore[misc, valid-type]  # a class that is only known at run time
    """The first compiled-in backend, with this fault.  It counts from the start of its process."""

    sends = 0

    def plain_sender(self, lock: threading.RLock) -> None:
        """No message is to pass the fault by the compiled path."""

    def send_batch(self, *_: object) -> bool:
        """Nor in a batch."""
        return False

    def send(self, *arguments: Any, **keywords: Any) -> SendStatus:
        self.sends += 1
        if self.sends % _ONE_IN == 0:
            return SendStatus.SENT
        status: SendStatus = super().send(*arguments, **keywords)
        return status


BACKEND = LossyBackend
