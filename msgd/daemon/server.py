"""The main process: answers control messages, lets clients in, cleans up after the dead, reloads, stops.

It has no part in what other processes send each other: they reach one another without it, and go on when it is gone.
Whose messages are heard at all (root's, this user's, the trusted users') is the backend's to say.

Two ways to stop.  SIGTERM ends the main process alone: connection processes go on, and the next msgd counts them as
its own; so it can be started anew under its clients.  SHUTDOWN and SIGINT (Ctrl-C) end it all.  Under systemd it is
the service manager who knows whether a SIGTERM is the end: it keeps the lifeline (lifeline.py) over a restart only.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial

from msgd import _registry
from msgd.daemon.children import Children
from msgd.daemon.gateway.accepting import Gateway
from msgd.daemon.gateway.lifeline import Lifeline
from msgd.daemon.gateway.process import uid_served
from msgd.daemon.listener import Listener
from msgd.daemon.loop import NEVER, Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metered import open_messaging
from msgd.daemon.metrics.metrics import Gauge, Metrics
from msgd.daemon.service_manager import ServiceManager
from msgd.daemon.settings import Settings
from msgd.errors import MsgdError, NoSuchProcess
from msgd.events import ADOPTED_ENDED, CLEANED_UP, CONNECTION_FAILED, READY, STOPPING, fields
from msgd.messaging import Messaging, about
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType, type_name
from msgd.wire.server_id import ServerID

logger = logging.getLogger("msgd.daemon")

NAME = "msgd"
"""The name under which the daemon is found in the directory."""

_GATEWAY_MODE = 0o666
"""Everybody may connect; who is let in is decided then."""

_NUMBER = struct.Struct("<I")
"""The answer to SMB_TELL_NUM_CHILDREN, as smbd gives it."""

_STATUS_INTERVAL = 1.0
"""Seconds."""


class Server:
    """The daemon's main process in one object.

    `manager` is the service manager that has started it.  `release` lets go, in a forked child, of what the caller
    holds (the pid file).
    """

    def __init__(self, settings: Settings, manager: ServiceManager, release: Callable[[], None]) -> None:
        self._settings = settings
        self._manager = manager
        self._release = release
        self._children = Children(self._let_go, self._note_change)
        self._gateway: Gateway | None = None
        self._lifeline: Lifeline | None = None
        self._metrics: Metrics | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM, SIGINT or a SHUTDOWN message; `ready` is called once messages are answered.

        Raises what Messaging() and Listener.bind() raise.
        """
        settings = self._settings
        config = settings.config
        with Loop() as self._loop, self._open_metrics(), open_messaging(config, self._counters) as self._messaging:
            loop, messaging = self._loop, self._messaging
            self._clean_up_timer = loop.call_every(config.clean_up_interval or NEVER, self._clean_up)
            self._end_timer = loop.call_later(NEVER, loop.stop)
            self._status_timer = loop.call_later(NEVER, self._tell_status)
            loop.call_every(self._manager.watchdog_interval or NEVER, self._manager.is_alive)
            loop.on_signal(signal.SIGTERM, lambda: self._stop("SIGTERM"))
            loop.on_signal(signal.SIGINT, lambda: self._stop_all("SIGINT"))
            loop.on_signal(signal.SIGHUP, lambda: self._reload("SIGHUP"))
            loop.on_signal(signal.SIGCHLD, self._reap)
            self._serve_messages(messaging)
            self._clean_up()
            self._take_name()
            self._adopt()
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
            self._metrics = Metrics(config, self._loop, self._let_go, self._gauges)
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
        self._settings.debug_levels.serve(messaging, self._loop.obey_signals)
        messaging.register(MessageType.SMB_CONF_UPDATED, lambda one: self._reload(_asked_by(one), **about(one)))
        messaging.register(MessageType.SHUTDOWN, lambda one: self._stop_all(_asked_by(one), **about(one)))
        messaging.register(MessageType.SMB_TELL_NUM_CHILDREN, self._tell_number_of_children)

    def _greeting(self) -> str:
        config = self._settings.config
        return (
            f"msgd {_registry.VERSION} is ready as {self._messaging.server_id} in {config.lock_directory}"
            f" (messaging type {config.messaging_type})"
        )

    def _let_go(self) -> None:
        """In a forked child: let go of all that is the main process's; messaging's fork hook has done its part."""
        self._loop.abandon()
        if self._gateway is not None:
            self._gateway.abandon()
        if self._lifeline is not None:
            self._lifeline.abandon()
        if self._metrics is not None:
            self._metrics.abandon()
        self._children.abandon()
        self._release()

    def _take_name(self) -> None:
        try:
            self._messaging.add_name(NAME)
        except MsgdError as error:  # names are a convenience: a damaged file of theirs stops nobody
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
        """Stop once the connection processes have ended, or have had `msgd:close timeout` for their last words."""
        logger.info("stopping: %s", why, extra=fields(STOPPING, **about_it))
        self._manager.stopping()
        self._close_gateway()
        self._children.signal_all(signal.SIGTERM)
        timeout = self._settings.config.close_timeout
        if not len(self._children) or not timeout:
            self._loop.stop()
        self._end_timer.restart(timeout or NEVER)

    def _close_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    # Connection processes

    def _reap(self) -> None:
        failed = False
        if self._metrics is not None:
            self._metrics.reap()
        for pid, uid, status in self._children.reap():
            if self._metrics is not None:
                self._metrics.ended(pid)
            if status:
                failed = True
                how = f"was killed by {_signal_name(-status)}" if status < 0 else f"failed with status {status}"
                about_it = fields(CONNECTION_FAILED, CONNECTION_PID=pid, PEER_UID=uid, STATUS=status)
                logger.warning("the connection process %d of uid %d %s", pid, uid, how, extra=about_it)
        if failed:
            self._clean_up()
        self._stop_if_last()

    def _adopt(self) -> None:
        """Count the connection processes that an earlier main process has left."""
        try:
            names = self._messaging.names()
        except MsgdError as error:
            logger.error("%s; connection processes of an earlier msgd are not counted", error)
            return
        for name, addresses in names.items():
            uid = uid_served(name)
            if uid is not None:
                for address in addresses:
                    self._adopt_one(address, uid)
        if len(self._children):
            logger.info("%d connection processes of an earlier msgd go on", len(self._children))

    def _adopt_one(self, address: ServerID, uid: int) -> None:
        with contextlib.suppress(NoSuchProcess):
            pidfd = self._messaging.watch(address)
            self._children.adopt(address.pid, pidfd, uid)
            self._loop.on_readable(pidfd, partial(self._adopted_has_ended, address.pid, pidfd))

    def _adopted_has_ended(self, pid: int, pidfd: int) -> None:
        self._loop.on_readable(pidfd, None)
        uid = self._children.release(pid)
        about_it = fields(ADOPTED_ENDED, CONNECTION_PID=pid, PEER_UID=uid)
        logger.info("the connection process %d of uid %d, of an earlier msgd, has ended", pid, uid, extra=about_it)
        self._clean_up()  # how it ended, nobody knows
        self._stop_if_last()

    def _stop_if_last(self) -> None:
        if self._end_timer.is_running and not len(self._children):
            self._loop.stop()

    def _tell_number_of_children(self, message: Message) -> None:
        """Answer with those that run now: the news of one that has ended may be on its way."""
        self._reap()
        for pid, pidfd in self._children.ended_adopted():
            self._adopted_has_ended(pid, pidfd)
        number = _NUMBER.pack(len(self._children))
        self._messaging.reply(message, MessageType.SMB_NUM_CHILDREN, number)

    # What the service manager shows

    def _status(self) -> str:
        number, directory = len(self._children), self._settings.config.lock_directory
        return f"{number} client{'' if number == 1 else 's'}; {self._messaging.server_id} in {directory}"

    def _note_change(self) -> None:
        """The status is told once a second at most, however many come and go."""
        if not self._status_timer.is_running:
            self._status_timer.restart(_STATUS_INTERVAL)

    def _tell_status(self) -> None:
        self._manager.status(self._status())

    # Care

    def _clean_up(self) -> None:
        try:
            pids = self._messaging.clean_up()
        except MsgdError as error:
            logger.error("%s; it is tried again in %g seconds", error, self._settings.config.clean_up_interval)
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
        self._children.signal_all(signal.SIGHUP)


def _dispatch(messaging: Messaging) -> None:
    messaging.dispatch()


def _signal_name(number: int) -> str:
    """A signal as people know it; of the real-time ones the signal module names two only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _asked_by(message: Message) -> str:
    return f"{type_name(message.type)} from {message.src}"
