"""`make install` and `make uninstall`.

The package goes into a directory of its own, PREFIX/lib/msgd, out of every interpreter's way; small launchers in
bindir and sbindir put that directory first on sys.path. Launchers find it relative to themselves: what is staged below
DESTDIR runs there too. (A Python service that wants to `import msgd` sets PYTHONPATH to that directory, or
installs the package with pip.)

PREFIX/lib/msgd/manifest.json says what was put where. Uninstalling takes away that and nothing else; installing anew
takes away what the new version no longer has. A configuration file is replaced or removed only while it is as it was
installed: once edited it is the administrator's, and the new one is put beside it as *.new.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import configure
from build_support import interpreter, registry, units
from build_support.options import parse_line
from build_support.registry import REGISTRY
from build_support.report import ConfigureError, Report

PROJECT = "pyproject.toml"
SHEBANG_LIMIT = 255
"""The bytes of a `#!` line that Linux reads."""

TAKE_UP = (
    "systemd-sysusers && systemd-tmpfiles --create msgd.conf",
    "systemctl daemon-reload && systemctl restart systemd-sysctl",
)
"""What makes systemd take up its files without a boot."""
SEARCHED_BY_SYSTEMD = ("/usr", "/usr/local")
"""The prefixes below which it looks for them."""
RUN_BY_SYSTEMD = Path("/run/systemd/system")
"""It is there if systemd runs this machine."""

LAUNCHER = '''\
#!{python}
"""{program} of msgd {version}."""

import os
import sys

sys.path.insert(0, os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), {package_directory!r})))

from {module} import {function}

sys.exit({function}())
'''


@dataclass
class Manifest:
    """What an installation put on the machine; all paths are without DESTDIR."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    """Those that were not there before."""
    configuration: dict[str, str] = field(default_factory=dict)
    """The configuration files, each with the digest of what was installed."""

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest of the installation that is there, an empty one if none is."""
        if not path.exists():
            return cls()
        stored = json.loads(path.read_text())
        return cls(set(stored["files"]), set(stored["directories"]), stored["configuration"])

    def render(self) -> str:
        return json.dumps(asdict(self), indent=1, default=sorted) + "\n"


class Installation:
    """One place that msgd is, or is to be, installed in."""

    def __init__(self, root: Path, destdir: str, prefix: str) -> None:
        configured = registry.read(root)
        more = [f"--prefix={prefix}"] if prefix else []
        options = parse_line(configured.configure_line, *more)
        self._root = root
        self._destdir = os.path.abspath(destdir) if destdir else ""
        self._registry = replace(configured, configure_line=options.line, directories=options.directories)
        self._package_directory = f"{options.directories['prefix']}/lib/msgd"
        self._manifest_path = f"{self._package_directory}/manifest.json"
        self._installed = Manifest.read(self._real(self._manifest_path))
        self._new = Manifest(directories=set(self._installed.directories))

    def install(self) -> None:
        self._install_package()
        self._install_programs()
        self._install_units()
        self._install_manual()
        self._install_gateway_document()
        for source in sorted((self._root / "etc").iterdir()):
            self._install_configuration(source)
        for path in self._installed.files - self._new.files:
            self._real(path).unlink(missing_ok=True)
        self._compile_package()
        self._put(self._manifest_path, self._new.render().encode())
        print(f"msgd {self._registry.version} is installed: {self._real(self._registry.directories['prefix'])}")
        self._warn_of_missing_modules()
        prefix = self._registry.directories["prefix"]
        if not self._destdir and prefix in SEARCHED_BY_SYSTEMD and RUN_BY_SYSTEMD.is_dir():
            print("systemd takes up its files at the next boot, or now by", *TAKE_UP, sep="\n    ")

    def uninstall(self) -> None:
        for path in self._installed.files:
            self._real(path).unlink(missing_ok=True)
        for path, digest in self._installed.configuration.items():
            if _digest(self._real(path)) == digest:
                self._real(path).unlink()
            elif self._real(path).exists():
                print(f"kept {self._real(path)}, which was edited")
        self._real(self._manifest_path).unlink(missing_ok=True)
        for path in sorted(self._installed.directories, reverse=True):
            with contextlib.suppress(OSError):  # not empty: it holds what is not ours
                self._real(path).rmdir()

    def _real(self, path: str) -> Path:
        return Path(self._destdir + path)

    def _put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        target = self._real(path)
        for parent in reversed(Path(path).parents):
            real = self._real(str(parent))
            if not real.is_dir():
                real.mkdir(mode=0o755, parents=True)
                real.chmod(0o755)
                self._new.directories.add(str(parent))
        registry.replace(target, content, mode)

    def _put_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._put(path, content, mode)
        self._new.files.add(path)

    def _install_package(self) -> None:
        for source in sorted((self._root / REGISTRY.parent).rglob("*")):
            relative = source.relative_to(self._root)
            if source.is_file() and relative != REGISTRY and "__pycache__" not in relative.parts:
                self._put_file(f"{self._package_directory}/{relative}", source.read_bytes())
        self._put_file(f"{self._package_directory}/{REGISTRY}", self._registry.render().encode())

    def _install_programs(self) -> None:
        python = self._registry.python
        if len(os.fsencode(f"#!{python}\n")) > SHEBANG_LIMIT or " " in python:
            raise ConfigureError(f"{python} cannot stand in a #! line: configure with another --with-python")
        directories = self._registry.directories
        for program, entry_point in sorted(_programs(self._root).items()):
            module, _, function = entry_point.partition(":")
            directory = directories["sbindir" if module.startswith("msgd.daemon.") else "bindir"]
            launcher = LAUNCHER.format(
                python=python,
                program=program,
                version=self._registry.version,
                module=module,
                function=function,
                package_directory=os.path.relpath(
                    os.path.realpath(self._real(self._package_directory)), os.path.realpath(self._real(directory))
                ),
            )
            self._put_file(f"{directory}/{program}", launcher.encode(), 0o755)

    def _install_units(self) -> None:
        new = self._registry
        for unit in units.units(self._root, new.directories, with_systemd=new.with_systemd):
            self._put_file(unit.path, unit.text.encode())

    def _install_manual(self) -> None:
        """Manual pages and completion, made by the package that was just put into place."""
        package = str(self._real(self._package_directory))
        directories = self._registry.directories
        with tempfile.TemporaryDirectory() as made:
            subprocess.run(
                [self._registry.python, "-B", "-m", "msgd.tools.manual", made],
                check=True,
                cwd=self._root,
                # In front of the tree: the defaults in the pages are those of this prefix.
                env=os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{self._root}", "PYTHONSAFEPATH": "1"},
            )
            for page in sorted(Path(made, "man").iterdir()):
                self._put_file(f"{directories['mandir']}/man{page.suffix[1:]}/{page.name}", page.read_bytes())
            for script in sorted(Path(made, "completion").iterdir()):
                path = f"{directories['prefix']}/share/bash-completion/completions/{script.name}"
                self._put_file(path, script.read_bytes())

    def _install_gateway_document(self) -> None:
        """What the manual pages send their readers to."""
        source = self._root / "docs" / "gateway.md"
        self._put_file(f"{self._registry.directories['prefix']}/share/doc/msgd/{source.name}", source.read_bytes())

    def _install_configuration(self, source: Path) -> None:
        path = f"{self._registry.directories['configdir']}/{source.name}"
        content = source.read_bytes()
        present = _digest(self._real(path))
        as_installed = self._installed.configuration.get(path)
        if present is None or present == as_installed:
            self._put(path, content)
            self._new.configuration[path] = hashlib.sha256(content).hexdigest()
            return
        if as_installed is not None:
            self._new.configuration[path] = as_installed
        if present != hashlib.sha256(content).hexdigest():
            self._put_file(f"{path}.new", content)
            print(f"kept {self._real(path)}, which was edited; the new one is {self._real(path)}.new")

    def _compile_package(self) -> None:
        package = self._real(f"{self._package_directory}/{REGISTRY.parent}")
        shown_as = ["-s", self._destdir, "-p", "/"] if self._destdir else []
        subprocess.run(
            [self._registry.python, "-I", "-m", "compileall", "-q", *shown_as, str(package)], check=True, umask=0o022
        )
        for directory in package.rglob("__pycache__"):
            self._new.directories.add(str(directory).removeprefix(self._destdir))
            self._new.files |= {str(path).removeprefix(self._destdir) for path in directory.iterdir()}

    def _warn_of_missing_modules(self) -> None:
        needed = configure.RUN_TIME
        python = interpreter.named(self._registry.python, [row.module for row in needed], Report(io.StringIO()))
        missing = [row for row in needed if row.module not in python.modules]
        for row in missing:
            print(f"warning: {python.executable} has no module {row.module}, which msgd needs: install {row.package}")


def _programs(root: Path) -> dict[str, str]:
    project = tomllib.loads((root / PROJECT).read_text())["project"]
    scripts: dict[str, str] = project["scripts"]
    return scripts


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    hint = "; be root, or choose another prefix= or DESTDIR=" if isinstance(error, PermissionError) else ""
    return f"{error.filename}: {error.strerror}{hint}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="build_support.install", description="Install a configured tree.")
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--destdir", default="", help="stage the installation below here")
    parser.add_argument("--prefix", default="", help="install for this prefix instead of the configured one")
    given = parser.parse_args(arguments)
    try:
        installation = Installation(configure.ROOT, given.destdir, given.prefix)
        if given.action == "install":
            installation.install()
        else:
            installation.uninstall()
    except (ConfigureError, OSError, subprocess.CalledProcessError) as error:
        print(f"make {given.action}: error: {_reason(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
