# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""200 clients at once, messages both ways, none lost; then some of them are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import NoSuchProcess, ServerID
from msgd.client import Client
from tests.support.daemons import PATIENCE, Place, end_process
from tests.support.harness import TEXT, Channel, Child

CLIENTS = 200
KILLED = 50
EACH = 10
"""Messages that a client sends in one round to each of its neighbours."""


class Crowd:
    """Client processes, each with a connection process; all of them are told the same, and then heard."""

    def __init__(self, place: Place, number: int) -> None:
        def body(channel: Channel) -> None:
            with Client(place.gateway) as client:
                client.register(TEXT)
                channel.send(client.server_id)
                while True:
                    channel.send(take_part(client, *channel.recv()))

        self.children = [Child(body) for _ in range(number)]
        self.addresses: list[ServerID] = [child.hear() for child in self.children]

    def round(self, name: str, clients: list[int]) -> list[tuple[list[str], int]]:
        """These clients send to each other, around in a circle and back; what each took, and could not send."""
        for place, number in enumerate(clients):
            neighbours = [clients[place - 1], clients[(place + 1) % len(clients)]]
            self.children[number].tell((name, number, neighbours, [self.addresses[one] for one in neighbours]))
        return [self.children[number].hear() for number in clients]

    def end(self) -> None:
        for child in self.children:
            child.kill()


def take_part(client: Client, name: str, number: int, neighbours: list[int], addresses: list[ServerID]) -> Any:
    """Send to both neighbours, and receive until all they have sent is there."""
    refused = 0
    for count in range(EACH):
        for address in addresses:
            try:
                client.send(address, TEXT, f"{name} {number} {count}".encode(), timeout=PATIENCE)
            except NoSuchProcess:
                refused += 1
    taken: list[str] = []
    while len(taken) < EACH * len(neighbours):
        message = client.receive(PATIENCE)
        assert message is not None, f"{len(taken)} messages came"
        taken.append(message.data.decode())
    return taken, refused


def expected(name: str, neighbours: tuple[int, int]) -> set[str]:
    return {f"{name} {neighbour} {count}" for neighbour in neighbours for count in range(EACH)}


@pytest.fixture
def crowded(place: Place) -> Iterator[tuple[Place, int, Crowd]]:
    place.configure("log level = 1", f"log file = {place.directory}/log")
    msgd = place.daemon()
    crowd = Crowd(place, CLIENTS)
    yield place, msgd, crowd
    crowd.end()


def check_round(crowd: Crowd, name: str, clients: list[int]) -> None:
    for place, (taken, refused) in enumerate(crowd.round(name, clients)):
        before, after = clients[place - 1], clients[(place + 1) % len(clients)]
        assert refused == 0
        assert len(taken) == 2 * EACH
        assert set(taken) == expected(name, (before, after))
        for neighbour in (before, after):  # in the order they were sent
            assert [text for text in taken if text.split()[1] == str(neighbour)] == [
                f"{name} {neighbour} {count}" for count in range(EACH)
            ]


def test_a_crowd_of_clients_of_which_some_are_killed(crowded: tuple[Place, int, Crowd]) -> None:
    place, msgd, crowd = crowded
    everybody = list(range(CLIENTS))
    assert place.number_of_children(msgd) == CLIENTS
    assert len({address.pid for address in crowd.addresses}) == CLIENTS
    check_round(crowd, "all", everybody)

    victims = random.Random(7).sample(everybody, KILLED)
    survivors = [number for number in everybody if number not in victims]
    for child in victims[: KILLED // 2]:  # half of them lose the client, the others the connection process
        crowd.children[child].kill()
    for child in victims[KILLED // 2 :]:
        end_process(crowd.addresses[child].pid, signum=9)
    check_round(crowd, "survivors", survivors)

    for child in victims:
        end_process(crowd.addresses[child].pid, signum=None)
    assert place.number_of_children(msgd) == len(survivors)
    living = {str(crowd.addresses[number].pid) for number in survivors}
    assert place.files() - {"msgd.pid", "msgd.sock", str(msgd)} == living
    for child in victims[KILLED // 2 :]:
        crowd.children[child].tell(("gone", child, [], [ServerID(1)]))
        with pytest.raises(AssertionError, match="GatewayClosed"):
            crowd.children[child].hear()
    check_round(crowd, "again", survivors)
    assert "Traceback" not in Path(place.directory, "log").read_text()
