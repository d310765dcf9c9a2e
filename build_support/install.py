# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make install` and `make uninstall`.

Rule 1. The package goes into a directory of its own, PREFIX/lib/msgd, which is on no interpreter's path. Launchers in
        bindir and sbindir put that directory first on sys.path. (A Python service that wants to `import msgd` sets
        PYTHONPATH to that directory, or installs the package with pip.) With --with-pythondir, for packages of
        distributions, it goes into a directory that the interpreter searches, and launchers leave sys.path alone.
Rule 2. PREFIX/lib/msgd/manifest.json records what was put where. Uninstalling removes what it lists and nothing else;
        installing again removes what the new version no longer has.
Rule 3. A configuration file is replaced or removed only while it is exactly as it was installed. Once edited it
        belongs to the administrator, and the new one is put beside it as *.new.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from build_support import interpreter, launchers, metadata, project, registry, units
from build_support.options import PRIVATE_PACKAGE, parse_line
from build_support.project import ROOT
from build_support.registry import REGISTRY
from build_support.report import ConfigureError, Report
from build_support.requirements import RUN_TIME

SHEBANG_LIMIT = 255
"""How many bytes of a `#!` line Linux reads."""

TAKE_UP = (
    "systemd-sysusers && systemd-tmpfiles --create msgd.conf",
    "systemctl daemon-reload && systemctl restart systemd-sysctl",
)
"""The commands that make systemd read its new files without a reboot."""
SEARCHED_BY_SYSTEMD = ("/usr", "/usr/local")
"""The prefixes under which systemd searches for them."""
RUN_BY_SYSTEMD = Path("/run/systemd/system")
"""This directory exists if systemd runs this machine."""


@dataclass
class Manifest:
    """What an installation put on the machine. All paths are without DESTDIR."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    """The directories that the installation created."""
    configuration: dict[str, str] = field(default_factory=dict)
    """Each configuration file, and the digest of the content that was installed."""

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest of the present installation, or an empty one."""
        if not path.exists():
            return cls()
        stored = json.loads(path.read_text())
        return cls(set(stored["files"]), set(stored["directories"]), stored["configuration"])

    def render(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=1, default=sorted) + "\n"


class Installation:
    """One place where msgd is or will be installed."""

    def __init__(self, root: Path, destdir: str, prefix: str) -> None:
        configured = registry.read(root)
        more = [f"--prefix={prefix}"] if prefix else []
        options = parse_line(configured.configure_line, *more)
        self._root = root
        self._programs = project.read(root).programs
        self._destdir = os.path.abspath(destdir) if destdir else ""
        self._registry = replace(configured, configure_line=options.line, directories=options.directories)
        private = PRIVATE_PACKAGE.format_map(options.directories)
        self._package_directory = options.directories["pythondir"]
        self._is_private = self._package_directory == private
        self._manifest_path = f"{private}/manifest.json"
        self._installed = Manifest.read(self._real(self._manifest_path))
        self._new = Manifest(directories=set(self._installed.directories))

    def install(self) -> None:
        """Install everything, and remove what an earlier version installed and this one does not."""
        self._install_package()
        self._install_programs()
        self._install_units()
        self._install_manual()
        self._install_documents()
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
            print("systemd reads its new files at the next boot, or after these commands:", *TAKE_UP, sep="\n    ")

    def uninstall(self) -> None:
        """Remove what the manifest lists, except configuration that was edited."""
        for path in self._installed.files:
            self._real(path).unlink(missing_ok=True)
        for path, digest in self._installed.configuration.items():
            if _digest(self._real(path)) == digest:
                self._real(path).unlink()
            elif self._real(path).exists():
                print(f"kept {self._real(path)}, which was edited")
        self._real(self._manifest_path).unlink(missing_ok=True)
        for path in sorted(self._installed.directories, reverse=True):
            with contextlib.suppress(OSError):  # not empty: somebody else has files in it
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
        if not self._is_private:
            described = f"{self._package_directory}/msgd-{self._registry.version}.dist-info"
            self._put_file(f"{described}/METADATA", metadata.render(self._root).encode())
            self._put_file(f"{described}/INSTALLER", b"make\n")

    def _install_programs(self) -> None:
        python = self._registry.python
        if len(os.fsencode(f"#!{python}\n")) > SHEBANG_LIMIT or " " in python:
            raise ConfigureError(f"{python} does not fit into a #! line: configure with another --with-python")
        directories = self._registry.directories
        for program in self._programs:
            directory = directories["sbindir" if program.is_daemon else "bindir"]
            package = os.path.relpath(
                os.path.realpath(self._real(self._package_directory)), os.path.realpath(self._real(directory))
            )
            launcher = launchers.installed(
                program,
                python=python,
                version=self._registry.version,
                package_directory=package if self._is_private else None,
            )
            self._put_file(f"{directory}/{program.name}", launcher.encode(), 0o755)

    def _install_units(self) -> None:
        new = self._registry
        for unit in units.units(self._root, new.directories, with_systemd=new.with_systemd):
            self._put_file(unit.path, unit.text.encode())

    def _install_manual(self) -> None:
        """Install the manual pages and the shell completion, which the package just installed makes itself."""
        package = str(self._real(self._package_directory))
        directories = self._registry.directories
        programs = [f"{program.name}={program.module}" for program in self._programs]
        with tempfile.TemporaryDirectory() as made:
            subprocess.run(
                [self._registry.python, "-B", "-P", "-m", "msgd.tools.manual", made, *programs],
                check=True,
                # The installed package, not the tree's: the pages name the defaults of this prefix.
                env=os.environ | {"PYTHONPATH": package},
            )
            for page in sorted(Path(made, "man").iterdir()):
                self._put_file(f"{directories['mandir']}/man{page.suffix[1:]}/{page.name}", page.read_bytes())
            for script in sorted(Path(made, "completion").iterdir()):
                path = f"{directories['prefix']}/share/bash-completion/completions/{script.name}"
                self._put_file(path, script.read_bytes())

    def _install_documents(self) -> None:
        """Install what the manual pages refer to, and what changed."""
        docs = sorted((self._root / "docs").iterdir())
        for source in (*docs, *(self._root / name for name in ("CHANGELOG.md", "README.md", "SECURITY.md"))):
            self._put_file(f"{self._registry.directories['docdir']}/{source.name}", source.read_bytes())

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
        """Compile the package, unless the environment says that nobody wants that."""
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            return
        package = self._real(f"{self._package_directory}/{REGISTRY.parent}")
        shown_as = ["-s", self._destdir, "-p", "/"] if self._destdir else []
        subprocess.run(
            [self._registry.python, "-I", "-m", "compileall", "-q", *shown_as, str(package)], check=True, umask=0o022
        )
        for directory in package.rglob("__pycache__"):
            self._new.directories.add(str(directory).removeprefix(self._destdir))
            self._new.files |= {str(path).removeprefix(self._destdir) for path in directory.iterdir()}

    def _warn_of_missing_modules(self) -> None:
        python = interpreter.named(self._registry.python, [row.module for row in RUN_TIME], Report(io.StringIO()))
        for row in RUN_TIME:
            if row.module not in python.modules:
                print(f"warning: msgd needs the module {row.module}: install {row.package} for {python.executable}")


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    hint = "; be root, or choose another prefix= or DESTDIR=" if isinstance(error, PermissionError) else ""
    return f"{error.filename}: {error.strerror}{hint}"


def main(arguments: Sequence[str]) -> int:
    """Install or uninstall the configured tree that this package stands in, and return the exit status."""
    parser = argparse.ArgumentParser(prog="build_support.install", description="Install a configured tree.")
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--destdir", default="", help="stage the installation under this directory")
    parser.add_argument("--prefix", default="", help="install for this prefix instead of the configured one")
    given = parser.parse_args(arguments)
    try:
        installation = Installation(ROOT, given.destdir, given.prefix)
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
