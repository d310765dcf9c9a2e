# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The build hook of `pip install`. Everything else about the package is in pyproject.toml.

A tree that has not been configured is configured here with the defaults, for the interpreter and the modules of the
environment that msgd is being installed into.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_support import compiled, interpreter, requirements, selection  # noqa: E402
from build_support.options import parse  # noqa: E402
from build_support.registry import REGISTRY, write_if_changed  # noqa: E402
from build_support.report import Report  # noqa: E402


class ConfiguredBuild(build_py):
    """build_py, which also writes the module registry if the tree has none."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "msgd"), ignore_errors=True)
        super().run()
        if not (ROOT / REGISTRY).exists():
            # The tree stays unconfigured, unless it is itself what will be imported.
            self._configure(ROOT if self.editable_mode else Path(self.build_lib))

    def _configure(self, target: Path) -> None:
        report = Report(sys.stdout, quiet=True)
        python = interpreter.named(sys.executable, requirements.modules_to_probe(), report)
        registry = selection.select(parse([]), ROOT, python, report)
        write_if_changed(target / REGISTRY, registry.render())


setup(
    cmdclass={"build_py": ConfiguredBuild},
    ext_modules=[
        Extension(
            f"msgd.{compiled.EXTENSION}",
            sorted(str(path) for path in compiled.SOURCES.glob("*.c")),
            depends=sorted(str(path) for path in compiled.SOURCES.glob("*.h")),
            extra_compile_args=["-Wall", "-Wextra", "-Werror=implicit"],
            optional=True,  # without a compiler the wheel is made without it (msgd/native.py)
        )
    ],
    options={"build": {"build_base": "build/pip"}},
)
