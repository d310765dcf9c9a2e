# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The part of a context that tells who is in the directory: processes, their ends, and their names."""

from __future__ import annotations

from msgd.errors import MsgdError, NoSuchProcess
from msgd.messaging.arguments import Destination
from msgd.messaging.border import refusals_documented
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.handlers import logger
from msgd.presence import Process
from msgd.wire.message_types import MessageClass, message_class
from msgd.wire.server_id import ServerID


class WhoIsHere:
    """Messaging's calls about processes and names.  All raise ContextClosed and ForkedContext."""

    server_id: ServerID
    listens: MessageClass
    _endpoint: Endpoint
    _names: set[str]

    def _check_usable(self) -> None:
        raise NotImplementedError

    @refusals_documented
    def processes(self) -> list[Process]:
        """The living processes of the directory, this one included."""
        with self._endpoint.lock:
            self._check_usable()
            return list(self._endpoint.presence.processes())

    def _others(self, message_type: int) -> list[ServerID]:
        """The addresses of the other processes that listen to the type's class; see Members.listening()."""
        with self._endpoint.lock:
            self._check_usable()
            return self._endpoint.presence.members.listening(message_class(message_type))

    @refusals_documented
    def listen(self, classes: MessageClass) -> None:
        """Have this context hear the broadcasts of these classes from now on, and no others.

        A broadcast that begins after this call has returned comes here.  Raises TransportError.
        """
        with self._endpoint.lock:
            self._check_usable()
            before, self.listens = self.listens, classes
            try:
                self._endpoint.announce()
            except BaseException:
                self.listens = before
                self._endpoint.delivery.note_listeners()
                raise

    @refusals_documented
    def is_alive(self, dst: Destination) -> bool:
        """Whether the addressed process lives.

        For one on another node this asks that node, and waits for the answer.  Raises TransportError if there is none.
        """
        server_id, endpoint = ServerID.of(dst), self._endpoint
        with endpoint.lock:
            self._check_usable()
            if endpoint.presence.is_here(server_id):
                return endpoint.presence.is_alive(server_id)
        try:
            endpoint.elsewhere(server_id).check_alive(server_id)
        except NoSuchProcess:
            return False
        return True

    @refusals_documented
    def watch(self, dst: Destination) -> int:
        """A pidfd of the addressed process, readable once it has ended; the caller closes it.

        For one on another node it is a pipe, which is readable within about a second after the end, if this process
        dispatches.  Raises NoSuchProcess if it does not live, TransportError.
        """
        server_id, endpoint = ServerID.of(dst), self._endpoint
        with endpoint.lock:
            self._check_usable()
            is_here = endpoint.presence.is_here(server_id)
        if not is_here:
            endpoint.elsewhere(server_id).check_alive(server_id)
        return self._watch_for_answer(server_id)

    def _watch_for_answer(self, dst: ServerID) -> int:
        """What watch() returns.  If a process of another node has ended before, it is readable a moment later."""
        endpoint = self._endpoint
        with endpoint.lock:
            self._check_usable()
            if endpoint.presence.is_here(dst):
                return endpoint.presence.watch(dst)
            return endpoint.elsewhere(dst).watch(dst)

    @refusals_documented
    def add_name(self, name: str) -> None:
        """Let this context be found by `name`, beside any others that have it, until remove_name() or close().

        A forked child does not have its parent's names.  Raises ValueError for what cannot be a name.
        """
        with self._endpoint.lock:
            self._check_usable()
            self._endpoint.presence.add_name(name, self.server_id)
            self._names.add(name)

    @refusals_documented
    def remove_name(self, name: str) -> None:
        """Take this name away from the context, if it has it."""
        with self._endpoint.lock:
            self._check_usable()
            if name in self._names:
                self._endpoint.presence.remove_name(name, self.server_id)
                self._names.discard(name)

    @refusals_documented
    def lookup(self, name: str) -> list[ServerID]:
        """The living processes that have the name, in the order in which they took it; often one, or none."""
        with self._endpoint.lock:
            self._check_usable()
            return self._endpoint.presence.lookup(name)

    @refusals_documented
    def names(self) -> dict[str, list[ServerID]]:
        """All names of living processes, and which processes have them."""
        with self._endpoint.lock:
            self._check_usable()
            return self._endpoint.presence.names()

    @refusals_documented
    def clean_up(self) -> list[int]:
        """Remove what dead processes left in the directory.  Returns the pids of which there was more than a name."""
        with self._endpoint.lock:
            self._check_usable()
            backend = self._endpoint.backend
            return self._endpoint.presence.clean_up(backend.left_behind(), backend.remove)

    @refusals_documented
    def pending(self, dst: Destination) -> int:
        """The number of messages known to wait for the destination's process: it has not taken them yet."""
        server_id, endpoint = ServerID.of(dst), self._endpoint
        with endpoint.lock:
            self._check_usable()
            if endpoint.presence.is_here(server_id):
                return endpoint.backend.pending(server_id.pid)
            return endpoint.elsewhere(server_id).pending_elsewhere(server_id)

    def _give_up_names(self) -> None:
        """Remove this context's names.  Whoever next finds one dead removes what a full disk has kept."""
        try:
            for name in self._names:
                self._endpoint.presence.remove_name(name, self.server_id)
        except MsgdError as error:
            logger.error("removing the names of %s: %s", self.server_id, error)
        self._names.clear()
