# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The settings in force in a process of the daemon, and their reload."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgd.config import Config, changes_on_reload, reloaded
from msgd.config.problems import Weight
from msgd.daemon.logs import Log
from msgd.daemon.shared_pace import SharedPace
from msgd.errors import ConfigError
from msgd.events import NOT_RELOADED, RELOADED, fields
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
        self.pace = SharedPace()
        """Of the lines about a user's clients; forked children share it."""
        self.profile_mode = ProfileMode.OFF
        """What this process was last told to count; a forked child begins with it."""
        self._load = load
        self._log = log
        self._log_destination = log_destination
        self._told: set[str] = set()
        self._warn(config)

    def latest_log(self) -> str:
        """The latest lines of the log."""
        return self._log.latest()

    def reload(self, why: str, **about_it: object) -> None:
        """Read the settings and re-open the log.  If the file is worse than before, the settings stay as they are.

        `why`, and the fields `about_it` for the journal, say who asked for it.
        """
        read = self._read()
        try:
            self._log.reopen(self._log_destination(read or self.config))
        except ConfigError as error:
            logger.error("reload: %s; the log stays where it was", error)
        if read is None:
            logger.error(
                "not reloaded: %s; the settings stay as they were", why, extra=fields(NOT_RELOADED, **about_it)
            )
            return
        if read.log_level.text != self.config.log_level.text:  # otherwise levels set by `msgcontrol debug` stay
            self.debug_levels.set(read.log_level)
        for name in changes_on_reload(self.config, read):
            logger.warning("reload: %s has changed; the change takes effect when msgd is restarted", name)
        self._warn(read)
        self.config = reloaded(self.config, read)
        logger.info("reloaded: %s", why, extra=fields(RELOADED, **about_it))

    def _read(self) -> Config | None:
        """The settings of the file; None, with the faults in the log, if it is not to be used.

        That is so for faults of msgd's own, and for a file that Samba refuses, since Samba keeps its settings then.
        """
        try:
            read = self._load()
            rules = TypeRules(read.allow_types)
        except ConfigError as error:
            problems = error.problems
        else:
            problems = tuple(str(one) for one in read.warnings if one.weight is Weight.REFUSED)
            if not problems:
                self.type_rules = rules
                return read
        for problem in problems:
            logger.error("reload: %s", problem)
        return None

    def _warn(self, config: Config) -> None:
        """Log what msgd passes over in the file, each thing once."""
        for problem in config.warnings:
            if (text := str(problem)) not in self._told:
                self._told.add(text)
                logger.warning("%s", text)
