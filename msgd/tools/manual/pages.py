# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The manual pages: one for each program, made from its argument parser, and one for smb.conf's parameters."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from msgd import _registry
from msgd.config.config import DEFAULT_PATH
from msgd.config.parameters import PARAMETERS, Parameter
from msgd.tools.manual.parsers import actions, subcommands
from msgd.tools.manual.roff import Roff

GATEWAY = "docs/gateway.md"
"""How the programs' help refers to the gateway's document in the tree."""
INSTALLED_GATEWAY = f"{_registry.DOCDIR}/gateway.md"
"""The same document where `make install` puts it."""


class Page(NamedTuple):
    """A manual page."""

    name: str
    section: int

    @property
    def file_name(self) -> str:
        """The name of its file: `msgd.8`."""
        return f"{self.name}.{self.section}"

    @property
    def reference(self) -> str:
        """How other pages refer to it: `msgd(8)`."""
        return f"{self.name}({self.section})"


PARAMETERS_PAGE = Page("msgd-smb.conf", 5)


def program_page(page: Page, parser: argparse.ArgumentParser, pages: Sequence[Page]) -> str:
    """The text of a program's page; `pages` are all that there are, to refer to."""
    description = " ".join((parser.description or "").split())
    roff = Roff(page.name, page.section, _registry.VERSION)
    roff.section("name")
    roff.text(f"{page.name} - {_first_clause(description)}")
    roff.section("synopsis")
    roff.literal(_usage(parser))
    roff.section("description")
    roff.paragraphs(parser.description or "")
    roff.section("options")
    _write_options(roff, parser)
    for name, subparser in subcommands(parser).items():
        _write_subcommand(roff, f"{page.name} {name}", subparser)
    _write_epilog(roff, parser.epilog or "")
    roff.section("files")
    roff.item(
        DEFAULT_PATH, f"the smb.conf that is read unless -s names another; {PARAMETERS_PAGE.reference} describes it"
    )
    if GATEWAY in description:
        _write_gateway(roff)
    _write_see_also(roff, page, pages)
    return roff.page()


def parameters_page(pages: Sequence[Page]) -> str:
    """The text of the page about smb.conf's parameters."""
    roff = Roff(PARAMETERS_PAGE.name, PARAMETERS_PAGE.section, _registry.VERSION)
    roff.section("name")
    roff.text(f"{PARAMETERS_PAGE.name} - the parameters that msgd reads from smb.conf")
    roff.section("synopsis")
    roff.literal(DEFAULT_PATH)
    roff.section("description")
    roff.paragraphs(
        "These parameters belong in the section [global] of a smb.conf. Names, includes and substitutions follow the"
        " rules of Samba's smb.conf(5). The file of a live Samba can be used as it is: msgd ignores the parameters that"
        " only Samba knows. `msgparm` checks a file, and `msgparm -v` shows the values in force."
    )
    roff.section("parameters")
    for parameter in PARAMETERS:
        roff.item(parameter.name, f"{parameter.sentence} {_facts(parameter)}")
    roff.section("files")
    roff.item(DEFAULT_PATH, "the file that is read unless another is named; without it the defaults are in force")
    _write_gateway(roff)
    _write_see_also(roff, PARAMETERS_PAGE, pages)
    return roff.page()


def _facts(parameter: Parameter) -> str:
    facts = [f"Default: {parameter.default or 'nothing'}.", f"Takes {parameter.kind.description}."]
    if parameter.synonyms:
        facts.append(f"Also called {', '.join(parameter.synonyms)}.")
    if parameter.takes_effect == "reload":
        facts.append("A running msgd takes up a new value on reload.")
    return " ".join(facts)


def _write_subcommand(roff: Roff, name: str, parser: argparse.ArgumentParser) -> None:
    roff.section(name)
    roff.literal(_usage(parser))
    roff.paragraphs(parser.description or "")
    _write_options(roff, parser)
    roff.paragraphs(parser.epilog or "")


def _write_options(roff: Roff, parser: argparse.ArgumentParser) -> None:
    for action in actions(parser):
        if action.option_strings:
            roff.item(_invocation(action), _help(parser, action))


def _invocation(action: argparse.Action) -> str:
    """An option as it is typed: `-t, --timeout SECONDS`."""
    argument = ""
    if action.nargs != 0:
        name = action.metavar or (action.dest or "").upper()
        argument = f" {name}" if action.nargs != "?" else f" [{name}]"
    return ", ".join(action.option_strings) + argument


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = action.help or ""
    return text % {"default": action.default, "prog": parser.prog} if "%" in text else text


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ").strip()


def _write_epilog(roff: Roff, epilog: str) -> None:
    """Write the end of a help text.

    `examples:` before indented lines becomes a section with these lines; `Exit status: ...` becomes a section with
    that text; everything else becomes paragraphs.
    """
    for block in re.split(r"\n\n+|\n(?=[A-Z][a-z ]+: )", epilog.strip("\n")):
        if literal := re.fullmatch(r"([a-z ]+):\n(.*)", block, re.DOTALL):
            roff.section(literal[1])
            roff.literal(literal[2])
        elif text := re.fullmatch(r"([A-Z][a-z ]+): (.*)", block, re.DOTALL):
            roff.section(text[1])
            roff.text(text[2][:1].upper() + text[2][1:])
        else:
            roff.paragraphs(block)


def _write_gateway(roff: Roff) -> None:
    roff.item(INSTALLED_GATEWAY, f"{GATEWAY} as it is installed: the protocol that clients of the gateway speak")


def _write_see_also(roff: Roff, page: Page, pages: Sequence[Page]) -> None:
    roff.section("see also")
    roff.text(", ".join(other.reference for other in sorted(pages) if other != page))


def _first_clause(description: str) -> str:
    clause = re.split(r"[:.](?: |$)", description, maxsplit=1)[0]
    return clause[:1].lower() + clause[1:]
