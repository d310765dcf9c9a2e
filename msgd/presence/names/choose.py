# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which class keeps names in this build."""

from __future__ import annotations

from msgd._registry import MESSAGING_MODULES
from msgd.errors import BackendUnavailable
from msgd.presence.names.base import Names
from msgd.presence.names.file import FileNames


def names_class() -> type[Names]:
    """How names are kept here; BackendUnavailable if that is compiled in and not installed."""
    if any(module.name == "tdb" for module in MESSAGING_MODULES):
        try:
            from msgd.presence.names.tdb import TdbNames  # needs a module that only this build is known to have
        except ImportError as error:
            raise BackendUnavailable(f"names.tdb: {error}; install it or configure without tdb") from error
        return TdbNames
    return FileNames
