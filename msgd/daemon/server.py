"""The main process: answers control messages, cleans up after the dead, reloads, stops.

It has no part in what other processes send each other: they reach one another without it, and go on when it is gone.
Whose messages are heard at all (root's, this user's, the trusted users') is the backend's to say.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial

from msgd import _registry
from msgd.config import Config, changes_on_reload
from msgd.daemon.logs import Log
from msgd.daemon.loop import Loop
from msgd.errors import ConfigError, MsgdError
from msgd.messaging import Messaging
from msgd.tools.debuglevel import DebugLevels
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

logger = logging.getLogger("msgd.daemon")

NAME = "msgd"
"""The name under which the daemon is found in the directory."""


class Server:
    """The daemon's main process in one object.

    `load` reads the settings anew, `log_destination` says where the log goes with given settings.
    """

    def __init__(
        self, config: Config, load: Callable[[], Config], log: Log, log_destination: Callable[[Config], str]
    ) -> None:
        self._started_with = config
        self._config = config
        self._load = load
        self._log = log
        self._log_destination = log_destination
        self._debug_levels = DebugLevels(config.log_level)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM, SIGINT or a SHUTDOWN message; `ready` is called once messages are answered.

        Raises what Messaging() raises.
        """
        with Loop() as loop, Messaging(self._started_with) as messaging:
            self._clean_up_timer = loop.every(self._config.clean_up_interval, lambda: self._clean_up(messaging))
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.on_signal(signum, partial(self._stop, loop, signum.name))
            loop.on_signal(signal.SIGHUP, lambda: self._reload("SIGHUP"))
            self._debug_levels.serve(messaging)
            messaging.register(MessageType.SMB_CONF_UPDATED, lambda message: self._reload(_asked_by(message)))
            messaging.register(MessageType.SHUTDOWN, lambda message: self._stop(loop, _asked_by(message)))
            self._clean_up(messaging)
            self._take_name(messaging)
            loop.on_readable(messaging.fileno(), lambda: _dispatch(messaging))
            logger.info("%s", self._greeting(messaging))
            ready()
            loop.run()
        logger.info("stopped")

    def _greeting(self, messaging: Messaging) -> str:
        config = self._config
        return (
            f"msgd {_registry.VERSION} is ready as {messaging.server_id} in {config.lock_directory}"
            f" (messaging type {config.messaging_type})"
        )

    def _stop(self, loop: Loop, why: str) -> None:
        logger.info("stopping: %s", why)
        loop.stop()

    def _take_name(self, messaging: Messaging) -> None:
        try:
            messaging.add_name(NAME)
        except MsgdError as error:  # names are a convenience: a damaged file of theirs stops nobody
            logger.error("%s; msgd goes on without its name", error)

    def _clean_up(self, messaging: Messaging) -> None:
        try:
            pids = messaging.clean_up()
        except MsgdError as error:
            logger.error("%s; it is tried again in %g seconds", error, self._clean_up_timer.interval)
            return
        if pids:
            logger.info("cleaned up after dead processes: %s", ", ".join(map(str, pids)))

    def _reload(self, why: str) -> None:
        """Read the settings anew, open the log anew; what cannot be used is logged and stays as it was."""
        try:
            config = self._load()
        except ConfigError as error:
            for problem in error.problems:
                logger.error("reload: %s", problem)
            logger.error("reload: the settings stay as they were")
            config = self._config
        try:
            self._log.reopen(self._log_destination(config))
        except ConfigError as error:
            logger.error("reload: %s; the log goes on where it was", error)
        if config.log_level.text != self._config.log_level.text:  # else what `msgcontrol debug` has set stays
            self._debug_levels.set(config.log_level)
        if config.clean_up_interval != self._config.clean_up_interval:
            self._clean_up_timer.interval = config.clean_up_interval
        for name in changes_on_reload(self._started_with, config):
            logger.warning("reload: %s has changed; that takes effect when msgd is started anew", name)
        self._config = config
        logger.info("reloaded: %s", why)


def _dispatch(messaging: Messaging) -> None:
    messaging.dispatch()


def _asked_by(message: Message) -> str:
    return f"{MessageType(message.type).name} from {message.src}"
