# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The command-line behaviour that every program shares: the argument parser, error messages and exit statuses.

Rule 1. A failure prints one line for each fault on stderr, `PROGRAM: what is wrong and what to do`, and exits with
        status 1.  Wrong usage exits with 2, Ctrl-C with 130.
Rule 2. If the reader of stdout has gone away (`| head`), the program ends silently with status 1.
Rule 3. Only a bug prints a traceback.
Rule 4. If the caller has closed a standard descriptor (`>&-`), run() opens it.  Otherwise the next socket would get its
        number.  Printing to a closed stdout still fails, as it should; output to a closed stderr is discarded.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from msgd import _registry
from msgd.config.config import DEFAULT_PATH
from msgd.errors import ConfigError, MsgdError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""The status that a shell reports for a process killed by SIGINT."""

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a program to end."""

_STDOUT = "stdout"
_COLUMNS = 80


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal.

    argparse asks the module shutil for the width, once for each argument that a parser gets, and that module imports
    those for all kinds of archives.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_terminal_columns() - 2)


def _terminal_columns() -> int:
    """What shutil.get_terminal_size() finds: what the environment says, or the width of the terminal at stdout."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size().columns or _COLUMNS
    except OSError:  # stdout is closed, or no terminal
        return _COLUMNS


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line and has the -V and -s options of Samba's programs.

    For a shell that completes: `completion_words` holds words for the positional arguments, `completion_command` is a
    command that prints more of them, and `completion_of` has words for the argument of an option.  For the manual:
    `subprograms` has the parsers of words that stand in the place of the first argument.
    """

    def __init__(self, program: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=program,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.completion_words: list[str] = []
        self.completion_command = ""
        self.completion_of: dict[str, list[str]] = {}
        self.subprograms: dict[str, Parser] = {}
        self.configfile = self.add_argument(
            "-s", "--configfile", metavar="FILE", help=f"the smb.conf to read (default: {DEFAULT_PATH})"
        )
        self.add_argument("-V", "--version", action="version", version=f"Version {_registry.VERSION}")

    @property
    def options_with_argument(self) -> set[str]:
        """The options that take the next word as their argument."""
        return {option for action in self._actions if action.nargs is None for option in action.option_strings}

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with the status for wrong usage."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def seconds(text: str) -> float:
    """Parse an option's number of seconds, which must be finite and above 0.  For `type=`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run(program: str, body: Callable[[], int]) -> int:
    """Run a program's body and return its exit status.  Report an error that it raises, and return its status."""
    if sys.stdout is sys.__stdout__:  # a Python caller may have replaced it
        _open_standard_streams()
        gc.freeze()  # what has been imported stays to the end, so no collection has to look through it
    try:
        status = _status(body)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (MsgdError, OSError) as error:
        if isinstance(error, OSError) and error.filename == _STDOUT:
            # What is still buffered would raise again at exit: discard it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(complaint(program, error))
        return EXIT_FAILURE


class _Stdout(io.TextIOWrapper):
    """A stdout whose errors carry its name, so that run() can recognise them.

    Wrapping the raw stream instead was rejected: Ctrl-C just after its write makes the buffered stream write the same
    bytes again.
    """

    def write(self, text: str, /) -> int:
        with _errors_of_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _errors_of_stdout():
            super().flush()


@contextlib.contextmanager
def _errors_of_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, _STDOUT) from None


def _open_standard_streams() -> None:
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  # until the process ends
    is_closed = sys.stdout is None
    sys.stdout = _Stdout(
        open(os.open(os.devnull, os.O_RDONLY), "wb") if is_closed else sys.stdout.buffer,  # noqa: SIM115
        encoding=None if is_closed else sys.stdout.encoding,
        errors="surrogateescape",  # a path may hold any bytes
        line_buffering=not is_closed and sys.stdout.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _status(body: Callable[[], int]) -> int:
    """The body's exit status, even if its argument parser raised SystemExit: there may be help text left to flush."""
    try:
        return body()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILURE


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that the program cleans up before it exits.

    The exit status is 128 plus the signal's number, as a shell reports it.  SIGINT raises KeyboardInterrupt already.
    """
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit)


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def complaint(program: str, error: MsgdError | OSError) -> str:
    """The error message for a person: one line for each fault, each with its newline."""
    return "".join(f"{program}: {line}\n" for line in faults(error))


def faults(error: MsgdError | OSError) -> tuple[str, ...]:
    """What is wrong: one line for each fault, without the program's name."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, OSError) and error.strerror is not None:
        return (f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror,)
    return (str(error),)


def log_errors_only(program: str) -> None:
    """Print what the library logs as an error as a line on stderr, and nothing else.  For programs that run once."""
    logging.basicConfig(level=logging.ERROR, format=f"{program}: %(message)s")
