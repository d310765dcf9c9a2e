#!/usr/bin/env python3
"""Configure msgd: probe this machine, choose what is compiled in, and write the module registry (msgd/_registry.py).

Behaves as configure scripts do. Besides the registry it leaves build/config.log, which has everything that was tried,
and build/config.status, which configures again with the same options. Standard library only, Python 3.11 or later.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said before an import fails
    sys.exit("configure: error: Python 3.11 or later is needed to configure msgd")

import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from build_support import bootstrap, interpreter, units
from build_support.bootstrap import Requirement, SuitePackage
from build_support.interpreter import CANDIDATES, Interpreter
from build_support.options import Options, parse
from build_support.registry import REGISTRY, MessagingModule, Registry, write_if_changed
from build_support.report import ConfigureError, Report

ROOT = Path(__file__).resolve().parent


class Module(NamedTuple):
    """A messaging module that can be compiled in."""

    name: str
    import_path: str
    description: str
    requirements: tuple[Requirement, ...] = ()


TDB = Requirement("tdb", "python3-tdb")

MODULES: tuple[Module, ...] = (
    Module("dgram", "msgd.backends.dgram", "AF_UNIX datagrams, as Samba 4.2 and later"),
    Module("tdb", "msgd.backends.tdb", "records in messages.tdb and SIGUSR1, as Samba 3.0", (TDB,)),
    Module("stream", "msgd.backends.stream", "AF_UNIX stream connections, kept in a cache"),
)
"""The messaging modules there are, in the order of preference."""

SYSTEMD = Requirement("systemd.daemon", "python3-systemd")
RUN_TIME = (Requirement("iniconfig", "python3-iniconfig"), Requirement("daemon", "python3-daemon"))
"""What msgd cannot run without."""
DEBIAN = (TDB, *RUN_TIME, SYSTEMD, Requirement("ensurepip", "python3-venv"))
"""What --bootstrap gives the distribution's interpreter; an interpreter that has the first is preferred."""

TEST_PACKAGES = (
    SuitePackage("samba", "smbd", "tests/interop"),
    SuitePackage("samba-common-bin", "testparm", "tests/interop"),
    SuitePackage("smbclient", "smbclient", "tests/interop"),
    SuitePackage("tdb-tools", "tdbtool", "tests/interop"),
    SuitePackage("dbus", "dbus-daemon", "the tests against D-Bus"),
    SuitePackage("socat", "socat", "the tests with socat as the peer"),
    SuitePackage("groff-base", "groff", "the tests of the manual pages"),
    SuitePackage("systemd", "systemd-analyze", "the tests of systemd's units"),
    SuitePackage("systemd-container", "systemd-nspawn", "the tests in a systemd container"),
)
"""The Debian packages whose programs the test-suite runs (--bootstrap=check)."""


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Configure the tree at `root`; the exit status."""
    try:
        options = parse(arguments)
        (root / "build").mkdir(exist_ok=True)
        with (root / "build" / "config.log").open("w") as log:
            report = Report(log, quiet=options.quiet)
            report.note(f"{options.line}\nstarted by {sys.executable}, Python {sys.version}\n")
            _configure_tree(options, root, report)
    except (ConfigureError, OSError) as error:
        print(f"configure: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def configure(options: Options, root: Path, python: Interpreter, report: Report) -> Registry:
    """Decide what is compiled in: what was asked for, or what `python` has the requirements of."""
    with_systemd = SYSTEMD.module in python.modules if options.systemd is None else options.systemd
    if with_systemd:
        _require(SYSTEMD, "--with-systemd", python)
    for name, failure in python.facilities.items():
        report.checked(name, found=not failure, detail=failure)
        if failure:
            raise ConfigureError(f"msgd needs {name} (Linux 5.3 or later), and here: {failure}")
    version: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    return Registry(
        version=version,
        configure_line=options.line,
        python=_installed_python(root, python),
        with_systemd=with_systemd,
        directories=options.directories,
        modules=tuple(MessagingModule(*module[:3]) for module in _choose_modules(options.messaging, python)),
    )


def modules_to_probe() -> tuple[str, ...]:
    """The Python modules that any choice of options may ask about."""
    requirements = [*DEBIAN, *(requirement for module in MODULES for requirement in module.requirements)]
    return tuple(dict.fromkeys(requirement.module for requirement in requirements))


def _configure_tree(options: Options, root: Path, report: Report) -> None:
    _named_modules(options.messaging or ())
    if options.bootstrap:
        wanted = tuple(row for row in DEBIAN if row is not SYSTEMD or options.systemd is not False)
        bootstrap.make_environment(root, wanted, options.python, report)
    if options.bootstrap == "check":
        bootstrap.install_test_packages(TEST_PACKAGES, report)
    python = _find_python(options, root, report)
    report.checked("a Python interpreter", found=True, detail=f"{python.command}, {python.version}")
    for module in modules_to_probe():
        report.checked(f"Python module {module}", found=module in python.modules, detail=python.modules.get(module, ""))
    for requirement in RUN_TIME:
        _require(requirement, "msgd", python)
    registry = configure(options, root, python, report)
    write_if_changed(root / REGISTRY, registry.render())
    _write_units(root, registry)
    _write_config_status(root, registry)
    _summarize(registry, python, report)


def _find_python(options: Options, root: Path, report: Report) -> Interpreter:
    """The interpreter asked for; else build/venv; else the best of those on this machine."""
    modules = modules_to_probe()
    environment = interpreter.probe(interpreter.environment_python(root), modules, report)
    if options.python is not None:
        named = interpreter.named(options.python, modules, report)
        return environment if environment and environment.base == named.executable else named
    return environment or interpreter.best(CANDIDATES, modules, report)


def _installed_python(root: Path, python: Interpreter) -> str:
    """The interpreter that installed programs name: never build/venv, which goes with the tree."""
    return python.base if Path(python.prefix) == interpreter.environment(root) else python.executable


def _require(requirement: Requirement, needed_by: str, python: Interpreter) -> None:
    if requirement.module not in python.modules:
        raise ConfigureError(
            f"{needed_by} needs the Python module {requirement.module}, and {python.command} has none:"
            f" install {requirement.package}, or run ./configure.py --bootstrap"
        )


def _choose_modules(names: tuple[str, ...] | None, python: Interpreter) -> list[Module]:
    """The modules asked for by name, in that order; else all whose requirements are there."""
    if names is None:
        found = [module for module in MODULES if not _missing(module, python)]
        if not found:
            raise ConfigureError("no messaging module can be compiled in: the requirements of all are missing")
        return found
    chosen = _named_modules(names)
    for module in chosen:
        for requirement in module.requirements:
            _require(requirement, f"messaging type {module.name}", python)
    return chosen


def _named_modules(names: tuple[str, ...]) -> list[Module]:
    known = {module.name: module for module in MODULES}
    for name in names:
        if name not in known or names.count(name) > 1:
            problem = "named twice" if name in known else "unknown"
            raise ConfigureError(f"--with-messaging: type {name!r} is {problem}; known are: {', '.join(known)}")
    return [known[name] for name in names]


def _missing(module: Module, python: Interpreter) -> list[str]:
    return [requirement.package for requirement in module.requirements if requirement.module not in python.modules]


def _write_units(root: Path, registry: Registry) -> None:
    directory = root / "build" / units.TEMPLATES
    directory.mkdir(exist_ok=True)
    made = list(units.units(root, registry.directories, with_systemd=registry.with_systemd))
    for unit in made:
        write_if_changed(directory / unit.name, unit.text)
    for path in directory.iterdir():
        if path.name not in {unit.name for unit in made}:  # of an earlier configuration
            path.unlink()


def _write_config_status(root: Path, registry: Registry) -> None:
    arguments = registry.configure_line.removeprefix("./configure.py")
    text = (
        "#!/bin/sh\n"
        "# Generated by configure.py: configures this tree again with the options it was given.\n"
        f'cd "$(dirname "$0")/.." && exec {shlex.quote(registry.python)} configure.py{arguments} "$@"\n'
    )
    path = root / "build" / "config.status"
    write_if_changed(path, text, mode=0o755)
    path.touch()  # make compares times


def _summarize(registry: Registry, python: Interpreter, report: Report) -> None:
    compiled_in = [module.name for module in registry.modules]
    left_out = [
        f"{module.name} (needs {', '.join(missing)})" if (missing := _missing(module, python)) else module.name
        for module in MODULES
        if module.name not in compiled_in
    ]
    directories = registry.directories
    report.result(f"\nmsgd {registry.version} is configured:")
    for label, value in (
        ("messaging modules", ", ".join(compiled_in)),
        ("run-time default", compiled_in[0]),
        ("left out", ", ".join(left_out) or "nothing"),
        ("systemd", "yes" if registry.with_systemd else "no"),
        ("interpreter", registry.python),
        ("programs", f"{directories['sbindir']}, {directories['bindir']}"),
        ("manual, units", f"{directories['mandir']}, {directories['unitdir']}"),
        ("configuration", directories["configdir"]),
        ("lock directory", directories["lockdir"]),
        ("private directory", directories["privatedir"]),
        ("pid directory", directories["piddir"]),
        ("log directory", directories["logdir"]),
    ):
        report.result(f"  {label:<18} {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
