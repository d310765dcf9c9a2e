# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Decide what is compiled in: what the user asked for, or else everything whose requirements are met."""

from __future__ import annotations

from pathlib import Path

from build_support import compiled, interpreter, project, requirements
from build_support.interpreter import Interpreter
from build_support.options import Options
from build_support.registry import MessagingModule, Registry
from build_support.report import ConfigureError, Report
from build_support.requirements import RUN_TIME, SYSTEMD, Module, Requirement


def select(options: Options, root: Path, python: Interpreter, report: Report) -> Registry:
    """Return the registry for these options on this interpreter.

    ConfigureError if the kernel lacks a facility that msgd needs, or the interpreter lacks a module that was asked for.
    """
    with_systemd = SYSTEMD.module in python.modules if options.systemd is None else options.systemd
    if with_systemd:
        _require(SYSTEMD, "--with-systemd", python)
    for name, failure in python.facilities.items():
        report.checked(name, found=not failure, detail=failure)
        if failure:
            raise ConfigureError(f"msgd needs {name} (Linux 5.3 or later), but on this machine: {failure}")
    chosen = _choose_modules(options.messaging, python)
    return Registry(
        version=project.read(root).version,
        configure_line=options.line,
        python=_installed_python(root, python),
        with_systemd=with_systemd,
        with_cluster=options.cluster,
        compiled=compiled.check(options.compiled, python.command, report),
        developer=options.developer,
        directories=options.directories,
        modules=tuple(MessagingModule(*module[:3]) for module in chosen),
        left_out={module.name: _reason(module, python) for module in requirements.MODULES if module not in chosen},
    )


def require_run_time(python: Interpreter) -> None:
    """ConfigureError if the interpreter lacks a module that msgd cannot run without."""
    for requirement in RUN_TIME:
        _require(requirement, "msgd", python)


def named_modules(names: tuple[str, ...]) -> list[Module]:
    """The modules of these names; ConfigureError if a name is unknown or given twice."""
    known = {module.name: module for module in requirements.MODULES}
    for name in names:
        if name not in known or names.count(name) > 1:
            problem = "named twice" if name in known else "unknown"
            raise ConfigureError(f"--with-messaging: type {name!r} is {problem}; known are: {', '.join(known)}")
    return [known[name] for name in names]


def missing_packages(module: Module, python: Interpreter) -> list[str]:
    """The Debian packages that the interpreter would need for this module and does not have."""
    return [requirement.package for requirement in module.requirements if requirement.module not in python.modules]


def _reason(module: Module, python: Interpreter) -> str:
    """Why a module is left out."""
    missing = missing_packages(module, python)
    return f"needs {', '.join(missing)}" if missing else "not chosen by --with-messaging"


def _choose_modules(names: tuple[str, ...] | None, python: Interpreter) -> list[Module]:
    """The modules asked for by name, in that order; without names, all whose requirements are met."""
    if names is None:
        found = [module for module in requirements.MODULES if not missing_packages(module, python)]
        if not found:
            raise ConfigureError("no messaging module can be compiled in: each lacks something that it requires")
        return found
    chosen = named_modules(names)
    for module in chosen:
        for requirement in module.requirements:
            _require(requirement, f"messaging type {module.name}", python)
    return chosen


def _installed_python(root: Path, python: Interpreter) -> str:
    """The interpreter that installed programs name. It is never build/venv, which disappears with the tree."""
    return python.base if Path(python.prefix) == interpreter.environment(root) else python.executable


def _require(requirement: Requirement, needed_by: str, python: Interpreter) -> None:
    if requirement.module not in python.modules:
        raise ConfigureError(
            f"{needed_by} needs the Python module {requirement.module}, and {python.command} does not have it:"
            f" install {requirement.package}, or run ./configure.py --bootstrap"
        )
