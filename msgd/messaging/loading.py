# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Loads a backend by the name of its messaging type, through the registry that configure has generated."""

from __future__ import annotations

import importlib

from msgd._registry import LEFT_OUT, MESSAGING_MODULES
from msgd.backends.base import Backend
from msgd.errors import BackendUnavailable


def backend_class(messaging_type: str) -> type[Backend]:
    """The class of a messaging type that is compiled in.

    Raises BackendUnavailable if it is not, or if a module that it needs is not installed.
    """
    for module in MESSAGING_MODULES:
        if module.name == messaging_type:
            try:
                backend: type[Backend] = importlib.import_module(module.import_path).BACKEND
            except ImportError as error:
                raise BackendUnavailable(
                    f"messaging type {messaging_type}: {error}; install it or configure without {messaging_type}"
                ) from error
            return backend
    known = ", ".join(module.name for module in MESSAGING_MODULES)
    reason = LEFT_OUT.get(messaging_type)
    because = f" ({reason})" if reason else ""
    raise BackendUnavailable(f"messaging type {messaging_type} is not compiled in{because}; compiled in: {known}")
