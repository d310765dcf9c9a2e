# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The parameters of the suite: the compiled-in messaging types, each in all its variants.

A new messaging type is included as soon as it is compiled in.  VARIANTS adds other ways of running a type.  A test
module that concerns only some types names them in MESSAGING_TYPES.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any, NamedTuple

from msgd._registry import MESSAGING_MODULES


class Variant(NamedTuple):
    """One way of running a messaging type: its name in test ids, and its parameters."""

    name: str
    messaging_type: str
    overrides: dict[str, Any]


VARIANTS = (
    Variant("tdb-nommap", "tdb", {"use_mmap": False}),
    Variant("tdb-fcntl", "tdb", {"tdb_mutexes": False}),
)
"""The variants besides each type with its default parameters."""

CARRYING_FDS = frozenset(
    module.name for module in MESSAGING_MODULES if importlib.import_module(module.import_path).BACKEND.carries_fds
)
"""The messaging types that carry file descriptors."""


def compiled_in(wanted: Collection[str] | None = None) -> list[Variant]:
    """The variants of the compiled-in types, or only of those in `wanted`."""
    variants: list[Variant] = []
    for module in MESSAGING_MODULES:
        if wanted is None or module.name in wanted:
            variants.append(Variant(module.name, module.name, {}))
            variants.extend(variant for variant in VARIANTS if variant.messaging_type == module.name)
    return variants
