# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The build hooks of `pip install`. Everything else about the package is in pyproject.toml.

A wheel gets a registry of its own, whether the tree is configured or not: build_support/wheel.py says why.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_support import archive, compiled, wheel  # noqa: E402
from build_support.registry import REGISTRY, replace, write_if_changed  # noqa: E402


class BuildWithRegistry(build_py):
    """build_py, which also writes the module registry."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "msgd"), ignore_errors=True)
        super().run()
        text = wheel.render(ROOT)
        if not self.editable_mode:
            replace(Path(self.build_lib) / REGISTRY, text.encode(), 0o644)
        elif not (ROOT / REGISTRY).exists():  # the tree itself will be imported, as it is configured
            write_if_changed(ROOT / REGISTRY, text)


class ReproducibleWheel(bdist_wheel):
    """bdist_wheel, whose wheel depends on the contents of the files only."""

    def run(self) -> None:
        super().run()
        for command, _, path in self.distribution.dist_files:
            if command == "bdist_wheel":
                archive.normalize_wheel(Path(path))


class ReproducibleSdist(sdist):
    """sdist, whose archive depends on the contents of the files only."""

    def make_archive(
        self,
        base_name: Any,
        format: str,
        root_dir: Any = None,
        base_dir: Any = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> str:
        """Pack the release tree `base_dir`, in the one format that sdists have."""
        return archive.pack(Path(base_dir or base_name), Path(f"{base_name}.tar.gz"))


setup(
    cmdclass={"build_py": BuildWithRegistry, "bdist_wheel": ReproducibleWheel, "sdist": ReproducibleSdist},
    # MSGD_PURE=1 makes a wheel without the extension, for every interpreter and machine.
    ext_modules=[]
    if os.environ.get("MSGD_PURE", "0") not in ("", "0")
    else [
        Extension(
            f"msgd.{compiled.EXTENSION}",
            sorted(str(path) for path in compiled.SOURCES.glob("*.c")),
            depends=sorted(str(path) for path in compiled.SOURCES.glob("*.h")),
            extra_compile_args=["-Wall", "-Wextra", "-Werror=implicit", "-g0"],  # no paths of the tree in it
            optional=True,  # without a compiler the wheel is made without it (msgd/native.py)
        )
    ],
    options={"build": {"build_base": "build/pip"}},
)
