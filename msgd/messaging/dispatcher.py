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

from msgd.errors import MsgdError
from msgd.linux import wait_readable

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
