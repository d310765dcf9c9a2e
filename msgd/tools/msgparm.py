# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgparm: check an smb.conf and print what it sets, as testparm does for Samba."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from msgd.config import Config, Parameter
from msgd.config.config import DEFAULT_PATH
from msgd.config.kinds import UNIX
from msgd.config.parameters import PARAMETERS, find, fold, no_such_parameter
from msgd.config.problems import Weight
from msgd.errors import ConfigError
from msgd.presence.socket_path import check_socket_directory, check_socket_path
from msgd.programs import cli
from msgd.programs.type_rules import TypeRules

PROGRAM = "msgparm"

_DESCRIPTION = """\
Check an smb.conf and print what it sets for msgd.  Samba's own parameters and
shares are ignored.  A line of Samba's that msgd cannot use is a warning; one of
msgd's own is an error, with which msgd does not start."""

_MOST_WARNINGS = 5
"""How many warnings are printed without -v."""

_EPILOG = f"""\
examples:
  msgparm                                    check {DEFAULT_PATH}
  msgparm -s /etc/samba/smb.conf -v          print every value, with defaults
  msgparm --parameter-name='lock directory'  print one value, for scripts
  msgparm --json -v                          print every value as JSON

Exit status: 0 if the file is valid, 1 if not (each fault is a line on stderr
with its file and line), 2 for wrong usage.  As with testparm, it is 0 where
Samba passes over a fault, and 1 where Samba refuses the file.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgparm with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(make_parser().parse_args(argv)))


def make_parser() -> cli.Parser:
    """The parser of msgparm's arguments.  The manual page is generated from it."""
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print defaults too, describe each parameter, and print all warnings",
    )
    parser.add_argument("--parameter-name", metavar="NAME", help="print only this parameter's value (any spelling)")
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, seconds and uids as numbers")
    parser.completion_of["--parameter-name"] = [fold(parameter.name) for parameter in PARAMETERS]
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = Config.load(arguments.configfile)
    _check_usable(config)
    refused = [problem for problem in config.warnings if problem.weight is Weight.REFUSED]
    for problem in refused:
        sys.stderr.write(f"{PROGRAM}: {problem}\n")
    if refused:
        sys.stderr.write(f"{PROGRAM}: Samba refuses this file; msgd uses the rest of it\n")
        return cli.EXIT_FAILURE
    output = _output(config, arguments)
    if arguments.parameter_name is None:
        _warn(config, _MOST_WARNINGS if not arguments.verbose else len(config.warnings))
        _notice(config)
    print(output)
    return 0


def _warn(config: Config, most: int) -> None:
    """Print what msgd passes over, up to `most` lines."""
    for problem in config.warnings[:most]:
        sys.stderr.write(f"{PROGRAM}: warning: {problem}\n")
    if (more := len(config.warnings) - most) > 0:
        sys.stderr.write(f"{PROGRAM}: warning: and {more} more; {PROGRAM} -v prints them all\n")


def _check_usable(config: Config) -> None:
    """Raise ConfigError for values that are well-formed, but that the programs cannot use."""
    TypeRules(config.allow_types)
    check_socket_directory(config.socket_directory)
    check_socket_path("msgd:listen", config.listen)
    check_socket_path("msgd:metrics", config.metrics.removeprefix(UNIX))


def _output(config: Config, arguments: argparse.Namespace) -> str:
    """Return the requested output.  Raises ConfigError for an unknown parameter name."""
    if arguments.parameter_name is not None:
        parameter = _named(arguments.parameter_name)
        value = getattr(config, parameter.attribute)
        return _as_json(_plain(value), indent=None) if arguments.json else _bare(parameter, value)
    chosen = [(parameter, value) for parameter, value, is_set in config.items() if is_set or arguments.verbose]
    if arguments.json:
        return _as_json({parameter.name: _plain(value) for parameter, value in chosen}, indent=4)
    lines = ["[global]"]
    for parameter, value in chosen:
        if arguments.verbose:
            lines += ["", f"\t# {parameter.help}"]
        lines.append(f"\t{parameter.dump(value)}")
    return "\n".join(lines)


def _named(name: str) -> Parameter:
    parameter = find(name) or find(f"msgd:{name}")
    if parameter is None:
        raise ConfigError(f"{name}: {no_such_parameter(name)}")
    return parameter


def _bare(parameter: Parameter, value: Any) -> str:
    """Return the value for scripts: a path is unescaped, without the %% of smb.conf."""
    return value if isinstance(value, str) else parameter.kind.format(value)


def _as_json(value: Any, indent: int | None) -> str:
    import json  # slow to import, and not needed as a rule

    return json.dumps(value, indent=indent)


def _plain(value: Any) -> Any:
    """Return the value as a type that JSON has."""
    return sorted(value) if isinstance(value, frozenset) else value


def _notice(config: Config) -> None:
    """Say on stderr what was read, and warn if msgd and a Samba on the same directories use different sockets."""
    if config.source is None:
        print(f"There is no {DEFAULT_PATH}: the defaults are in force.", file=sys.stderr)
    else:
        print(f"Load smb config files from {config.source}\nLoaded services file OK.", file=sys.stderr)
    upstream = os.path.join(config.private_dir, "msg.sock")
    if os.path.isdir(upstream) and os.path.realpath(upstream) != os.path.realpath(config.socket_directory):
        print(
            f"{PROGRAM}: warning: {upstream} exists, but msgd's sockets are in {config.socket_directory}; to reach"
            f" the Samba that made it, set msgd:socket directory = {upstream}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
