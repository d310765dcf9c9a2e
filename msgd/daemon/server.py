# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The main process: answers control messages, accepts clients, cleans up after dead processes, reloads, stops.

Rule 1.  The main process has no part in what other processes send each other: they work without it.

Rule 2.  The backend decides whose messages are heard (those of root, of this user, of the trusted users).

Rule 3.  SIGTERM ends the main process alone: connection processes go on and the next msgd adopts them, so msgd can be
restarted under its clients.  SHUTDOWN and SIGINT (Ctrl-C) end the connection processes as well.  Under systemd only
the service manager knows whether a SIGTERM is final: it keeps the lifeline (lifeline.py) over a restart only.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Collection, Iterator
from functools import partial

from msgd import _registry
from msgd.daemon.children import Children
from msgd.daemon.connections import ConnectionProcesses
from msgd.daemon.control.answers import ControlAnswers
from msgd.daemon.gateway.accepting import Gateway
from msgd.daemon.gateway.lifeline import Lifeline
from msgd.daemon.listener import Listener
from msgd.daemon.loop import NEVER, Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metered import open_messaging
from msgd.daemon.metrics.metrics import Gauge, Metrics
from msgd.daemon.reloads import Reloads
from msgd.daemon.service_manager import ServiceManager
from msgd.daemon.settings import Settings
from msgd.daemon.shortage import is_shortage
from msgd.drops import Pace
from msgd.errors import MsgdError
from msgd.events import CLEANED_UP, READY, SHORTAGE, STOPPING, and_others, fields
from msgd.messaging import Messaging, about
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType, type_name

logger = logging.getLogger("msgd.daemon")

NAME = "msgd"
"""The name of the daemon in the directory."""

_GATEWAY_MODE = 0o666
"""Every process may connect; whether it is accepted is decided then."""

_STATUS_INTERVAL = 1.0
"""Seconds between two status lines for the service manager, at least."""


class Server:
    """The main process of the daemon.

    `manager` is the service manager that started it.  In a forked child `release` closes what the caller holds (the
    pid file).
    """

    def __init__(self, settings: Settings, manager: ServiceManager, release: Callable[[], None]) -> None:
        self._settings = settings
        self._manager = manager
        self._release = release
        self._children = Children(self._abandon, self._note_change)
        self._gateway: Gateway | None = None
        self._lifeline: Lifeline | None = None
        self._metrics: Metrics | None = None
        self._pace = Pace()

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM, SIGINT or a SHUTDOWN message; `ready` is called once messages are answered.

        Raises what Messaging() and Listener.bind() raise.
        """
        settings = self._settings
        config = settings.config
        with (
            Loop(self._note_shortage) as self._loop,
            self._open_metrics(),
            open_messaging(config, self._counters) as self._messaging,
        ):
            loop, messaging = self._loop, self._messaging
            self._connections = ConnectionProcesses(
                self._children, loop, messaging, self._settings.pace, self._metrics, self._clean_up, self._note_ended
            )
            self._clean_up_timer = loop.call_every(config.clean_up_interval or NEVER, self._clean_up)
            self._end_timer = loop.call_later(NEVER, loop.stop)
            self._status_timer = loop.call_later(NEVER, self._tell_status)
            loop.call_every(self._manager.watchdog_interval or NEVER, self._manager.is_alive)
            loop.on_signal(signal.SIGTERM, lambda: self._stop("SIGTERM"))
            loop.on_signal(signal.SIGINT, lambda: self._stop_all("SIGINT"))
            self._reloads = Reloads(loop, self._reload)
            loop.on_signal(signal.SIGHUP, lambda: self._reloads.ask("SIGHUP"))
            loop.on_signal(signal.SIGCHLD, self._connections.reap)
            self._serve_messages(messaging)
            self._clean_up()
            self._add_name()
            self._connections.adopt()
            try:
                if config.listen or self._manager.sockets:
                    self._open_gateway()
                loop.on_readable(messaging.fileno(), partial(_dispatch, messaging))
                logger.info("%s", self._greeting(), extra=fields(READY, SERVER_ID=messaging.server_id))
                ready()
                self._manager.ready(self._status())
                loop.run()
            finally:
                self._close_gateway()
        logger.info("stopped")

    @contextlib.contextmanager
    def _open_metrics(self) -> Iterator[None]:
        config = self._settings.config
        if config.metrics:
            self._metrics = Metrics(config, self._loop, self._abandon, self._gauges)
        try:
            yield
        finally:
            if self._metrics is not None:
                self._metrics.close()
                self._metrics = None

    @property
    def _counters(self) -> Counters | None:
        return None if self._metrics is None else self._metrics.own

    def _gauges(self) -> list[Gauge]:
        return [
            Gauge("processes", "Living processes in the directory", len(self._messaging.processes())),
            Gauge("connection_processes", "Clients that are connected to the gateway", len(self._children)),
        ]

    def _open_gateway(self) -> None:
        listen, passed = ("msgd:listen", self._settings.config.listen), self._manager.sockets
        listener = Listener.adopt(*listen, passed) if passed else Listener.bind(*listen, _GATEWAY_MODE)
        self._lifeline = Lifeline.of(self._manager)
        watched = None if self._lifeline is None else self._lifeline.watched
        self._gateway = Gateway(self._loop, self._settings, listener, self._children, watched, self._metrics)

    def _serve_messages(self, messaging: Messaging) -> None:
        answers = ControlAnswers(self._settings, messaging, "msgd")
        answers.serve(self._loop.obey_signals, self._connections.hand_on)
        messaging.register(MessageType.SMB_CONF_UPDATED, lambda one: self._reloads.ask(_asked_by(one), **about(one)))
        messaging.register(MessageType.SHUTDOWN, lambda one: self._stop_all(_asked_by(one), **about(one)))
        messaging.register(MessageType.SMB_TELL_NUM_CHILDREN, self._connections.tell_number)

    def _greeting(self) -> str:
        config = self._settings.config
        return (
            f"msgd {_registry.VERSION} is ready as {self._messaging.server_id} in {config.lock_directory}"
            f" (messaging type {config.messaging_type})"
        )

    def _abandon(self) -> None:
        """In a forked child: close what belongs to the main process, but for what messaging's fork hook has closed."""
        self._loop.abandon()
        if self._gateway is not None:
            self._gateway.abandon()
        if self._lifeline is not None:
            self._lifeline.abandon()
        if self._metrics is not None:
            self._metrics.abandon()
        self._children.abandon()
        self._release()

    def _add_name(self) -> None:
        try:
            self._messaging.add_name(NAME)
        except MsgdError as error:  # names are a convenience: msgd runs with a damaged file of names, too
            logger.error("%s; msgd goes on without its name", error)

    # Stopping

    def _stop(self, why: str) -> None:
        logger.info("stopping: %s", why, extra=fields(STOPPING))
        self._manager.stopping()
        self._close_gateway()
        if len(self._children):
            logger.info("%d connection processes go on", len(self._children))
        self._loop.stop()

    def _stop_all(self, why: str, **about_it: object) -> None:
        """Stop once the connection processes have ended, or after `msgd:close timeout`."""
        logger.info("stopping: %s", why, extra=fields(STOPPING, **about_it))
        self._manager.stopping()
        self._close_gateway()
        self._children.signal_all(signal.SIGTERM)
        timeout = self._settings.config.close_timeout
        if not len(self._children) or not timeout:
            self._loop.stop()
        self._end_timer.restart(timeout or NEVER)

    def _note_ended(self, uids: Collection[int]) -> None:
        if self._gateway is not None:
            self._gateway.note_ended(uids)
        self._stop_if_last()

    def _stop_if_last(self) -> None:
        if self._end_timer.is_running and not len(self._children):
            self._loop.stop()

    def _close_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    # What the service manager shows

    def _status(self) -> str:
        number, directory = len(self._children), self._settings.config.lock_directory
        return f"{number} client{'' if number == 1 else 's'}; {self._messaging.server_id} in {directory}"

    def _note_change(self) -> None:
        """Tell the status once a second at most, however many clients come and go."""
        if not self._status_timer.is_running:
            self._status_timer.restart(_STATUS_INTERVAL)

    def _tell_status(self) -> None:
        self._manager.status(self._status())

    # Upkeep

    def _note_shortage(self, error: Exception) -> None:
        """What was at hand is given up, or tried again in a moment; the rest goes on."""
        if number := self._pace.due("shortage"):
            what = str(error) or "no memory is left"
            about_it = fields(SHORTAGE, NUMBER=number)
            logger.error("out of resources%s: %s; msgd goes on", and_others(number), what, extra=about_it)

    def _clean_up(self) -> None:
        try:
            pids = self._messaging.clean_up()
        except (MsgdError, OSError, MemoryError) as error:
            if not isinstance(error, MsgdError) and not is_shortage(error):
                raise
            what = str(error) or "no memory is left"
            if number := self._pace.due("clean-up"):
                seconds = self._settings.config.clean_up_interval
                logger.error("%s%s; the next clean-up is in %g seconds", what, and_others(number), seconds)
            return
        if pids:
            named = ", ".join(map(str, pids))
            logger.info("cleaned up after dead processes: %s", named, extra=fields(CLEANED_UP, PIDS=named))

    def _reload(self, why: str, **about_it: object) -> None:
        before = self._settings.config.clean_up_interval
        self._manager.reloading()
        self._settings.reload(why, **about_it)
        self._manager.ready(self._status())
        if self._settings.config.clean_up_interval != before:
            self._clean_up_timer.restart(self._settings.config.clean_up_interval or NEVER)
        if self._gateway is not None:
            self._gateway.reload()
        self._children.signal_all(signal.SIGHUP)


def _dispatch(messaging: Messaging) -> None:
    messaging.dispatch()


def _asked_by(message: Message) -> str:
    return f"{type_name(message.type)} from {message.src}"
