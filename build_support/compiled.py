# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The extension msgd._native: whether it can be compiled here, and compiling it in the tree.

    python3 -m build_support.compiled

`make` runs this.  Nothing needs the extension (msgd/native.py), so a failure is a warning, unless the tree was
configured with --enable-compiled=yes.  An extension that is older than its sources, or that was made for another
interpreter, is removed before the compiler runs: the tree never runs an old one.

CC, CPPFLAGS, CFLAGS and LDFLAGS of the environment are used, as by every build of C: those who build packages harden
the code with them, and keep the directory where it was built out of it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support import registry
from build_support.project import ROOT
from build_support.report import ConfigureError, Report

SOURCES = Path("native")
EXTENSION = "_native"
FLAGS = ("-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror=implicit")

_ASK = """\
import json, sysconfig
print(json.dumps({"include": sysconfig.get_path("include"), "suffix": sysconfig.get_config_var("EXT_SUFFIX")}))
"""

_TRIAL = """\
#include <Python.h>
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian machines only"
#endif
PyMODINIT_FUNC PyInit_trial(void);
PyMODINIT_FUNC PyInit_trial(void) { return NULL; }
"""


@dataclass(frozen=True)
class Compiler:
    """How extensions are compiled for one interpreter."""

    command: tuple[str, ...]
    include: str
    suffix: str

    def line(self, sources: Sequence[str], target: str, flags: Sequence[str] = FLAGS) -> list[str]:
        """The command that makes the extension `target`."""
        given = [*_words("CPPFLAGS"), *_words("CFLAGS")]
        include = f"-I{self.include}"
        return [*self.command, *flags, *given, include, "-shared", *sources, "-o", target, *_words("LDFLAGS")]


def compiler(python: str, report: Report) -> Compiler | None:
    """The compiler ($CC, by default cc) for extensions of this interpreter; None if there is none that works."""
    answer = report.run([python, "-I", "-c", _ASK])
    if answer.returncode:
        return None
    found = Compiler(tuple(_words("CC", "cc")), **json.loads(answer.stdout))
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "trial.c")
        source.write_text(_TRIAL)
        made = report.run(found.line([str(source)], f"{directory}/trial.so"))
    return None if made.returncode else found


def _words(variable: str, default: str = "") -> list[str]:
    """The words of a variable of the environment."""
    return shlex.split(os.environ.get(variable, default))


def check(wanted: str, python: str, report: Report) -> bool:
    """Whether the extension is to be compiled, where `wanted` is auto, yes or no.

    ConfigureError if it must be compiled and cannot be.
    """
    if wanted == "no":
        return False
    found = compiler(python, report)
    report.checked("a C compiler and Python.h", found=found is not None, detail=found.command[0] if found else "")
    if wanted == "yes" and found is None:
        raise ConfigureError("--enable-compiled=yes needs a C compiler and Python.h: install gcc and python3-dev")
    return found is not None


def build(root: Path, report: Report) -> None:
    """Compile the extension of a configured tree if it is to be; ConfigureError if that fails and must not."""
    configured = registry.read(root)
    package = root / "msgd"
    sources = sorted(str(path) for path in (root / SOURCES).glob("*.c"))
    found = compiler(configured.python, report) if configured.compiled else None
    target = package / f"{EXTENSION}{found.suffix}" if found else None
    newest = max(path.stat().st_mtime for path in (root / SOURCES).iterdir())
    if target and target.exists() and target.stat().st_mtime > newest:
        return
    for path in package.glob(f"{EXTENSION}.*.so"):
        path.unlink()
    if not configured.compiled:
        return
    made = found and report.run(found.line(sources, f"{target}.new"))
    if target and made and not made.returncode:
        os.replace(f"{target}.new", target)
        return
    problem = "msgd._native was not compiled (build/compile.log says why)"
    if "--enable-compiled=yes" in configured.configure_line:
        raise ConfigureError(problem)
    report.say(f"warning: {problem}; msgd runs without it, slower")


def main() -> int:
    """Compile the extension of this tree, and return the exit status."""
    try:
        (ROOT / "build").mkdir(exist_ok=True)
        with (ROOT / "build" / "compile.log").open("w") as log:
            build(ROOT, Report(log))
    except (ConfigureError, OSError) as error:
        print(f"make: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
