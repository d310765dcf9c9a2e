# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Completion for bash: a program's options, its subcommands, the words of its arguments, and file names.

A parser may say what words there are for its arguments: msgd.programs.cli.Parser has the attributes.  bash takes the
colon of a parameter's name for the end of a word, so the scripts put the parts together again.

compgen expands its list of words as the shell does.  So what other processes have a say in, their names, is passed in
a variable, whose value it does not expand again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from msgd.tools.manual.parsers import actions, subcommands

_COMPLETION = """\
# Completion of {name} for bash, made from its parser.
_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} before=
    if [[ $current == : ]] && ((COMP_CWORD > 2)); then
        before=$previous: current= previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    elif [[ $previous == : ]] && ((COMP_CWORD > 3)); then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}: previous=${{COMP_WORDS[COMP_CWORD - 3]}}
    fi
    case $previous in
{arguments}    esac
{commands}    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W '{options}' -- "$current"))
    else
{command}        COMPREPLY=($(compgen -W '{words}' -- "$current"))
    fi
}}
complete -o bashdefault -o default -F _{name} {name}
"""

_COMMAND = """\
        local more option= configfile=()
        for option in "${{!COMP_WORDS[@]}}"; do
            [[ ${{COMP_WORDS[option]}} == -s ]] && configfile=(-s "${{COMP_WORDS[option + 1]-}}")
        done
        more=$({command} "${{configfile[@]}}" 2>/dev/null)
"""

_FILES = ("FILE", "DIR", "DIRECTORY", "PATH")


def completion(name: str, parser: argparse.ArgumentParser) -> str:
    """The completion script of a program."""
    by_name = subcommands(parser)
    command: str = getattr(parser, "completion_command", "")
    cases = "".join(
        f"        {subcommand}) COMPREPLY=($(compgen -W '{_options(of_command)}' -- \"$current\")); return ;;\n"
        for subcommand, of_command in by_name.items()
    )
    command_cases = f"    case ${{COMP_WORDS[1]}} in\n{cases}    esac\n" if cases else ""
    return _COMPLETION.format(
        name=name,
        arguments="".join(_argument_cases(parser)),
        commands=command_cases,
        options=_options(parser),
        words=" ".join([*by_name, *getattr(parser, "completion_words", ()), *(["$more"] if command else [])]),
        command=_COMMAND.format(command=command) if command else "",
    )


def _argument_cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield, for each option that takes an argument, what can be offered for it: files, choices, or nothing."""
    seen: set[str] = set()
    for owner in (parser, *subcommands(parser).values()):
        words: dict[str, list[str]] = getattr(owner, "completion_of", {})
        for action in actions(owner):
            if not action.option_strings or action.nargs in (0, "?") or seen & set(action.option_strings):
                continue
            seen.update(action.option_strings)
            reply = _reply(action, words.get(action.option_strings[-1]))
            yield f"        {'|'.join(action.option_strings)}) {reply}; return ;;\n"


def _reply(action: argparse.Action, words: list[str] | None) -> str:
    """The command that offers what an option's argument can be."""
    if action.metavar in _FILES:
        return f'COMPREPLY=($(compgen -{"d" if action.metavar in ("DIR", "DIRECTORY") else "f"} -- "$current"))'
    offered = " ".join(map(str, words or action.choices or ()))
    if not offered:
        return "COMPREPLY=()"
    whole = f"COMPREPLY=($(compgen -W '{offered}' -- \"$before$current\"))"
    return f'{whole}; COMPREPLY=("${{COMPREPLY[@]#"$before"}}")' if ":" in offered else whole


def _options(parser: argparse.ArgumentParser) -> str:
    return " ".join(option for action in actions(parser) for option in action.option_strings)
