# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The compiled hot path: whether the extension msgd._native is there and in use.

Rule 1.  It is never needed.  Each of its functions does the plain case of something that its twin in Python does whole,
and leaves everything else to that twin.  So the Python is the one source of what the protocol is.
Rule 2.  `native` is the extension, or None: if it was not built, or if MSGD_PURE is set in the environment (to anything
but 0 or nothing).  A twin decides once, when it is imported or made.

The sources are in native/; configure.py --enable-compiled says whether `make` builds them.
"""

from __future__ import annotations

import importlib
from typing import Any

native: Any = None
"""The extension, or None."""

_why_not = ""

try:
    native = importlib.import_module("msgd._native")
except ModuleNotFoundError:
    _why_not = "not built"
except ImportError as error:
    _why_not = str(error)


def describe() -> str:
    """What `msgd --build-options` says: "yes", or "no" and the reason."""
    return "yes" if native is not None else f"no ({_why_not})"
