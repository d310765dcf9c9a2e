# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Load the smb.conf of a program that looks at a running msgd or talks to it (msgcontrol, msgstatus).

Rule 1. A daemon that reloads a smb.conf with bad lines of msgd's keeps its old settings and runs on.  Then is when its
        administrator needs these programs, so they use the rest of the file and print what is wrong with it.
Rule 2. The bad line may be `messaging type`.  The daemon's lock file says which type it uses.
Rule 3. Where no daemon runs, bad lines are an error as for msgd itself.
"""

from __future__ import annotations

import sys

from msgd.config import Config
from msgd.config.problems import Weight
from msgd.errors import ConfigError, MsgdError

_DAEMON = "msgd"


def load_beside_daemon(program: str, path: str | None) -> Config:
    """Return the configuration; print what is wrong in it if a daemon runs in spite of that.  Raises ConfigError."""
    try:
        return Config.load(path)
    except ConfigError:
        config = Config.load(path, is_lenient=True)
        messaging_type = _daemons_type(config)
        if messaging_type is None:
            raise
    for problem in config.warnings:
        if problem.weight is Weight.OWN:
            sys.stderr.write(f"{program}: warning: {problem}\n")
    return config.replace(messaging_type=messaging_type)


def _daemons_type(config: Config) -> str | None:
    """Return the messaging type of the msgd that runs on these directories; None if none is found."""
    from msgd.presence import RendezvousDirectory  # not needed as a rule, and slow to import
    from msgd.presence.pidfile import read_pid

    try:
        pid = read_pid(config.pid_directory, _DAEMON)
        if pid is None:
            return None
        with RendezvousDirectory(config) as directory:
            process = directory.process(pid)
    except MsgdError:
        return None
    return None if process is None else process.messaging_type
