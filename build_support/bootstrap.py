# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`configure.py --bootstrap`: set up build/venv and build/bin on a bare machine, to run and check msgd from the tree.

Rule 1. Each step first checks whether anything is missing, and does nothing if not.
Rule 2. Debian packages are installed by apt-get, as root or with sudo. Packages from PyPI go into build/venv only.
Rule 3. What the programs need is installed by plain `--bootstrap`. The linters and the test runner are large and come
        only with `--bootstrap=check`.
Rule 4. Where the interpreter has what the programs need, as with Debian's packages, plain `--bootstrap` uses neither
        pip nor the network.

The tree itself is not installed in build/venv. A .pth file there points at it, so edits take effect at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from build_support import interpreter, launchers, project
from build_support.interpreter import CANDIDATES, DISTRIBUTION_PYTHON, Interpreter
from build_support.registry import write_if_changed
from build_support.report import ConfigureError, Report
from build_support.requirements import RUN_TIME, Requirement, SuitePackage

PROGRAM_EXTRAS = ("daemon",)
"""The optional dependencies in pyproject.toml that the programs cannot do without."""
CHECK_EXTRAS = ("status", "metrics", "cache", "dev")
"""Those that `make check` uses."""
PROGRAM_LIST = "requirements.txt"
"""The file in build/venv that lists what the programs need. The Makefile compares its time."""
CHECK_LIST = "check-requirements.txt"
"""The file in build/venv that lists what was installed for `make check`."""
SYSTEM_PROGRAMS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def make_environment(
    root: Path, requirements: tuple[Requirement, ...], python: str | None, report: Report
) -> Interpreter:
    """Make build/venv and build/bin, from the interpreter that was asked for or the best there is."""
    modules = tuple(requirement.module for requirement in requirements)
    base = _base_interpreter(root, modules, python, report)
    if base is None or base.base == DISTRIBUTION_PYTHON:
        base = _complete_distribution_python(base, requirements, report)
    environment = _environment_of(root, base, report)
    # A relative path, so that a tree still finds itself after it has been moved.
    tree = os.path.relpath(root, environment.site_packages)
    write_if_changed(Path(environment.site_packages, "msgd-tree.pth"), f"{tree}\n")
    described = project.read(root)
    wanted = (*described.dependencies, *described.extras(PROGRAM_EXTRAS))
    _provide(interpreter.environment(root) / PROGRAM_LIST, wanted, environment, report)
    launchers.write_tree_programs(root)
    return environment


def install_checkers(root: Path, environment: Interpreter, report: Report) -> None:
    """Install the linters, the type checker and the test runner into build/venv."""
    wanted = project.read(root).extras(CHECK_EXTRAS)
    _install_from_pypi(interpreter.environment(root) / CHECK_LIST, wanted, environment, report)


def install_test_packages(table: Sequence[SuitePackage], report: Report) -> None:
    """Install the Debian packages that the test suite uses, or, if only root could, say which tests will be skipped."""
    missing = [row for row in table if shutil.which(row.program, path=SYSTEM_PROGRAMS) is None]
    if not missing:
        return
    packages = [row.package for row in missing]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_get((), packages, report)
        return
    tests = ", ".join(sorted({row.tests for row in missing}))
    report.say(f"configure: {tests} will be skipped; to run them, as root: {shlex.join(_apt_get_install(packages))}")


def _base_interpreter(root: Path, modules: tuple[str, ...], python: str | None, report: Report) -> Interpreter | None:
    """The interpreter to make build/venv from; None is the distribution's, if that has yet to be installed."""
    if python is not None:
        return interpreter.named(python, modules, report)
    kept = interpreter.probe(interpreter.environment_python(root), modules, report)
    if kept is not None and modules[0] in kept.modules:
        return interpreter.probe(kept.base, modules, report)
    found = interpreter.best(CANDIDATES, modules, report)
    if modules[0] not in found.modules and shutil.which("apt-get"):
        return interpreter.probe(DISTRIBUTION_PYTHON, modules, report)
    return found


def _complete_distribution_python(
    base: Interpreter | None, requirements: tuple[Requirement, ...], report: Report
) -> Interpreter:
    """Install the Debian packages that the distribution's interpreter lacks, and return it as it is then."""
    present = base.modules if base else {}
    missing = [requirement.package for requirement in requirements if requirement.module not in present]
    if base is not None and (not missing or not shutil.which("apt-get")):
        return base
    if os.geteuid() == 0:
        _apt_get((), missing, report)
    elif report.run(["sudo", "-n", "true"]).returncode == 0:
        _apt_get(("sudo", "-n"), missing, report)
    else:
        raise ConfigureError(
            f"Debian packages are missing and only root may install them: {shlex.join(_apt_get_install(missing))}"
        )
    modules = tuple(requirement.module for requirement in requirements)
    completed = interpreter.probe(DISTRIBUTION_PYTHON, modules, report)
    if completed is None:
        raise ConfigureError(f"{DISTRIBUTION_PYTHON} is older than Python 3.11; name another with --with-python=PATH")
    return completed


def _apt_get_command(*arguments: str) -> list[str]:
    # With RUNLEVEL=1 maintainer scripts do not start the daemons that they install.
    settings = ("DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
    return ["env", *settings, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments]


def _apt_get_install(packages: Sequence[str]) -> list[str]:
    return _apt_get_command("install", "-y", "--no-install-recommends", *packages)


def _apt_get(right: tuple[str, ...], packages: Sequence[str], report: Report) -> None:
    report.say(f"configure: installing from Debian: {', '.join(packages)}")
    report.follow([*right, *_apt_get_command("update")], ("E:", "W:"))
    install = [*right, *_apt_get_install(packages)]
    if not report.follow(install, ("Setting up", "Waiting", "E:")):
        raise _failed(install)


def _environment_of(root: Path, base: Interpreter, report: Report) -> Interpreter:
    """build/venv on the interpreter `base`. One that was made from another interpreter is replaced."""
    kept = interpreter.probe(interpreter.environment_python(root), (), report)
    if kept is not None and kept.base == base.base:
        return kept
    path = str(interpreter.environment(root))
    report.say(f"configure: making build/venv from {base.executable}")
    make = [base.executable, "-m", "venv", "--clear", "--system-site-packages", "--without-pip", path]
    made = interpreter.probe(interpreter.environment_python(root), (), report) if report.follow(make, ()) else None
    if made is None:
        raise _failed(make)
    return made


def _provide(listed: Path, wanted: Sequence[str], environment: Interpreter, report: Report) -> None:
    """Have in build/venv what the programs need: if the interpreter has it, only list it."""
    present = interpreter.probe(environment.command, [row.module for row in RUN_TIME], report)
    if present is None or len(present.modules) < len(RUN_TIME):
        _install_from_pypi(listed, wanted, environment, report)
        return
    write_if_changed(listed, _list(wanted))
    listed.touch()


def _install_from_pypi(installed: Path, wanted: Sequence[str], environment: Interpreter, report: Report) -> None:
    """Install packages into build/venv, unless the file `installed` lists exactly these; write and touch that file."""
    if not installed.is_file() or installed.read_text() != _list(wanted):
        report.say("configure: installing packages from PyPI into build/venv")
        run_pip = [environment.command, "-m", "pip", "--disable-pip-version-check"]
        if report.run([*run_pip, "--version"]).returncode != 0:
            make = [environment.command, "-m", "ensurepip"]
            if not report.follow(make, ()):
                raise _failed(make)
        command = [*run_pip, "install", "--no-input", *wanted]
        if not report.follow(command, ("Collecting", "Installing", "Successfully", "ERROR")):
            raise _failed(command)
        installed.write_text(_list(wanted))
    installed.touch()


def _list(wanted: Sequence[str]) -> str:
    return "".join(f"{requirement}\n" for requirement in wanted)


def _failed(command: Sequence[str]) -> ConfigureError:
    return ConfigureError(f"a command failed (see build/config.log for its output): {shlex.join(command)}")
