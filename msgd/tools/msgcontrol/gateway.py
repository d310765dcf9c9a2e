# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol for users who may not open the lock directory: what it can do through msgd's gateway.

The gateway's settings decide which types such a user may send (`msgd:allow types`).  Descriptors do not pass it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from msgd.aio import Client
from msgd.config import Config
from msgd.errors import GatewayClosed, MsgdError, NoHandler, NoSuchProcess, NotAllowed, ReplyTimeout, TransportError
from msgd.tools.msgcontrol.command import Command, Request
from msgd.tools.msgcontrol.destination import ALL, find_destinations
from msgd.tools.msgcontrol.outcome import Outcome
from msgd.wire.gateway.limits import MAX_CALLS
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID


class _Listed:
    """The directory as the gateway has listed it."""

    def __init__(
        self, own_id: ServerID, processes: Sequence[ServerID], names: Mapping[str, Sequence[ServerID]]
    ) -> None:
        self.own_id = own_id
        self._processes = processes
        self._names = names

    def others(self) -> Sequence[ServerID]:
        return [one for one in self._processes if one.pid != self.own_id.pid]

    def names(self) -> Mapping[str, Sequence[ServerID]]:
        return self._names

    def has_samba(self, pid: int) -> bool:
        return True  # the gateway does not say; the tasks are then those that have names

    def has_other_nodes(self) -> bool:
        return False  # `all` of a gateway's client is all of its node


def run_through_gateway(
    config: Config,
    refused: TransportError,
    command: Command,
    request: Request,
    destination: str,
    timeout: float,
    on_answer: Callable[[Message], None],
) -> Outcome:
    """Do what Exchange.run() does, through the gateway.  `refused` is why the directory could not be used.

    Raises it, with what the gateway says, if that cannot be used either.
    """
    hint = f"{refused}; you may not use the lock directory"
    if command.needs_directory:
        raise TransportError(f"{hint}, and {command.name} cannot go through msgd's gateway: become root") from refused
    try:
        return asyncio.run(_exchange(config, command, request, destination, timeout, on_answer))
    except (GatewayClosed, NotAllowed) as error:
        raise TransportError(f"{hint}, and msgd's gateway cannot be used: {error}; or become root") from error


async def _exchange(
    config: Config,
    command: Command,
    request: Request,
    destination: str,
    timeout: float,
    on_answer: Callable[[Message], None],
) -> Outcome:
    outcome = Outcome(command, request.answer is not None, config.lock_directory, timeout)
    async with Client(config.listen) as client:
        processes = await client.processes()
        there = _Listed(client.server_id, processes, await client.names())
        destinations = find_destinations(destination, there, config)
        if destination == ALL and request.answer is None:
            await _send_all(client, request, destinations, outcome)
            return outcome
        slots = asyncio.Semaphore(MAX_CALLS)

        async def exchange_with(dst: ServerID) -> None:
            async with slots:
                await _exchange_with(client, dst, request, outcome, on_answer)

        await asyncio.gather(*map(exchange_with, destinations))
    return outcome


async def _send_all(client: Client, request: Request, destinations: Sequence[ServerID], outcome: Outcome) -> None:
    result = await client.send_all(request.type, request.data)
    for dst in destinations:
        error = result.failures.get(dst.pid)
        if error is None:
            outcome.delivered.append(dst)
        else:
            _record_failure(dst, error, outcome)


async def _exchange_with(
    client: Client, dst: ServerID, request: Request, outcome: Outcome, on_answer: Callable[[Message], None]
) -> None:
    try:
        if request.answer is None:
            await client.send(dst, request.type, request.data, timeout=outcome.timeout)
        else:
            answer = await client.request(dst, request.type, request.data, request.answer, timeout=outcome.timeout)
            outcome.answers.append(answer)
            on_answer(answer)
    except GatewayClosed:
        raise
    except MsgdError as error:
        _record_failure(dst, error, outcome)
    else:
        outcome.delivered.append(dst)


def _record_failure(dst: ServerID, error: MsgdError, outcome: Outcome) -> None:
    match error:
        case NoHandler():
            outcome.unhandled.append(dst)
        case NoSuchProcess():
            outcome.gone.append(dst)
        case ReplyTimeout():
            outcome.late.append(dst)
        case _:
            outcome.failures[dst] = str(error)
