"""The settings a running process of the daemon obeys, and reading them anew."""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgd.config import Config, changes_on_reload, reloaded
from msgd.daemon.logs import Log
from msgd.errors import ConfigError
from msgd.events import RELOADED, fields
from msgd.programs.debug_levels import DebugLevels
from msgd.programs.type_rules import TypeRules

logger = logging.getLogger("msgd.daemon")


class Settings:
    """The settings in force in this process: `config`, the log and the debug levels.

    `load` reads the settings anew, `log_destination` says where the log goes with given settings.  A forked child
    goes on with its copy, and reloads it by itself.
    """

    def __init__(
        self, config: Config, load: Callable[[], Config], log: Log, log_destination: Callable[[Config], str]
    ) -> None:
        self.config = config
        """What is in force: of what was read at the last reload, that which a running daemon obeys."""
        self.type_rules = TypeRules(config.allow_types)
        self.debug_levels = DebugLevels(config.log_level)
        self._load = load
        self._log = log
        self._log_destination = log_destination

    def reload(self, why: str, **about_it: object) -> None:
        """Read the settings anew, open the log anew; what cannot be used is logged and stays as it was.

        `why`, and for the journal the fields `about_it`, say who has asked for it.
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
            logger.error("reload: %s; the log goes on where it was", error)
        if read.log_level.text != self.config.log_level.text:  # else what `msgcontrol debug` has set stays
            self.debug_levels.set(read.log_level)
        for name in changes_on_reload(self.config, read):
            logger.warning("reload: %s has changed; that takes effect when msgd is started anew", name)
        self.config = reloaded(self.config, read)
        logger.info("reloaded: %s", why, extra=fields(RELOADED, **about_it))
