# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The background dispatcher: a thread that dispatches, for programs without an event loop of their own.

Rule 1.  Handlers run in this thread.  What is no Exception (SystemExit) is logged as well, since there is no caller to
raise it to.  An error of dispatch itself is logged and ends the thread; start() begins again.
Rule 2.  It does not spin before it sleeps: spinning would take the interpreter from the program's own threads.
Rule 3.  It ends at stop(), at the context's close(), at interpreter exit (it is a daemon thread, and the endpoint
closes then), and in a forked child, where threads do not live.
Rule 4.  Under gevent's and eventlet's monkey patching the thread is a greenlet.  So it waits by select.poll() of the
patched module, looked up when it waits, and gives way to other greenlets there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from msgd.backends.base import Backend
from msgd.errors import BackendUnavailable, MsgdError, TransportError
from msgd.linux import wait_readable
from msgd.messaging.turn import Turn

logger = logging.getLogger("msgd")


class Dispatcher:
    """Calls `dispatch` in a thread of its own whenever `fd` is readable, until stop().

    `wake` makes `fd` readable, so that the thread sees that it is to stop; `on_error` is called if an error ends it.
    """

    def __init__(
        self, fd: int, dispatch: Callable[[], object], wake: Callable[[], None], on_error: Callable[[], None]
    ) -> None:
        self._fd = fd
        self._dispatch = dispatch
        self._wake = wake
        self._on_error = on_error
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="msgd-dispatcher", daemon=True)

    def start(self) -> None:
        """Start the thread.  Raises RuntimeError if the system allows no more of them."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._dispatch()
                if not self._stopping:
                    wait_readable(self._fd, None)
            except MsgdError as error:
                if not self._stopping:
                    logger.error("the background dispatcher has ended: %s", error)
                    self._on_error()
                return
            except BaseException:
                logger.exception("a handler in the background dispatcher")

    def stop(self, timeout: float | None = None) -> None:
        """Let it end after the handler that is running, and wait for that at most `timeout` seconds.

        From its own thread (a handler that closes the context) it does not wait.
        """
        self._stopping = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)


class Background:
    """Whether an endpoint has a background dispatcher.

    `dispatch` is what it does, and the endpoint's lock, which is the turn's, guards this.
    """

    def __init__(self, turn: Turn, backend: Backend, dispatch: Callable[[], object]) -> None:
        self._turn = turn
        self._backend = backend
        self._dispatch = dispatch
        self._dispatcher: Dispatcher | None = None

    def start(self) -> None:
        """Begin, unless it has begun.

        Raises BackendUnavailable if the transport needs the main thread, TransportError if there can be no more
        threads.
        """
        backend = self._backend
        with self._turn.lock:
            if self._dispatcher is not None:
                return
            if backend.needs_main_thread:
                raise BackendUnavailable(
                    f"messaging type {backend.config.messaging_type} is driven by signals, which come to the main"
                    " thread; dispatch there, or use dgram or stream"
                )
            dispatcher = Dispatcher(backend.fileno(), self._dispatch, backend.wake, self._note_end)
            try:
                self._dispatcher, self._turn.has_dispatcher = dispatcher, True
                dispatcher.start()
            except BaseException as error:
                self._note_end()
                if isinstance(error, RuntimeError):
                    raise TransportError(f"starting the background dispatcher: {error}; raise `ulimit -u`") from error
                raise

    def stop(self, timeout: float | None = None) -> None:
        """End after the handler that is running, and wait for that at most `timeout` seconds."""
        with self._turn.lock:
            dispatcher = self._dispatcher
            self._note_end()
        if dispatcher is not None:
            dispatcher.stop(timeout)

    def abandon(self) -> None:
        """In a forked child, where the thread does not live: there is none."""
        self._dispatcher = None

    def _note_end(self) -> None:
        """It has ended, also by an error: others may dispatch again."""
        with self._turn.lock:
            self._dispatcher = None
            self._turn.has_dispatcher = False
            self._turn.notify()
