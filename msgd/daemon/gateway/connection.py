# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The connection of one client: its socket, the timers and the signals of its connection process.

A line's way, in one direction:

    recv -> LineReader -> Session.handle -> Outbox -> sendmsg
                              |   ^
                        the messaging context

Rule 1.  The callbacks take in what has come, or send what waits: bytes go into the LineReader, messages into the
session, and lines of the Outbox to the client.
Once a turn of the loop _end_turn() does the rest, in this order: requests, sending, and choosing what to poll for.

Rule 2.  What may be done is the state's to say (state.py).  What happens is reported to it, and it is kept nowhere
else.

Rule 3.  Memory is bounded from both sides.  While more than `msgd:client buffer bytes` wait for the client (FULL), no
request is read and no message is taken in for it, so senders find the queue of this process full and are told so.
While one of its requests holds up the others (HELD), no more of them is read than `msgd:client line bytes`.

Rule 4.  A client that has closed its sending side is still answered, and still gets the messages that it has
registered for, as long as it is there to read.

Rule 5.  A client that breaks a bound gets a last word: its backlog, then the `bye`.  After that nothing is written,
and what it still sends is discarded until it closes or `msgd:close timeout` is over (state.py says why).
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket

from msgd.daemon.children import LetIn
from msgd.daemon.control.answers import ControlAnswers
from msgd.daemon.gateway.memory import limit_memory, memory_limit
from msgd.daemon.gateway.outbox import Outbox
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.places import is_privileged
from msgd.daemon.gateway.session import Session
from msgd.daemon.gateway.state import ConnectionState, Event
from msgd.daemon.loop import NEVER, Loop
from msgd.daemon.reloads import Reloads
from msgd.daemon.settings import Settings
from msgd.errors import MalformedMessage
from msgd.messaging import Messaging
from msgd.wire.gateway.json_lines import LineReader
from msgd.wire.gateway.replies import IDLE, STALLED, STOPPED, TOO_LONG
from msgd.wire.message_types import MessageType

_READ = 1 << 16
_PART = 1 << 16
"""Bytes of a long backlog that are to be read within `msgd:client stall timeout`."""
_AT_ONCE = 0.001
"""Seconds for the last word to leave if `msgd:close timeout` is 0."""

_OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Connection:
    """One client served with `messaging`, on `loop`, until run() returns."""

    def __init__(self, client: socket.socket, peer: Peer, settings: Settings, loop: Loop, messaging: Messaging) -> None:
        config = settings.config
        self._client = client
        self._uid = peer.uid
        self._settings = settings
        self._loop = loop
        self._messaging = messaging
        self._state = ConnectionState()
        self._lines = LineReader(config.client_line_bytes)
        self._outbox = Outbox(client, config.client_buffer_bytes)
        self._session = Session(messaging, loop, settings, peer, self._outbox, self._state)
        self._hangup = select.epoll()
        """Readable when the client has closed the connection: epoll reports hangups without being asked to."""
        self._hangup.register(client, 0)
        self._idle_timer = loop.call_every(config.client_idle_timeout or NEVER, self._end_if_idle)
        self._to_be_read = 0
        """How much of the outbox has to have left when the stall timer is due."""
        self._stall_timer = loop.call_later(NEVER, self._end_stalled)
        self._close_timer = loop.call_later(NEVER, self._note_gone)
        self._dispatch_timer = loop.call_later(NEVER, self._dispatch)
        """Runs when the context has to be dispatched in the next turn, whether or not it is readable."""

    def run(self, lifeline: int | None, has_started: LetIn) -> str:
        """Serve the client to the end.  Returns the reason of the end, for the log."""
        loop, messaging = self._loop, self._messaging
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(signum, lambda: self._stop("the connection process was told to end"))
        reloads = Reloads(loop, self._reload)
        loop.on_signal(signal.SIGHUP, lambda: reloads.ask("SIGHUP"))
        has_started()
        if lifeline is not None:
            loop.on_readable(lifeline, lambda: self._end_service(lifeline))
        ControlAnswers(self._settings, messaging, "msgd's connection process").serve(loop.obey_signals)
        messaging.register(MessageType.SMB_CONF_UPDATED, lambda message: reloads.ask(f"{message.src}"))
        messaging.register(MessageType.SHUTDOWN, lambda message: self._stop(f"SHUTDOWN from {message.src}"))
        loop.at_end_of_turn(self._end_turn)
        self._choose_events()
        try:
            loop.run()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)  # it is ending; the loop gives up their handlers next
            self._session.close()
            self._hangup.close()
        return self._state.why

    # What comes in

    def _read(self) -> None:
        try:
            data = self._client.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionError:
            self._note_gone()
            return
        self._idle_timer.restart()
        if not data:
            self._state.on(Event.EOF)
        elif self._state.takes_input:
            self._lines.feed(data)

    def _dispatch(self) -> None:
        if self._state.takes_messages:
            self._session.dispatch()

    def _note_gone(self) -> None:
        self._state.on(Event.GONE)

    # The end of a turn

    def _end_turn(self) -> None:
        """Do the requests that may be done, send what waits, and poll for what can come next."""
        try:
            self._do_requests()
        except MalformedMessage as error:
            self._session.say_bye(TOO_LONG, f"{error} (msgd:client line bytes)")
        self._send()
        if self._is_complete():
            self._state.on(Event.COMPLETE)
        if self._state.is_closed:
            self._loop.stop()
            return
        if self._session.needs_dispatch and self._state.takes_messages:
            self._dispatch_timer.restart(0)
        self._choose_events()

    def _do_requests(self) -> None:
        while self._may_go_on() and (line := self._next_line()) is not None:
            self._session.handle(line)
            if self._outbox.is_full:
                self._note_backlog()

    def _may_go_on(self) -> bool:
        """Whether the next request may be done.  A `send` that waits is given up if a `cancel` of it has come."""
        if self._session.is_holding and self._lines.take_line(self._session.cancels_held):
            self._session.cancel_held()
        return self._state.does_requests

    def _next_line(self) -> bytes | None:
        line = self._lines.next_line()
        return self._lines.last_line() if line is None and self._state.is_finished else line

    def _send(self) -> None:
        self._outbox.flush()
        self._run_stall_timer()
        self._note_backlog()
        if self._outbox.is_broken:
            self._note_gone()
        elif self._state.has_last_word:
            self._send_last_word()

    def _note_backlog(self) -> None:
        """Tell the state whether the backlog is over its bound."""
        if self._outbox.is_full == self._state.is_full or not self._state.may_say:
            return
        if self._outbox.is_full:
            self._state.on(Event.FILL)
        else:
            self._state.on(Event.DRAIN)
            self._dispatch_timer.restart(0)  # messages and requests have waited for this

    def _send_last_word(self) -> None:
        """Allow the client its time to read the last word; once that has left, close our sending side."""
        if not self._close_timer.is_running:
            self._close_timer.restart(self._settings.config.close_timeout or _AT_ONCE)
        if not self._outbox.bytes:
            self._state.on(Event.FLUSHED)
            with contextlib.suppress(OSError):  # the client has closed already
                self._client.shutdown(socket.SHUT_WR)

    def _is_complete(self) -> bool:
        """Whether the client asks for nothing more and nothing is left to do for it."""
        is_waiting = self._session.is_busy or self._outbox.bytes or self._dispatch_timer.is_running
        return self._state.is_finished and self._state.does_requests and not is_waiting

    def _choose_events(self) -> None:
        """Poll for what the state allows.  Where nothing is read from the client, poll for its hangup."""
        loop, state, fd = self._loop, self._state, self._client.fileno()
        reads = state.reads(has_room=not self._lines.is_full)
        loop.on_readable(fd, self._read if reads else None)
        loop.on_readable(self._hangup.fileno(), None if reads else self._note_gone)
        loop.on_writable(fd, self._outbox.flush if self._outbox.bytes else None)
        loop.on_readable(self._messaging.fileno(), self._dispatch if state.takes_messages else None)

    # Timers

    def _run_stall_timer(self) -> None:
        """Give the client `msgd:client stall timeout` for the backlog, or for each _PART of a longer one.

        If any byte counted as progress, a client could hold its backlog in our memory for ever.
        """
        outbox = self._outbox
        if not outbox.bytes:
            self._stall_timer.cancel()
        elif outbox.sent >= self._to_be_read or not self._stall_timer.is_running:
            self._to_be_read = outbox.sent + min(outbox.bytes, _PART)
            self._stall_timer.restart(self._settings.config.client_stall_timeout or NEVER)

    def _end_if_idle(self) -> None:
        if not (self._session.is_busy or self._outbox.bytes):
            seconds = self._settings.config.client_idle_timeout
            self._session.say_bye(IDLE, f"nothing was said for {seconds:g} seconds (msgd:client idle timeout)")

    def _end_stalled(self) -> None:
        """Of its backlog the client gets the line that has begun to leave, then the last word."""
        if self._state.may_say:
            self._outbox.cut()
            seconds = self._settings.config.client_stall_timeout
            self._session.say_bye(STALLED, f"too little was read for {seconds:g} seconds (msgd:client stall timeout)")

    # Control

    def _stop(self, text: str) -> None:
        self._session.say_bye(STOPPED, text)

    def _end_service(self, lifeline: int) -> None:
        self._loop.on_readable(lifeline, None)
        self._stop("the service is stopped")

    def _reload(self, why: str) -> None:
        """Read the settings again and apply the new bounds to this client."""
        before = self._settings.config
        self._settings.reload(why)
        config = self._settings.config
        limit_memory(config.client_memory if is_privileged(self._uid) else min(config.client_memory, memory_limit()))
        self._lines.max_bytes = config.client_line_bytes
        self._outbox.max_bytes = config.client_buffer_bytes
        if config.client_idle_timeout != before.client_idle_timeout:
            self._idle_timer.restart(config.client_idle_timeout or NEVER)
        if self._outbox.bytes and config.client_stall_timeout != before.client_stall_timeout:
            self._stall_timer.restart(config.client_stall_timeout or NEVER)
