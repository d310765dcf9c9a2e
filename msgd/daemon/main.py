# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd's command line: smbd's options, and what each way of running means for pid file, log and terminal."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence

from msgd import _registry, native
from msgd.config import Config
from msgd.config.kinds import LogLevel
from msgd.config.values import ConfigValues
from msgd.daemon.detach import run_detached
from msgd.daemon.logs import STDERR, STDOUT, SYSLOG, Log
from msgd.daemon.server import Server
from msgd.daemon.service_manager import ServiceManager, find_service_manager
from msgd.daemon.settings import Settings
from msgd.errors import ConfigError
from msgd.presence.pidfile import PidFile
from msgd.programs import cli

logger = logging.getLogger("msgd.daemon")

PROGRAM = "msgd"

_DESCRIPTION = """\
The messaging daemon: removes what dead processes leave in the rendezvous directories, answers msgcontrol (or Samba's
smbcontrol), and serves clients that have no place in them through a socket, each by its own process (docs/gateway.md).
Processes message each other with or without it."""

_EPILOG = """\
examples:
  msgd                     start as a daemon; returns when it is ready
  msgd -i -d 5             run here and show everything it does; Ctrl-C ends it
  msgd -F                  run in the foreground, for systemd and other supervisors
  msgcontrol msgd ping     check that it runs
  msgcontrol msgd shutdown

Signals: SIGTERM stops the main process (its connection processes go on, and the next msgd takes them over), SIGINT
stops them all, SIGHUP re-reads smb.conf and re-opens the log file.
Exit status: 0 for success, 1 if it could not start or failed, 2 for wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgd with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(make_parser().parse_args(argv)))


def make_parser() -> argparse.ArgumentParser:
    """The parser of msgd's arguments; the manual page is generated from it."""
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("-D", "--daemon", action="store_true", help="run as a daemon (the default, if neither -F nor -i is given)")
    add("-F", "--foreground", action="store_true", help="stay in the foreground; log to stderr if there is no log file")
    add("-i", "--interactive", action="store_true", help="stay in the foreground and log to stdout")
    add("-d", "--debuglevel", metavar="LEVEL", type=_level, help="log level 0 to 10, whatever smb.conf says")
    add("-l", "--log-basename", metavar="DIR", type=os.path.abspath, help="log to DIR/log.msgd, whatever smb.conf says")
    add("-b", "--build-options", action="store_true", help="print how msgd was built and which modules it has")
    return parser


def _level(text: str) -> LogLevel:
    try:
        return LogLevel(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _run(arguments: argparse.Namespace) -> int:
    if arguments.build_options:
        print(build_options())
        return 0
    load = _loader(arguments)
    config = load()
    pid_file = PidFile(config.pid_directory, PROGRAM, {0, os.geteuid(), *config.trusted_users})

    def serve(ready: Callable[[], None]) -> None:
        _serve(config, load, arguments, pid_file, manager, ready)

    manager = find_service_manager() if arguments.foreground else ServiceManager()
    if not (arguments.foreground or arguments.interactive):
        return run_detached(PROGRAM, pid_file, serve)
    faulthandler.enable()  # a crash, or a watchdog's SIGABRT, says where
    with pid_file:
        serve(_ignore_ready)
    return 0


def _loader(arguments: argparse.Namespace) -> Callable[[], Config]:
    """The function that reads the settings at start and at each reload, command-line options included."""
    path = arguments.configfile and os.path.abspath(arguments.configfile)  # a daemon changes its working directory
    overrides: ConfigValues = {}
    if arguments.debuglevel is not None:
        overrides["log_level"] = arguments.debuglevel
    if arguments.log_basename is not None:
        overrides["log_file"] = os.path.join(arguments.log_basename, "log.msgd")
    return lambda: Config.load(path).replace(**overrides)


def _serve(
    config: Config,
    load: Callable[[], Config],
    arguments: argparse.Namespace,
    pid_file: PidFile,
    manager: ServiceManager,
    ready: Callable[[], None],
) -> None:
    """Log and serve.  An error after the start is logged before it is raised."""
    started = False

    def log_destination(config: Config) -> str:
        if arguments.interactive:
            return STDOUT
        return config.log_file or (STDERR if arguments.foreground else SYSLOG)

    def on_ready() -> None:
        nonlocal started
        started = True
        ready()

    with _open_log(log_destination(config), arguments) as log:
        try:
            settings = Settings(config, load, log, log_destination)
            Server(settings, manager, pid_file.release).run(on_ready)
        except Exception:
            if started:
                logger.exception("msgd has failed")
            raise


def _open_log(destination: str, arguments: argparse.Namespace) -> Log:
    """Open the log.  smb.conf's `log file` is Samba's: if it cannot be opened, msgd logs elsewhere, as Samba does.

    Raises ConfigError for the log file that the command line names.
    """
    try:
        return Log(destination)
    except ConfigError as error:
        if arguments.log_basename is not None:
            raise
        log = Log(STDERR if arguments.foreground else SYSLOG)
        logger.error("%s; msgd logs here instead", error)
        return log


def _ignore_ready() -> None:
    """In the foreground the log says when msgd is ready."""


def build_options() -> str:
    """The text of -b: how this msgd was built."""
    modules = "\n".join(f"   {module.name}: {module.description}" for module in _registry.MESSAGING_MODULES)
    left_out = "".join(f"   {name}: {reason}\n" for name, reason in _registry.LEFT_OUT.items()) or "   none\n"
    names = ("PREFIX", "BINDIR", "SBINDIR", "CONFIGDIR", "LOCKDIR", "PRIVATEDIR", "PIDDIR", "LOGDIR")
    paths = "\n".join(f"   {name}: {getattr(_registry, name)}" for name in names)
    return f"""\
Version {_registry.VERSION}
Configured with: {_registry.CONFIGURE_LINE}
Python: {_registry.PYTHON}

Paths:
{paths}

Messaging modules (the first is the default):
{modules}

Messaging modules that are left out:
{left_out}
Built with:
   systemd: {"yes" if _registry.WITH_SYSTEMD else "no"}
   cluster: {"yes" if _registry.WITH_CLUSTER else "no"}
   compiled hot path: {native.describe()}"""


if __name__ == "__main__":
    sys.exit(main())
