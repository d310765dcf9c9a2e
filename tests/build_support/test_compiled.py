# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The compiled hot path is built where it can be, and everything works where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import compiled, registry
from build_support.report import Report
from tests.build_support.conftest import Tree


@pytest.fixture
def has_compiler(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        if compiled.compiler(sys.executable, Report(log)) is None:
            pytest.skip("no C compiler or no Python.h (Debian: gcc, python3-dev)")


def describe(tree: Tree, **environment: str) -> str:
    """What msgd says of the hot path in this tree."""
    code = "from msgd.native import describe; print(describe())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree.path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def compile_in(tree: Tree, *, expect: int = 0, **environment: str) -> str:
    variables = [f"{name}={value}" for name, value in environment.items()]
    done = tree.run("env", *variables, sys.executable, "-B", "-m", "build_support.compiled", expect=expect)
    return done.stdout + done.stderr


def extensions(tree: Tree) -> list[str]:
    return [path.name for path in (tree.path / "msgd").glob("_native*")]


@pytest.mark.usefixtures("has_compiler")
def test_built_and_used(tree: Tree) -> None:
    said = tree.configure(f"--with-python={sys.executable}").stdout
    assert "checking for a C compiler and Python.h... yes (" in said
    assert "compiled hot path  yes" in said
    assert registry.read(tree.path).compiled
    assert describe(tree) == "no (not built)"
    assert compile_in(tree) == ""
    assert describe(tree) == "yes"
    assert describe(tree, MSGD_PURE="1") == "no (MSGD_PURE is set)"
    assert describe(tree, MSGD_PURE="0") == "yes"
    (before,) = (path.stat().st_ino for path in (tree.path / "msgd").glob("_native*"))
    compile_in(tree)
    assert [path.stat().st_ino for path in (tree.path / "msgd").glob("_native*")] == [before], "built once"


@pytest.mark.usefixtures("has_compiler")
def test_no_removes_what_was_built(tree: Tree) -> None:
    tree.configure("--quiet")
    compile_in(tree)
    assert extensions(tree)
    tree.configure("--enable-compiled=no", "--quiet")
    assert registry.read(tree.path).configure_line == "./configure.py --enable-compiled=no"
    compile_in(tree)
    assert not extensions(tree)


def test_no_compiler(tree: Tree) -> None:
    """It is found missing and left out, unless it was asked for."""
    said = tree.run("env", "CC=no-such-compiler", "./configure.py").stdout
    assert "checking for a C compiler and Python.h... no" in said
    assert not registry.read(tree.path).compiled
    assert compile_in(tree) == ""
    assert describe(tree) == "no (not built)"
    asked = ("env", "CC=no-such-compiler", "./configure.py", "--enable-compiled=yes")
    assert "install gcc and python3-dev" in tree.run(*asked, expect=1).stderr


@pytest.mark.usefixtures("has_compiler")
@pytest.mark.parametrize("wanted", ["auto", "yes"])
def test_build_that_fails(tree: Tree, wanted: str) -> None:
    tree.configure(f"--enable-compiled={wanted}", "--quiet")
    source = tree.path / "native" / "module.c"
    source.write_text(source.read_text() + "\n#error broken\n")
    said = compile_in(tree, expect=int(wanted == "yes"))
    assert "msgd._native was not compiled (build/compile.log says why)" in said
    assert said.startswith("warning: " if wanted == "auto" else "make: error: ")
    assert describe(tree) == "no (not built)"
    assert "#error broken" in (tree.path / "build" / "compile.log").read_text()


@pytest.mark.usefixtures("has_compiler")
def test_an_old_one_is_not_kept(tree: Tree) -> None:
    tree.configure("--quiet")
    compile_in(tree)
    source = tree.path / "native" / "module.c"
    source.write_text(source.read_text() + "\n#error broken\n")
    os.utime(source, (2**31, 2**31))
    compile_in(tree)
    assert not extensions(tree)


@pytest.mark.usefixtures("has_compiler")
def test_the_flags_of_the_environment_are_used(tree: Tree) -> None:
    """Those who build packages harden the code with them."""
    tree.configure("--quiet")
    compile_in(
        tree, CPPFLAGS="-DONE=1", CFLAGS="-fstack-protector-strong -ffile-prefix-map=/a=/b", LDFLAGS="-Wl,-z,now"
    )
    line = (tree.path / "build" / "compile.log").read_text()
    for word in ("-DONE=1", "-fstack-protector-strong", "-ffile-prefix-map=/a=/b", "-Wl,-z,now"):
        assert f" {word}" in line
    assert describe(tree) == "yes"
