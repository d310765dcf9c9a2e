"""What the suite runs over: the compiled-in messaging types, each in all the ways it can be run.

A new messaging type joins by being compiled in; VARIANTS adds ways of running one.  A test module for some types only
names them in MESSAGING_TYPES.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any, NamedTuple

from msgd._registry import MESSAGING_MODULES


class Variant(NamedTuple):
    """One way of running a messaging type: the name in the test's id, and the parameters that make it."""

    name: str
    messaging_type: str
    overrides: dict[str, Any]


VARIANTS = (
    Variant("tdb-nommap", "tdb", {"use_mmap": False}),
    Variant("tdb-fcntl", "tdb", {"tdb_mutexes": False}),
)
"""Those beside the plain ones."""

CARRYING_FDS = frozenset(
    module.name for module in MESSAGING_MODULES if importlib.import_module(module.import_path).BACKEND.carries_fds
)
"""The messaging types that carry file descriptors."""


def compiled_in(wanted: Collection[str] | None = None) -> list[Variant]:
    """The variants of the compiled-in types, or of those among them that are wanted."""
    variants: list[Variant] = []
    for module in MESSAGING_MODULES:
        if wanted is None or module.name in wanted:
            variants.append(Variant(module.name, module.name, {}))
            variants.extend(variant for variant in VARIANTS if variant.messaging_type == module.name)
    return variants
