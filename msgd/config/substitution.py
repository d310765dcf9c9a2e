# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The substitutions of smb.conf: %h, %L, %$(VARIABLE) and %%.

Samba has more of them, most of which depend on the client (%m, %I, %U ...).  msgd does not know their values and leaves
them as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SUBSTITUTION = re.compile(r"%(?:\$\((?P<variable>[^()]*)\)|(?P<letter>[A-Za-z%]))")
_NETBIOS_NAME_LENGTH = 15


def server_names(netbios_name: str) -> dict[str, str]:
    """Return the values of %h (the host's name) and %L (the NetBIOS name, by default made from the host's name)."""
    host = os.uname().nodename
    return {"h": host, "L": (netbios_name or host.partition(".")[0][:_NETBIOS_NAME_LENGTH]).upper()}


def substitute(text: str, names: Mapping[str, str]) -> str:
    """Return the text with %$(VARIABLE), %% and the letters of `names` replaced, and all others left as they are.

    A variable that is not in the environment is a ValueError.
    """

    def value(match: re.Match[str]) -> str:
        variable, letter = match["variable"], match["letter"]
        if letter == "%":
            return "%"
        if variable is None:
            return names.get(letter, match[0])
        if variable not in os.environ:
            raise ValueError(f"the environment has no variable {variable!r}")
        return os.environ[variable]

    return _SUBSTITUTION.sub(value, text)


def is_per_client(text: str, names: Mapping[str, str]) -> bool:
    """Return whether the text has a substitution that `names` lacks, whose value depends on Samba's client."""
    letters = (match["letter"] for match in _SUBSTITUTION.finditer(text))
    return any(letter not in names for letter in letters if letter not in (None, "%"))
