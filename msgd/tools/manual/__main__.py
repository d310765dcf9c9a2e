# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Write manual pages and bash completion for the programs that are named.

    python -m msgd.tools.manual DIRECTORY PROGRAM=MODULE...

The module of a program has a function `make_parser`. The files go to DIRECTORY/man and DIRECTORY/completion.

`make install` runs this with the installed package, so that the pages name the defaults of that installation. Which
programs there are is known to pyproject.toml, which is not installed; they are therefore arguments.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from msgd.tools.manual.completion import completion
from msgd.tools.manual.pages import PARAMETERS_PAGE, Page, parameters_page, program_page


def main(arguments: Sequence[str]) -> int:
    """Write everything below the directory that is named, and return the exit status."""
    directory, *programs = arguments
    man, completions = Path(directory, "man"), Path(directory, "completion")
    for made in (man, completions):
        made.mkdir(parents=True, exist_ok=True)
    parsers = dict(sorted(_program(named) for named in programs))
    pages = (*parsers, PARAMETERS_PAGE)
    (man / PARAMETERS_PAGE.file_name).write_text(parameters_page(pages))
    for page, parser in parsers.items():
        (man / page.file_name).write_text(program_page(page, parser, pages))
        (completions / page.name).write_text(completion(page.name, parser))
    return 0


def _program(named: str) -> tuple[Page, argparse.ArgumentParser]:
    """The page and the parser of PROGRAM=MODULE. A daemon's page belongs to section 8."""
    name, _, module = named.partition("=")
    section = 8 if module.startswith("msgd.daemon.") else 1
    return Page(name, section), importlib.import_module(module).make_parser()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
