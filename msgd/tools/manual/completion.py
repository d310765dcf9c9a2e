# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Completion for bash: a program's options, its subcommands, the words of its arguments, and file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from msgd.tools.manual.parsers import actions, subcommands

_COMPLETION = """\
# Completion of {name} for bash, made from its parser.
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
    """The completion script of a program."""
    by_name = subcommands(parser)
    cases = "".join(
        f"        {command}) COMPREPLY=($(compgen -W '{_options(of_command)}' -- \"$current\")); return ;;\n"
        for command, of_command in by_name.items()
    )
    command_cases = f"    case ${{COMP_WORDS[1]}} in\n{cases}    esac\n" if cases else ""
    return _COMPLETION.format(
        name=name,
        arguments="".join(_argument_cases(parser)),
        commands=command_cases,
        options=_options(parser),
        words=" ".join([*by_name, *_words(parser)]),
    )


def _argument_cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield, for each option that takes an argument, what can be offered for it: files, choices, or nothing."""
    for action in actions(parser):
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
    return " ".join(option for action in actions(parser) for option in action.option_strings)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The words to offer for positional arguments, which a parser may name in `completion_words`."""
    words: list[str] = getattr(parser, "completion_words", [])
    return words
