# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Loads a backend by its messaging type, through the registry that configure has generated, and opens it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgd._registry import LEFT_OUT, MESSAGING_MODULES, WITH_CLUSTER
from msgd.backends.base import Backend
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import BackendUnavailable
from msgd.presence import Presence

if TYPE_CHECKING:
    from msgd.cluster.backend import ClusteredBackend


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


def check_cluster() -> None:
    """Raise BackendUnavailable if this msgd was configured without what `clustering = yes` needs."""
    if not WITH_CLUSTER:
        raise BackendUnavailable(
            "clustering = yes, but this msgd was configured --without-cluster: configure it --with-cluster"
        )


def open_backend(
    config: Config, presence: Presence, drops: Drops, on_number: Callable[[], None]
) -> tuple[Backend, ClusteredBackend | None]:
    """Open the configured transport, and in a cluster the link to ctdbd with it: then that is the backend.

    `on_number` is called when the number of this node is known, or another one.  Raises what the transport raises,
    BackendUnavailable if the configured one cannot be clustered.
    """
    local = backend_class(config.messaging_type)
    if not config.clustering:
        return local(config, presence, drops), None
    check_cluster()
    from msgd.cluster.backend import open_clustered  # only a process in a cluster pays for it

    clustered = open_clustered(local, config, presence, drops, on_number)
    return clustered, clustered
