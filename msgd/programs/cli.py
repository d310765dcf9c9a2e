# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The manners that the programs share, once: how they fail, what they exit with, how their options are parsed.

A failure is one line a fault on stderr, `PROGRAM: what is wrong and what to do`, and exit status 1; wrong usage is
exit status 2 and Ctrl-C 130.  A reader of stdout that has gone away (`| head`) ends the program without a word.
Only a bug makes a traceback.

A standard descriptor that the caller has closed (`>&-`) is opened, or the next socket would get its number: what is
printed to a stdout that is closed fails, as it is to, and what is said to such a stderr goes nowhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from msgd import _registry
from msgd.config.config import DEFAULT_PATH
from msgd.errors import ConfigError, MsgdError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""What a shell makes of a process that SIGINT ended."""


_STDOUT = "stdout"


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line, and has -V and -s as Samba's programs have them.

    `completion_words` are what a shell may offer for its positional arguments.
    """

    def __init__(self, program: str, description: str, epilog: str, usage: str | None = None) -> None:
        super().__init__(
            prog=program,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.completion_words: list[str] = []
        self.configfile = self.add_argument(
            "-s", "--configfile", metavar="FILE", help=f"the smb.conf to read (default: {DEFAULT_PATH})"
        )
        self.add_argument("-V", "--version", action="version", version=f"Version {_registry.VERSION}")

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with the status for wrong usage."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run(program: str, body: Callable[[], int]) -> int:
    """Run a program's body and return its exit status, or that of what it raised, having said what it was."""
    if sys.stdout is sys.__stdout__:  # a caller in Python may have put something else there
        _open_standard_streams()
    try:
        status = _status(body)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (MsgdError, OSError) as error:
        if isinstance(error, OSError) and error.filename == _STDOUT:
            # What is still buffered would raise again at exit: let it go where anything may be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(complaint(program, error))
        return EXIT_FAILURE


class _Stdout(io.TextIOWrapper):
    """stdout, whose errors say where they were.

    Not a raw stream that does so: Ctrl-C behind its write would have the buffered one write the same once more.
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
        errors="surrogateescape",  # whatever bytes a path holds
        line_buffering=not is_closed and sys.stdout.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _status(body: Callable[[], int]) -> int:
    """The body's exit status, also where the parser of its arguments ended it: there may be help text to flush."""
    try:
        return body()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILURE


def complaint(program: str, error: MsgdError | OSError) -> str:
    """The lines that tell a person of the error, one a fault, each with its newline."""
    return "".join(f"{program}: {line}\n" for line in faults(error))


def faults(error: MsgdError | OSError) -> tuple[str, ...]:
    """What is wrong, a line a fault, without the program's name."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, OSError) and error.strerror is not None:
        return (f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror,)
    return (str(error),)


def log_errors_only(program: str) -> None:
    """For a program that runs once: what the library logs as an error is a line on stderr, the rest is not shown."""
    logging.basicConfig(level=logging.ERROR, format=f"{program}: %(message)s")
