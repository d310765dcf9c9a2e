# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The border of the library: what the system refuses leaves it as an error of the closed set (errors.py).

Most refusals are converted where they happen, with a text that names the file.  What is left, such as a lack of
descriptors or of memory at any point, is converted here, once, on its way out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from msgd.errors import is_of_system, system_error

P = ParamSpec("P")
T = TypeVar("T")


def refusals_documented(function: Callable[P, T]) -> Callable[P, T]:
    """A public call that raises TransportError for what the system refuses inside."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except (OSError, MemoryError) as error:
            if is_of_system(error):
                raise system_error(f"{function.__name__}()", error) from error
            raise

    return call
