# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Write a manual page, in the macros of man(7), from plain text."""

from __future__ import annotations

import re

_INDENTED = re.compile(r"^ ", re.MULTILINE)


class Roff:
    """The text of one page, written from top to bottom."""

    def __init__(self, name: str, section: int, version: str) -> None:
        self._lines = [f'.TH "{escaped(name.upper())}" {section} "" "msgd {escaped(version)}" "msgd"', ".nh", ".ad l"]

    def section(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f'.SH "{escaped(title.upper())}"')

    def text(self, text: str) -> None:
        """Write text, which the reader's terminal fills into lines."""
        self._lines.append(escaped(" ".join(text.split())))

    def paragraphs(self, text: str) -> None:
        """Write text whose paragraphs are separated by blank lines. One with indented lines keeps its line breaks."""
        for paragraph in re.split(r"\n\n+", text.strip("\n")):
            if _INDENTED.search(paragraph):
                self.literal(paragraph)
            elif paragraph:
                self._lines.append(".PP")
                self.text(paragraph)

    def literal(self, text: str) -> None:
        """Write lines and keep their line breaks."""
        self._lines += [".PP", ".nf", *(escaped(line) for line in text.strip("\n").splitlines()), ".fi"]

    def item(self, tag: str, text: str) -> None:
        """Write an item of a list: a tag in bold, then the text about it."""
        self._lines += [".TP", f"\\fB{escaped(tag)}\\fR", escaped(" ".join(text.split()))]

    def page(self) -> str:
        """The source text of the whole page."""
        return "\n".join(self._lines) + "\n"


def escaped(text: str) -> str:
    """The text with everything escaped that roff would interpret."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text
