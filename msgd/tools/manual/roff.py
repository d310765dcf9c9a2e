"""A manual page as man(7) has it, from plain text."""

from __future__ import annotations

import re

_INDENTED = re.compile(r"^ ", re.MULTILINE)


class Roff:
    """The text of a page, written from top to bottom."""

    def __init__(self, name: str, section: int, version: str) -> None:
        self._lines = [f'.TH "{escaped(name.upper())}" {section} "" "msgd {escaped(version)}" "msgd"', ".nh", ".ad l"]

    def section(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f'.SH "{escaped(title.upper())}"')

    def text(self, text: str) -> None:
        """Write text, filled into lines of its own width."""
        self._lines.append(escaped(" ".join(text.split())))

    def paragraphs(self, text: str) -> None:
        """Write text, a paragraph after each blank line; a paragraph with indented lines stays as it is."""
        for paragraph in re.split(r"\n\n+", text.strip("\n")):
            if _INDENTED.search(paragraph):
                self.literal(paragraph)
            elif paragraph:
                self._lines.append(".PP")
                self.text(paragraph)

    def literal(self, text: str) -> None:
        """Write lines as they are."""
        self._lines += [".PP", ".nf", *(escaped(line) for line in text.strip("\n").splitlines()), ".fi"]

    def item(self, tag: str, text: str) -> None:
        """Write an item of a list: a tag in bold, and the text about it."""
        self._lines += [".TP", f"\\fB{escaped(tag)}\\fR", escaped(" ".join(text.split()))]

    def page(self) -> str:
        """All of it."""
        return "\n".join(self._lines) + "\n"


def escaped(text: str) -> str:
    """Text that roff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text
