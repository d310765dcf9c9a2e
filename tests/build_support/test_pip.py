# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Wheels and source archives: the same wherever they are built, and at home wherever they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from build_support.interpreter import DISTRIBUTION_PYTHON
from build_support.project import ROOT
from tests.build_support.conftest import NETWORK_PATIENCE, Tree

pytestmark = [pytest.mark.network, pytest.mark.timeout(NETWORK_PATIENCE)]

EPOCH = "1700000000"
BUILD = "from setuptools import build_meta as b; print(b.build_sdist('dist'), b.build_wheel('dist'))"
README = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
ROUND_TRIP = """
import sys
from msgd import Config, Messaging
with Messaging(Config(lock_directory=sys.argv[1], messaging_type=sys.argv[2])) as messaging:
    got = []
    messaging.register(0xF001, got.append)
    messaging.send(messaging.server_id, 0xF001, b"hello")
    while not got:
        messaging.dispatch(timeout=10)
    print(got[0].data.decode())
"""
WITHOUT_TDB = ["dgram", "stream"]


def run(*command: str | Path, expect: int = 0, **environment: str) -> str:
    """What a command prints, here without anything of the tests' own environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=NETWORK_PATIENCE,
        check=False,
    )
    assert done.returncode == expect, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if expect else "")


def other_pythons() -> dict[str, str]:
    """The interpreters of other versions that this machine has, pyenv's included, by name."""
    kept: list[Path] = []
    if shutil.which("pyenv") is not None:
        root = subprocess.run(["pyenv", "root"], check=True, capture_output=True, text=True).stdout.strip()
        kept = sorted(Path(root, "versions").glob("3.*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, kept)])
    names = [f"python3.{minor}" for minor in range(11, 20) if minor != sys.version_info.minor]
    found = [(name, shutil.which(name, path=entry)) for entry in path.split(os.pathsep) for name in names]
    return {name: python for name, python in found if python and is_usable(python)}


def is_usable(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


class Environment:
    """A place that a wheel is installed in, and the interpreter that finds it there."""

    def __init__(self, python: Path | str, target: Path | None = None) -> None:
        self.python = python
        self.variables = {"PYTHONPATH": str(target)} if target else {}
        self._where = ["--target", str(target)] if target else []

    @classmethod
    def virtual(cls, path: Path, base: str, *options: str) -> Environment:
        """A virtual environment."""
        run(base, "-m", "venv", *options, path)
        return cls(path / "bin" / "python")

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "--disable-pip-version-check", "install", "--no-input", *arguments)

    def install(self, wheel: Path) -> None:
        self.pip(*self._where, wheel)

    def run(self, *arguments: str | Path, expect: int = 0) -> str:
        return run(self.python, *arguments, expect=expect, **self.variables)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that has what building needs, so that each build is a matter of a second."""
    environment = Environment.virtual(tmp_path_factory.mktemp("builder") / "venv", sys.executable)
    environment.pip("setuptools>=77")
    return environment


def build(tree: Tree, builder: Environment, pure: str = "0") -> tuple[Path, Path]:
    """The sdist and the wheel of a tree."""
    code = f"import os; os.chdir({str(tree.path)!r}); {BUILD}"
    *_, names = run(builder.python, "-c", code, SOURCE_DATE_EPOCH=EPOCH, MSGD_PURE=pure).splitlines()
    sdist, wheel = (tree.path / "dist" / name for name in names.split())
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(builder: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pure wheel of a tree that is configured for another place, with another choice of modules."""
    tree = Tree(tmp_path_factory.mktemp("wheel") / "tree")
    tree.configure("--prefix=/opt/m", "--with-messaging=dgram", "--without-systemd", "--quiet")
    return build(tree, builder, pure="1")[1]


def test_builds_are_reproducible_and_do_not_depend_on_the_configuration(tmp_path: Path, builder: Environment) -> None:
    plain = Tree(tmp_path / "plain")
    configured = Tree(tmp_path / "configured")
    configured.configure("--prefix=/opt/m", "--with-messaging=dgram", "--quiet")
    for path in configured.path.rglob("*"):
        path.chmod(0o700 if path.is_dir() or os.access(path, os.X_OK) else 0o600)
        os.utime(path, (0, 0))
    for pure in ("0", "1"):
        for one, other in zip(build(plain, builder, pure), build(configured, builder, pure), strict=True):
            assert one.name == other.name
            assert one.read_bytes() == other.read_bytes()
    assert not plain.registry.exists()


def test_the_sdist_is_complete_and_passes_its_tests(tree: Tree, tmp_path: Path, builder: Environment) -> None:
    for name in ("tests", ".ci"):
        shutil.copytree(ROOT / name, tree.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".pre-commit-config.yaml", tree.path)
    before = {str(path.relative_to(tree.path)) for path in tree.path.rglob("*") if path.is_file()}
    before = {name for name in before if not name.startswith("debian/")}  # which Debian's source package adds
    sdist, _ = build(tree, builder)
    run("tar", "-xzf", sdist, "-C", tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()} > before
    run(unpacked / "configure.py", "--quiet")
    rooms = ("config", "build_support/test_options.py", "build_support/test_makefile.py")  # the quick ones
    tests = [unpacked / "tests" / room for room in rooms]
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={unpacked}", *tests)


ENVIRONMENTS: dict[str, tuple[Callable[[Path], Environment], list[str]]] = {
    "venv": (lambda path: Environment.virtual(path, DISTRIBUTION_PYTHON), WITHOUT_TDB),
    "system-packages": (
        lambda path: Environment.virtual(path, DISTRIBUTION_PYTHON, "--system-site-packages"),
        ["dgram", "tdb", "stream"],
    ),
    "target": (
        lambda path: Environment(Environment.virtual(path / "venv", DISTRIBUTION_PYTHON).python, path / "target"),
        WITHOUT_TDB,
    ),
    **{name: (partial(Environment.virtual, base=python), WITHOUT_TDB) for name, python in other_pythons().items()},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_wheel_has_what_its_environment_has(name: str, wheel: Path, tmp_path: Path, scratch: Path) -> None:
    make, expected = ENVIRONMENTS[name]
    environment = make(tmp_path)
    environment.install(wheel)
    options = environment.run("-m", "msgd.daemon", "-b")
    types = "import msgd._registry as r; print(*(module.name for module in r.MESSAGING_MODULES))"
    assert environment.run("-c", types).split() == expected
    for messaging_type in ("dgram", "tdb", "stream"):
        directory = scratch / messaging_type
        is_there = messaging_type in expected
        said = environment.run("-c", ROUND_TRIP, directory, messaging_type, expect=0 if is_there else 1)
        if is_there:
            assert said == "hello\n"
        else:
            reason = f"this environment has no Python module {messaging_type}; Debian has it in python3-tdb"
            assert f"messaging type = {messaging_type}: not compiled in ({reason}" in said
            assert f"   {messaging_type}: {reason}" in options
    readme = README.replace("/run/myservice", str(scratch / "readme"))
    assert "b'42 entries'" in environment.run("-c", readme)
    assert environment.run("-m", "msgd.tools.msgparm", "-V").startswith("Version ")


def test_a_wheel_needs_no_more_than_the_library_does(wheel: Path, tmp_path: Path, scratch: Path) -> None:
    """Without the extra `daemon`, msgd runs in the foreground, and says what detaching needs."""
    environment = Environment.virtual(tmp_path, DISTRIBUTION_PYTHON)
    environment.install(wheel)
    installed = environment.run("-m", "pip", "--disable-pip-version-check", "list", "--format=freeze")
    assert {line.partition("==")[0] for line in installed.split()} <= {"iniconfig", "msgd", "pip", "setuptools"}
    conf = scratch / "smb.conf"
    conf.write_text(f"[global]\nlock directory = {scratch}/run\npid directory = {scratch}/run\n")
    said = environment.run("-m", "msgd.daemon", "-s", conf, expect=1)
    assert said.startswith("msgd: msgd cannot detach: No module named 'daemon'; install python3-daemon")
    assert said.count("\n") == 1


def test_an_editable_installation_of_an_unconfigured_tree_decides_at_run_time(tree: Tree, builder: Environment) -> None:
    builder.pip("--no-build-isolation", "--no-deps", "-e", tree.path)
    assert "It is a wheel's" in tree.registry.read_text()
    tree.configure("--prefix=/opt/m", "--quiet")
    text = tree.registry.read_text()
    builder.pip("--no-build-isolation", "--no-deps", "-e", tree.path)
    assert tree.registry.read_text() == text
