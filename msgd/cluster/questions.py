# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The controls that one connection to ctdbd has been sent, until their replies come; and those that begin it.

A new connection asks for the number of this node and for the node map, and registers srvids.  Only when all of that has
been answered does ctdbd know where to send what comes for this process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from msgd.errors import MalformedMessage
from msgd.wire.ctdb import CURRENT_NODE, Opcode, Reply, pack_control

Answered = Callable[[Reply], None]


class Questions:
    """The questions.  `send` sends a packed control and raises OSError."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._answers: dict[int, Answered] = {}
        self._request_ids = itertools.cycle(range(1, 1 << 31))

    def ask(
        self, opcode: Opcode, answered: Answered, data: bytes = b"", node: int = CURRENT_NODE, srvid: int = 0
    ) -> None:
        """Send a control; `answered` gets the reply, unless the connection ends before.  Raises OSError."""
        request_id = next(self._request_ids)
        self._answers[request_id] = answered
        self._send(pack_control(request_id, opcode, data, node=node, srvid=srvid))

    def prepare(self, srvids: Iterable[int], number: Answered, nodes: Answered, is_ready: Callable[[], None]) -> None:
        """Ask what a new connection asks; `is_ready` is called when all of it has been answered.  Raises OSError.

        A refusal raises MalformedMessage from answer().
        """
        unanswered: set[str] = set()

        def ask(what: str, opcode: Opcode, take: Answered, srvid: int = 0) -> None:
            unanswered.add(what)

            def note(reply: Reply) -> None:
                if opcode is not Opcode.GET_PNN:
                    check(what, reply)
                elif reply.error:
                    raise _refused(what, reply)
                take(reply)
                unanswered.discard(what)
                if not unanswered:
                    is_ready()

            self.ask(opcode, note, srvid=srvid)

        ask("the number of this node", Opcode.GET_PNN, number)
        for srvid in srvids:
            ask(f"srvid {srvid:#x}", Opcode.REGISTER_SRVID, lambda reply: None, srvid)
        ask("the node map", Opcode.GET_NODEMAP, nodes)

    def note_srvid(self, opcode: Opcode, srvid: int) -> None:
        """Register or deregister a srvid.  Raises OSError; a refusal raises MalformedMessage from answer()."""
        self.ask(opcode, lambda reply: check(f"srvid {srvid:#x}", reply), srvid=srvid)

    def answer(self, reply: Reply) -> None:
        """Pass a reply to who has asked; nobody has if it was asked over an earlier connection."""
        answered = self._answers.pop(reply.request_id, None)
        if answered is not None:
            answered(reply)

    def forget(self) -> None:
        """The connection has ended: no reply will come."""
        self._answers.clear()


def check(what: str, reply: Reply) -> None:
    """Raise MalformedMessage if ctdbd has refused what was asked of it."""
    if reply.error or reply.status:
        raise _refused(what, reply)


def _refused(what: str, reply: Reply) -> MalformedMessage:
    return MalformedMessage(f"it refused {what}: {reply.error or f'status {reply.status}'}")
