"""`configure.py --bootstrap`: from a bare machine to build/venv, where the tree's programs, tests and checkers run.

Every step looks first and does nothing where nothing is missing. Debian's packages come by apt-get, as root or with
sudo; PyPI's go into the virtual environment only. The tree itself is not installed there: a .pth file points at it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

from build_support import interpreter
from build_support.interpreter import CANDIDATES, DISTRIBUTION_PYTHON, Interpreter
from build_support.registry import write_if_changed
from build_support.report import ConfigureError, Report
from build_support.requirements import Requirement, SuitePackage

EXTRAS = ("status", "metrics", "dev")
"""The optional dependencies of pyproject.toml that working in the tree needs."""
SYSTEM_PROGRAMS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def make_environment(
    root: Path, requirements: tuple[Requirement, ...], python: str | None, report: Report
) -> Interpreter:
    """Make build/venv on the interpreter asked for or the best there is, with everything of EXTRAS in it."""
    modules = tuple(requirement.module for requirement in requirements)
    base = _base_interpreter(root, modules, python, report)
    if base is None or base.base == DISTRIBUTION_PYTHON:
        base = _complete_distribution_python(base, requirements, report)
    environment = _environment_of(root, base, report)
    # Relative, so that a tree that is moved still finds itself.
    tree = os.path.relpath(root, environment.site_packages)
    write_if_changed(Path(environment.site_packages, "msgd-tree.pth"), f"{tree}\n")
    _install_from_pypi(root, environment, report)
    return environment


def install_test_packages(table: Sequence[SuitePackage], report: Report) -> None:
    """Install the Debian packages that the test-suite runs; without the right to, say what will be skipped."""
    missing = [row for row in table if shutil.which(row.program, path=SYSTEM_PROGRAMS) is None]
    if not missing:
        return
    packages = [row.package for row in missing]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_get((), packages, report)
        return
    tests = ", ".join(sorted({row.tests for row in missing}))
    report.say(f"configure: {tests} will be skipped; to have them, as root: {shlex.join(_apt_get_install(packages))}")


def _base_interpreter(root: Path, modules: tuple[str, ...], python: str | None, report: Report) -> Interpreter | None:
    """What to make the environment from. None: the distribution's interpreter, which has yet to be installed."""
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
            f"Debian packages are missing, and only root may install them: {shlex.join(_apt_get_install(missing))}"
        )
    modules = tuple(requirement.module for requirement in requirements)
    completed = interpreter.probe(DISTRIBUTION_PYTHON, modules, report)
    if completed is None:
        raise ConfigureError(f"{DISTRIBUTION_PYTHON} is older than Python 3.11; name another by --with-python=PATH")
    return completed


def _apt_get_command(*arguments: str) -> list[str]:
    # RUNLEVEL=1 keeps maintainer scripts from starting the daemons they install.
    settings = ("DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
    return ["env", *settings, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments]


def _apt_get_install(packages: Sequence[str]) -> list[str]:
    return _apt_get_command("install", "-y", "--no-install-recommends", *packages)


def _apt_get(right: tuple[str, ...], packages: Sequence[str], report: Report) -> None:
    report.say(f"configure: installing Debian's {', '.join(packages)}")
    report.follow([*right, *_apt_get_command("update")], ("E:", "W:"))
    install = [*right, *_apt_get_install(packages)]
    if not report.follow(install, ("Setting up", "Waiting", "E:")):
        raise ConfigureError(f"this failed (build/config.log has its output): {shlex.join(install)}")


def _environment_of(root: Path, base: Interpreter, report: Report) -> Interpreter:
    """build/venv made from `base`: the one that is there if it is that, else a new one."""
    kept = interpreter.probe(interpreter.environment_python(root), (), report)
    if kept is not None and kept.base == base.base:
        return kept
    path = str(interpreter.environment(root))
    report.say(f"configure: making build/venv from {base.executable}")
    make = [base.executable, "-m", "venv", "--clear", "--system-site-packages", path]
    made = interpreter.probe(interpreter.environment_python(root), (), report) if report.follow(make, ()) else None
    if made is None:
        raise ConfigureError(f"this failed (build/config.log has its output): {shlex.join(make)}")
    return made


def _install_from_pypi(root: Path, environment: Interpreter, report: Report) -> None:
    """Give the environment what pyproject.toml names; a file in it says what it was last given, for make too."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    given = interpreter.environment(root) / "requirements.txt"
    text = "".join(f"{requirement}\n" for requirement in wanted)
    if not given.is_file() or given.read_text() != text:
        report.say("configure: installing PyPI's packages into build/venv")
        command = [environment.command, "-m", "pip", "--disable-pip-version-check", "install", "--no-input", *wanted]
        if not report.follow(command, ("Collecting", "Installing", "Successfully", "ERROR")):
            raise ConfigureError(f"this failed (build/config.log has its output): {shlex.join(command)}")
        given.write_text(text)
    given.touch()
