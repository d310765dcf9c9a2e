# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""names.tdb is damaged while processes use it: it is made whole or made anew, told once, and the names come back."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msgd import Config, Messaging
from msgd._registry import MESSAGING_MODULES
from tests.support.harness import Channel, Child, Peer, Session

if not any(module.name == "tdb" for module in MESSAGING_MODULES):
    pytest.skip("this build has no tdb", allow_module_level=True)

import tdb

OTHERS = 40
"""Names of a process that is Samba's: it opens the file as Samba does, and adds none again."""


@pytest.fixture
def config(scratch: Path) -> Config:
    return Config(lock_directory=str(scratch / "lock"), messaging_type="dgram")


@pytest.fixture
def log(scratch: Path) -> Iterator[Path]:
    """The log of this process and of those that it starts from now on."""
    handler = logging.FileHandler(scratch / "log")
    logging.getLogger("msgd").addHandler(handler)
    yield scratch / "log"
    logging.getLogger("msgd").removeHandler(handler)
    handler.close()


@pytest.fixture
def peers(config: Config, log: Path) -> Iterator[tuple[Peer, Peer]]:
    """Two processes with a name each; a third entry belongs to both."""
    with Peer(config) as one, Peer(config) as other:
        for peer, name in ((one, "one"), (other, "other")):
            peer.call(add, name)
            peer.call(add, "both")
        yield one, other


@pytest.fixture
def samba(config: Config, peers: tuple[Peer, Peer]) -> Iterator[Child]:
    """A process of Samba's, which has names in the file; asked, it tells how many of them it can read."""

    def body(channel: Channel) -> None:
        flags = tdb.CLEAR_IF_FIRST | tdb.INCOMPATIBLE_HASH | tdb.NOMMAP
        database = tdb.Tdb(str(path_of(config)), 0, flags, os.O_RDWR, 0o660)
        for number in range(OTHERS):
            database.store(b"samba %d\0" % number, b"7:%d/1\0" % os.getpid())  # of another node: nobody prunes it
        channel.send(os.getpid())
        while True:
            channel.recv()
            channel.send(sum(database.get(b"samba %d\0" % number) is not None for number in range(OTHERS)))

    with Child(body) as child:
        child.hear()
        yield child


def path_of(config: Config) -> Path:
    return Path(config.lock_directory) / "names.tdb"


def add(session: Session, name: str) -> None:
    session.messaging.add_name(name)


def look_up(session: Session, name: str) -> list[int]:
    return sorted(one.pid for one in session.messaging.lookup(name))


def names(session: Session) -> set[str]:
    return set(session.messaging.names())


def clean_up(session: Session) -> None:
    session.messaging.clean_up()


def damage(config: Config, do: Callable[[Path], None]) -> None:
    with Child(lambda _: do(path_of(config))) as child:
        assert child.wait() == 0


def flip(place: int) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        with open(path, "rb+") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0xFF]))

    return do


def cut(length: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, length)


def overwrite(path: Path) -> None:
    with open(path, "rb+") as file:
        file.write(random.randbytes(3000))


HEADERS = {
    "magic": flip(0),
    "version": flip(32),
    "number of chains": flip(37),
    "cut at 0": cut(0),
    "cut at 100": cut(100),
    "cut at 500": cut(500),
    "overwritten": overwrite,
}


@pytest.mark.parametrize("how", HEADERS)
def test_damaged_header(config: Config, peers: tuple[Peer, Peer], log: Path, how: str) -> None:
    """Each adds its own names again as soon as it uses names; a newcomer is not disturbed."""
    one, other = peers
    damage(config, HEADERS[how])
    assert one.call(look_up, "one") == [one.pid]
    other.call(clean_up)
    assert one.call(look_up, "both") == sorted((one.pid, other.pid))
    assert one.call(look_up, "other") == [other.pid]
    with Messaging(config) as newcomer:
        assert set(newcomer.names()) == {"one", "other", "both"}
    assert log.read_text().count("set aside") == 1
    assert len(list(path_of(config).parent.glob("names.tdb.damaged.*"))) == 1


@pytest.mark.parametrize("how", HEADERS)
def test_a_newcomer_finds_it(config: Config, peers: tuple[Peer, Peer], log: Path, how: str) -> None:
    one, other = peers
    damage(config, HEADERS[how])
    with Messaging(config) as newcomer:
        newcomer.add_name("new")
        for peer in peers:
            peer.call(clean_up)
        assert set(newcomer.names()) == {"new", "one", "other", "both"}
        assert newcomer.lookup("both") == [one.server_id, other.server_id]
    assert log.read_text().count("set aside") == (0 if how == "cut at 0" else 1)


def chain_of(name: bytes) -> Callable[[Path], None]:
    """Damage the word that says which record follows that of the name, or its magic."""

    def do(path: Path) -> None:
        place = path.read_bytes().index(name + b"\0") - 4
        flip(place)(path)

    return do


def test_damaged_record(config: Config, peers: tuple[Peer, Peer], samba: Child, log: Path) -> None:
    """It is rebuilt in place: what can be read stays, and Samba's process goes on in the same file."""
    one, other = peers
    inode = path_of(config).stat().st_ino
    damage(config, chain_of(b"both"))
    other.call(clean_up)
    one.call(clean_up)
    assert one.call(names) >= {"one", "other", "both"}
    assert path_of(config).stat().st_ino == inode
    samba.tell("how many?")
    assert samba.hear() > OTHERS // 2, "those behind the damage in one chain are lost"
    assert log.read_text().count("rebuilt") == 1
    assert "set aside" not in log.read_text()


@pytest.mark.parametrize("length", [1000, 4096, 8192])
def test_cut_off(config: Config, peers: tuple[Peer, Peer], samba: Child, log: Path, length: int) -> None:
    """The handles do not map it, so nobody dies."""
    one, other = peers
    damage(config, cut(length))
    other.call(clean_up)
    one.call(clean_up)
    assert one.call(names) >= {"one", "other", "both"}
    assert one.call(look_up, "both") == sorted((one.pid, other.pid))
    assert log.read_text().count("was damaged") <= 1


def test_removed(config: Config, peers: tuple[Peer, Peer]) -> None:
    one, _ = peers
    path_of(config).unlink()
    with Messaging(config) as newcomer:
        newcomer.add_name("new")
        for peer in peers:
            peer.call(clean_up)
        assert one.call(names) == {"new", "one", "other", "both"}


def readable(config: Config) -> int:
    """How many of its names a starting process of Samba's reads."""

    def body(channel: Channel) -> None:
        flags = tdb.CLEAR_IF_FIRST | tdb.INCOMPATIBLE_HASH
        try:
            database = tdb.Tdb(str(path_of(config)), 0, flags, os.O_RDWR, 0o660)
            number = sum(database.get(b"samba %d\0" % number) is not None for number in range(OTHERS))
            found = {key for key in database if key.startswith(b"samba ")}
        except (OSError, RuntimeError):
            channel.send(0)
        else:
            channel.send(min(number, len(found)))

    with Child(body) as child:
        count: int = child.hear()
        return count


def test_what_samba_can_read_stays(config: Config, peers: tuple[Peer, Peer], samba: Child, log: Path) -> None:
    """Whatever byte is flipped: if Samba can read all of its names, the file is neither set aside nor rebuilt."""
    one, _ = peers
    content = path_of(config).read_bytes()
    places = random.Random(1).sample(range(len(content)), 60) + list(range(32, 172, 5))
    harmless = 0

    def restore(path: Path) -> None:
        path.write_bytes(content)

    for place in places:
        damage(config, flip(place))
        if readable(config) == OTHERS:
            before = path_of(config).stat().st_ino
            one.call(clean_up)
            assert path_of(config).stat().st_ino == before, place
            assert not log.exists() or "damaged" not in log.read_text(), place
            harmless += 1
        damage(config, restore)
    assert harmless > 20
