"""Makes the manual pages and the shell completion, from the programs' argument parsers and smb.conf's table.

Usage: python -m msgd.tools.manual DIRECTORY

It is run by the interpreter that msgd is for, with the installed package first on its path: so the pages tell the
defaults of that installation.  They go to DIRECTORY/man and DIRECTORY/completion.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from msgd import _registry
from msgd.config.config import DEFAULT_PATH
from msgd.config.parameters import PARAMETERS, Parameter
from msgd.tools.manual.roff import Roff

PROJECT = Path("pyproject.toml")
PARAMETERS_PAGE = ("msgd-smb.conf", 5)
GATEWAY = "docs/gateway.md"
INSTALLED_GATEWAY = f"{_registry.PREFIX}/share/doc/msgd/gateway.md"


def main(arguments: list[str]) -> int:
    """Make everything below the directory that is named."""
    directory = Path(*arguments)
    for kind in ("man", "completion"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
    parsers = dict(sorted(_parsers()))
    pages = {(name, section): parser for (name, section), parser in parsers.items()}
    others = [*pages, PARAMETERS_PAGE]
    for page, parser in pages.items():
        _write_page(directory, page, program_page(page, parser, others))
    _write_page(directory, PARAMETERS_PAGE, parameters_page(others))
    for (name, _), parser in pages.items():
        (directory / "completion" / name).write_text(completion(name, parser))
    return 0


def _parsers() -> Iterator[tuple[tuple[str, int], argparse.ArgumentParser]]:
    """The programs' pages, (name, section), with their parsers: what a daemon is has its page in section 8."""
    scripts: dict[str, str] = tomllib.loads(PROJECT.read_text())["project"]["scripts"]
    for name, entry_point in scripts.items():
        module = entry_point.partition(":")[0]
        section = 8 if module.startswith("msgd.daemon.") else 1
        yield (name, section), importlib.import_module(module).make_parser()


def _write_page(directory: Path, page: tuple[str, int], text: str) -> None:
    name, section = page
    (directory / "man" / f"{name}.{section}").write_text(text)


# Pages


def program_page(page: tuple[str, int], parser: argparse.ArgumentParser, others: list[tuple[str, int]]) -> str:
    """The page of a program."""
    name, section = page
    description = " ".join((parser.description or "").split())
    roff = Roff(name, section, _registry.VERSION)
    roff.section("name")
    roff.text(f"{name} - {_first_clause(description)}")
    roff.section("synopsis")
    roff.literal(_usage(parser))
    roff.section("description")
    roff.paragraphs(parser.description or "")
    _write_options(roff, parser)
    for command, of_command in _commands(parser).items():
        roff.section(f"{name} {command}")
        roff.literal(_usage(of_command))
        roff.paragraphs(of_command.description or "")
        _write_options(roff, of_command, heading=False)
        roff.paragraphs(of_command.epilog or "")
    _write_epilog(roff, parser.epilog or "")
    roff.section("files")
    roff.item(DEFAULT_PATH, f"the smb.conf that is read if -s names no other; {_reference(PARAMETERS_PAGE)} has it all")
    if GATEWAY in description:
        _write_gateway(roff)
    _write_see_also(roff, page, others)
    return roff.page()


def parameters_page(others: list[tuple[str, int]]) -> str:
    """The page of smb.conf's parameters."""
    name, section = PARAMETERS_PAGE
    roff = Roff(name, section, _registry.VERSION)
    roff.section("name")
    roff.text(f"{name} - what msgd reads in smb.conf")
    roff.section("synopsis")
    roff.literal(DEFAULT_PATH)
    roff.section("description")
    roff.paragraphs(
        "These parameters stand in the section [global] of a smb.conf, with smb.conf's rules for names, includes and"
        " substitutions. A live Samba's own file will do: what is Samba's alone is passed over. `msgparm` checks a"
        " file, `msgparm -v` shows what is in force."
    )
    roff.section("parameters")
    for parameter in PARAMETERS:
        roff.item(parameter.name, f"{_sentence(parameter.help)} {_facts(parameter)}")
    roff.section("files")
    roff.item(DEFAULT_PATH, "the file that is read if none is named; without it the defaults are in force")
    _write_gateway(roff)
    _write_see_also(roff, PARAMETERS_PAGE, others)
    return roff.page()


def _facts(parameter: Parameter) -> str:
    facts = [f"Default: {parameter.default or 'nothing'}.", f"Takes {parameter.kind.description}."]
    if parameter.synonyms:
        facts.append(f"Also called {', '.join(parameter.synonyms)}.")
    if parameter.takes_effect == "reload":
        facts.append("A running msgd obeys a new value on reload.")
    return " ".join(facts)


def _write_options(roff: Roff, parser: argparse.ArgumentParser, *, heading: bool = True) -> None:
    options = [action for action in _actions(parser) if action.option_strings]
    if heading:
        roff.section("options")
    for action in options:
        roff.item(_invocation(action), _help(parser, action))


def _invocation(action: argparse.Action) -> str:
    """An option as one writes it: `-t, --timeout SECONDS`."""
    argument = ""
    if action.nargs != 0:
        name = action.metavar or (action.dest or "").upper()
        argument = f" {name}" if action.nargs != "?" else f" [{name}]"
    return ", ".join(action.option_strings) + argument


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = action.help or ""
    return text % {"default": action.default, "prog": parser.prog} if "%" in text else text


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help is not argparse.SUPPRESS]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ").strip()


def _write_epilog(roff: Roff, epilog: str) -> None:
    """Paragraphs; `examples:` over indented lines heads a section of them, `Exit status: ...` one of text."""
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
    roff.item(INSTALLED_GATEWAY, f"{GATEWAY} as it is installed: what clients of the gateway say and are told")


def _write_see_also(roff: Roff, page: tuple[str, int], others: list[tuple[str, int]]) -> None:
    roff.section("see also")
    roff.text(", ".join(_reference(other) for other in sorted(others) if other != page))


def _reference(page: tuple[str, int]) -> str:
    return "{}({})".format(*page)


def _first_clause(description: str) -> str:
    clause = re.split(r"[:.](?: |$)", description, maxsplit=1)[0]
    return clause[:1].lower() + clause[1:]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# Completion

_COMPLETION = """\
# Completion of {name} for bash, made with its parser.
_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    case $previous in
{arguments}    esac
{commands}    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W '{options}' -- "$current"))
    else
        COMPREPLY=($(compgen -W '{words}' -- "$current"))
    fi
}}
complete -o bashdefault -o default -F _{name} {name}
"""

_FILES = ("FILE", "DIR", "DIRECTORY", "PATH")


def completion(name: str, parser: argparse.ArgumentParser) -> str:
    """The completion of a program: its options and subcommands, the words of its positional arguments, and files."""
    commands = _commands(parser)
    cases = "".join(
        f"        {command}) COMPREPLY=($(compgen -W '{_options(of_command)}' -- \"$current\")); return ;;\n"
        for command, of_command in commands.items()
    )
    by_command = f"    case ${{COMP_WORDS[1]}} in\n{cases}    esac\n" if cases else ""
    return _COMPLETION.format(
        name=name,
        arguments="".join(_argument_cases(parser)),
        commands=by_command,
        options=_options(parser),
        words=" ".join([*commands, *_words(parser)]),
    )


def _argument_cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """For each option that takes an argument: what that can be, else nothing is offered."""
    for action in _actions(parser):
        if not action.option_strings or action.nargs in (0, "?"):
            continue
        if action.metavar in _FILES:
            reply = f'COMPREPLY=($(compgen -{"d" if action.metavar in ("DIR", "DIRECTORY") else "f"} -- "$current"))'
        elif action.choices is not None:
            reply = f"COMPREPLY=($(compgen -W '{' '.join(map(str, action.choices))}' -- \"$current\"))"
        else:
            reply = "COMPREPLY=()"
        yield f"        {'|'.join(action.option_strings)}) {reply}; return ;;\n"


def _options(parser: argparse.ArgumentParser) -> str:
    return " ".join(option for action in _actions(parser) for option in action.option_strings)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The words of the positional arguments: a parser that has some names them in `completion_words`."""
    words: list[str] = getattr(parser, "completion_words", [])
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
