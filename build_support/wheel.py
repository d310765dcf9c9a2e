# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The module registry of a wheel, which decides at run time what msgd has.

A wheel is built once and installed anywhere. What the machine has that builds it, and what its tree is configured for,
says nothing about the machine that runs it. So this registry is the same wherever it is made: it names all messaging
modules, and each time that msgd is imported, it leaves out those for which the environment lacks something.
"""

from __future__ import annotations

from pathlib import Path

from build_support import project, registry
from build_support.options import parse
from build_support.registry import DIRECTORY_NAMES, MODULE_CLASS, MessagingModule, literal
from build_support.requirements import MODULES, SYSTEMD, Module

_HEAD = '''\
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What msgd has in this environment. It is a wheel's: it was not configured, and finds out when it is imported."""

import sys
from importlib.util import find_spec
from typing import NamedTuple

'''

_FIND_OUT = '''

def _has(module: str) -> bool:
    """Whether the environment has this Python module. (A mere directory of that name has no origin.)"""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


LEFT_OUT: dict[str, str] = {
    name: f"this environment has no Python module {module}; Debian has it in {package}, for its own python3"
    for name, module, package in _REQUIREMENTS
    if not _has(module)
}
MESSAGING_MODULES: tuple[MessagingModule, ...] = tuple(module for module in _MODULES if module.name not in LEFT_OUT)

PYTHON: str = sys.executable
'''


def render(root: Path) -> str:
    """The text of the wheel's msgd/_registry.py. It depends on the tree at `root` and on nothing else."""
    directories = parse([]).directories
    strings = {"version": project.read(root).version, "configure_line": "not configured: this is a wheel"}
    strings |= {name: directories[name] for name in DIRECTORY_NAMES}
    return "".join(
        [
            _HEAD,
            MODULE_CLASS,
            "\n_MODULES = (\n",
            *(registry.render_module(MessagingModule(*module[:3])) for module in MODULES),
            ")\n_REQUIREMENTS = (\n",
            *(_requirements(module) for module in MODULES),
            ")\n",
            _FIND_OUT,
            *(f"{name.upper()}: str = {literal(value)}\n" for name, value in strings.items()),
            f"WITH_SYSTEMD: bool = _has({literal(SYSTEMD.module)})\n",
            "WITH_CLUSTER: bool = True\n",
        ]
    )


def _requirements(module: Module) -> str:
    rows = ((module.name, *requirement) for requirement in module.requirements)
    return "".join(f"    ({', '.join(map(literal, row))}),\n" for row in rows)
