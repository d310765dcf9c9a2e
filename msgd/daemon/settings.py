# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The settings in force in a process of the daemon, and their reload."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgd.config import Config, changes_on_reload, reloaded
from msgd.daemon.logs import Log
from msgd.errors import ConfigError
from msgd.events import RELOADED, fields
from msgd.programs.debug_levels import DebugLevels
from msgd.programs.type_rules import TypeRules
from msgd.wire.control import ProfileMode

logger = logging.getLogger("msgd.daemon")


class Settings:
    """The settings in force in this process: `config`, the log and the debug levels.

    `load` reads the settings again; `log_destination` says where the log goes with given settings.  A forked child
    has its own copy and reloads it by itself.
    """

    def __init__(
        self, config: Config, load: Callable[[], Config], log: Log, log_destination: Callable[[Config], str]
    ) -> None:
        self.config = config
        """What is in force.  A reload changes only the settings that a running daemon can change."""
        self.type_rules = TypeRules(config.allow_types)
        self.debug_levels = DebugLevels(config.log_level)
        self.profile_mode = ProfileMode.OFF
        """What this process was last told to count; a forked child begins with it."""
        self._load = load
        self._log = log
        self._log_destination = log_destination

    def latest_log(self) -> str:
        """The latest lines of the log."""
        return self._log.latest()

    def reload(self, why: str, **about_it: object) -> None:
        """Read the settings and re-open the log.  A setting or log that is unusable is logged and stays as it was.

        `why`, and the fields `about_it` for the journal, say who asked for it.
        """
        try:
            read = self._load()
            self.type_rules = TypeRules(read.allow_types)
        except ConfigError as error:
            for problem in error.problems:
                logger.error("reload: %s", problem)
            logger.error("reload: the settings stay as they were")
            read = self.config
        try:
            self._log.reopen(self._log_destination(read))
        except ConfigError as error:
            logger.error("reload: %s; the log stays where it was", error)
        if read.log_level.text != self.config.log_level.text:  # otherwise levels set by `msgcontrol debug` stay
            self.debug_levels.set(read.log_level)
        for name in changes_on_reload(self.config, read):
            logger.warning("reload: %s has changed; the change takes effect when msgd is restarted", name)
        self.config = reloaded(self.config, read)
        logger.info("reloaded: %s", why, extra=fields(RELOADED, **about_it))
