"""The connection process: one client, one messaging context, one loop, until either has had enough.

What the client sends is cut into lines and done by the session; answers and events go to the outbox.  Memory is
bounded from both sides: while more than `msgd:client buffer bytes` wait for the client, no line of it is looked at
and no message is taken in for it, so those who send to it find its queue full, and are told so.  And while one of its
requests holds up the others, no more of them is read than a line may have.

The end.  A client that says no more (the end of its stream) is still answered what it has asked, and still gets the
messages it has registered for, as long as it is there to read.  A client that breaks a bound gets a last word: what
waits for it, then the `bye`.  After that nothing is written, and what it still sends is thrown away until it closes
or `msgd:close timeout` is over: closing with something unread would take the last word away from it.

A process that is not the client may still end this one: the main process (SIGTERM), a SHUTDOWN message, or the
service manager, when it lets go of the lifeline.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import select
import signal
import socket

from msgd.config import Config
from msgd.daemon.children import LetIn
from msgd.daemon.gateway.outbox import Outbox
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.session import MAX_CALLS, Session
from msgd.daemon.loop import NEVER, Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metered import open_messaging
from msgd.daemon.settings import Settings
from msgd.drops import Pace
from msgd.errors import MalformedMessage, MsgdError
from msgd.events import CONNECTED, CONNECTION_FAILED, DISCONNECTED, TYPE_REFUSED, and_others, fields
from msgd.messaging import Messaging
from msgd.wire.gateway.json_lines import LineReader
from msgd.wire.gateway.replies import FAILED, IDLE, STALLED, STOPPED, TOO_LONG, write_bye
from msgd.wire.gateway.requests import MAX_TYPES
from msgd.wire.message_types import MessageType, type_name

logger = logging.getLogger("msgd.daemon")

_NAME = "msgd-connection-"
"""How the names of connection processes begin, followed by the uid they serve: the next main process finds them so."""

_READ = 1 << 16
_NO_MEMORY = write_bye(FAILED, "the connection process has used up msgd:client memory")
_AGAIN = 0.001
"""Seconds until messages that were left for another round are looked at."""


def serve(
    client: socket.socket,
    peer: Peer,
    settings: Settings,
    lifeline: int | None,
    counters: Counters | None,
    let_signals_in: LetIn,
) -> int:
    """Be the connection process of a client, to its end; the exit status.

    `lifeline`: the pipe whose end is this process's end.  `counters`: where it counts its messages, if it does.
    `let_signals_in` is called once they can be obeyed.
    """
    about_it = peer.fields
    with client:
        try:
            _limit_memory(settings.config.client_memory)
            client.setblocking(False)
            with Loop() as loop, open_messaging(settings.config, counters) as messaging:
                _take_name(messaging, peer.uid)
                logger.info("%s is connected", peer, extra=fields(CONNECTED, **about_it))
                why = _Connection(client, peer, settings, loop, messaging).run(lifeline, let_signals_in)
            logger.info("%s is disconnected: %s", peer, why, extra=fields(DISCONNECTED, **about_it))
        except MemoryError:
            _say_at_once(client, _NO_MEMORY)
            logger.error("%s has used up msgd:client memory", peer, extra=fields(CONNECTION_FAILED, **about_it))
            return 1
        except (MsgdError, OSError) as error:
            _say_at_once(client, write_bye(FAILED, str(error)))
            logger.error("the connection of %s: %s", peer, error, extra=fields(CONNECTION_FAILED, **about_it))
            return 1
    return 0


def uid_served(name: str) -> int | None:
    """The uid that the connection processes of this name serve; None if it is another name."""
    uid = name.removeprefix(_NAME)
    return int(uid) if uid != name and uid.isdecimal() else None


def _take_name(messaging: Messaging, uid: int) -> None:
    try:
        messaging.add_name(f"{_NAME}{uid}")
    except MsgdError as error:  # only the next main process would miss it
        logger.error("%s; this connection process goes on without a name", error)


def _limit_memory(size: int) -> None:
    """Private memory that can be written; what is mapped from files does not count."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))  # a reload may raise it again


def _say_at_once(client: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # the client is gone, or has not read what came before: then it hears nothing
        client.send(line)


class _Connection:
    def __init__(self, client: socket.socket, peer: Peer, settings: Settings, loop: Loop, messaging: Messaging) -> None:
        self._client = client
        self._peer = peer
        self._settings = settings
        config = settings.config
        self._loop = loop
        self._messaging = messaging
        self._lines = LineReader(config.client_line_bytes)
        self._outbox = Outbox(client)
        self._session = Session(messaging, loop, self._may_send, self._emit, self._dispatch, self._fail, self._limits)
        self._pace = Pace()
        self._paused = False
        """Whether so much waits for the client that nothing is taken in."""
        self._gone = select.epoll()
        """Readable when the client is gone altogether: hangups are told unasked."""
        self._gone.register(client, 0)
        self._half_closed = False
        """Whether the client says no more."""
        self._why: str | None = None
        """Once the last word is said: why."""
        self._idle_timer = loop.call_every(config.client_idle_timeout or NEVER, self._idle)
        self._stall_timer = loop.call_later(NEVER, self._stalled)
        self._again_timer = loop.call_later(NEVER, self._dispatch)

    def run(self, lifeline: int | None, let_signals_in: LetIn) -> str:
        """Serve to the end; why it came."""
        loop, messaging = self._loop, self._messaging
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(signum, lambda: self._end(STOPPED, "the connection process was told to end"))
        loop.on_signal(signal.SIGHUP, lambda: self._reload("SIGHUP"))
        let_signals_in()
        if lifeline is not None:
            loop.on_readable(lifeline, lambda: self._lifeline_cut(lifeline))
        self._settings.debug_levels.serve(messaging, loop.obey_signals)
        messaging.register(MessageType.SMB_CONF_UPDATED, lambda message: self._reload(f"{message.src}"))
        messaging.register(MessageType.SHUTDOWN, lambda message: self._end(STOPPED, f"SHUTDOWN from {message.src}"))
        loop.on_readable(messaging.fileno(), self._dispatch)
        self._watch_client()
        loop.run()
        self._gone.close()
        return self._why or "it has closed"

    @property
    def _config(self) -> Config:
        return self._settings.config

    def _limits(self) -> dict[str, object]:
        config = self._config
        return {
            "line_bytes": config.client_line_bytes,
            "message_bytes": config.max_message_size,
            "idle_seconds": config.client_idle_timeout,
            "calls": MAX_CALLS,
            "types": MAX_TYPES,
        }

    def _reload(self, why: str) -> None:
        """Read the settings anew, and keep this client to the bounds as they are now."""
        before = self._config
        self._settings.reload(why)
        config = self._config
        _limit_memory(config.client_memory)
        self._lines.max_bytes = config.client_line_bytes
        if config.client_idle_timeout != before.client_idle_timeout:
            self._idle_timer.restart(config.client_idle_timeout or NEVER)
        if self._stall_timer.is_running and config.client_stall_timeout != before.client_stall_timeout:
            self._stall_timer.restart(config.client_stall_timeout or NEVER)
        self._on_writable()  # more may wait for it now, or less

    def _may_send(self, message_type: int) -> bool:
        allowed = self._peer.uid == 0 or self._settings.type_rules.allow(message_type)
        if not allowed and (number := self._pace.due("type")):
            name = type_name(message_type)
            about_it = fields(TYPE_REFUSED, **self._peer.fields, MESSAGE_TYPE=name, NUMBER=number)
            text = "%s may not send %s%s; msgd:allow types says which may"
            logger.warning(text, self._peer, name, and_others(number), extra=about_it)
        return allowed

    # In

    def _read(self) -> None:
        try:
            data = self._client.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionError:
            self._loop.stop()
            return
        self._idle_timer.restart()
        if self._why is not None:
            if not data:
                self._loop.stop()
        elif data:
            self._lines.feed(data)
            self._handle_lines()
        else:
            self._handle_lines()
            self._say_no_more()

    def _handle_lines(self) -> None:
        """Do what the client has asked, as far as it may go on."""
        try:
            while self._may_go_on() and (line := self._lines.next_line()) is not None:
                self._session.handle(line)
            if self._may_go_on() and self._half_closed and (line := self._lines.last_line()) is not None:
                self._session.handle(line)
        except MalformedMessage as error:
            self._end(TOO_LONG, f"{error} (msgd:client line bytes)")
        self._look_after()

    def _may_go_on(self) -> bool:
        return not (self._paused or self._session.is_blocked or self._why is not None)

    def _say_no_more(self) -> None:
        """The client has closed its side, or all of it."""
        self._half_closed = True
        self._handle_lines()

    def _watch_client(self) -> None:
        """Read what the client says if there is room for it; where nothing is read, see at least whether it is gone."""
        is_full = self._session.is_blocked and self._lines.is_full and self._why is None
        reads = not (self._paused or self._half_closed or is_full)
        self._loop.on_readable(self._client.fileno(), self._read if reads else None)
        self._loop.on_readable(self._gone.fileno(), self._loop.stop if self._half_closed or is_full else None)

    def _dispatch(self) -> None:
        if not self._paused:
            again = self._session.after_dispatch(self._messaging.dispatch())
            self._again_timer.restart(_AGAIN if again else NEVER)
            self._handle_lines()  # one may have waited until the one before it was decided

    # Out

    def _emit(self, line: bytes) -> None:
        """Put a line into the outbox; it leaves at the end of this turn of the loop, or in the next one."""
        if self._why is None:
            self._outbox.append(line)
            self._loop.on_writable(self._client.fileno(), self._on_writable)
            if self._outbox.bytes > self._config.client_buffer_bytes:
                self._flush()

    def _look_after(self) -> None:
        """After every turn: send what waits, and see whether it is the end, or the client keeps up again."""
        self._flush()
        self._watch_client()
        if self._half_closed and not (
            self._outbox.bytes or self._paused or self._session.is_pending or self._session.is_listening
        ):
            self._loop.stop()

    def _flush(self) -> None:
        try:
            progress = self._outbox.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._loop.stop()
            return
        waiting = self._outbox.bytes
        if progress or not waiting or not self._stall_timer.is_running:
            self._stall_timer.restart((waiting and self._config.client_stall_timeout) or NEVER)
        self._loop.on_writable(self._client.fileno(), self._on_writable if waiting else None)
        self._pause(waiting > self._config.client_buffer_bytes)
        if self._why is not None and not waiting:
            self._say_end()

    def _on_writable(self) -> None:
        was_paused = self._paused
        self._flush()
        if was_paused and not self._paused:
            self._dispatch()
        self._look_after()

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._loop.on_readable(self._messaging.fileno(), None if paused else self._dispatch)
            self._watch_client()

    # The end

    def _end(self, code: str, text: str) -> None:
        """Say the last word."""
        if self._why is None:
            self._outbox.append(write_bye(code, text))
            self._why = text
            logger.debug("the last word to %s is %s: %s", self._peer, code, text)
            self._loop.call_later(self._config.close_timeout or _AGAIN, self._loop.stop)
            self._flush()

    def _say_end(self) -> None:
        """The last word has left; wait for the client to close."""
        self._stall_timer.cancel()
        with contextlib.suppress(OSError):  # it has closed already
            self._client.shutdown(socket.SHUT_WR)

    def _fail(self, text: str) -> None:
        logger.error("the connection of %s: %s", self._peer, text, extra=fields(CONNECTION_FAILED, **self._peer.fields))
        self._end(FAILED, text)

    def _idle(self) -> None:
        if not (self._session.is_pending or self._session.is_listening or self._outbox.bytes):
            seconds = self._config.client_idle_timeout
            self._end(IDLE, f"nothing was said for {seconds:g} seconds (msgd:client idle timeout)")

    def _stalled(self) -> None:
        """The client reads nothing: of what waits for it, it gets the line that has begun and the last word."""
        if self._why is None:
            self._outbox.cut()
            seconds = self._config.client_stall_timeout
            self._end(STALLED, f"nothing was read for {seconds:g} seconds (msgd:client stall timeout)")

    def _lifeline_cut(self, lifeline: int) -> None:
        self._loop.on_readable(lifeline, None)
        self._end(STOPPED, "the service is stopped")
