# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A storm over one directory: processes are killed, stopped and started again, pids are reused, the disk gets full.

What is checked:

1. Nothing that living processes have sent each other is lost, doubled, reordered or altered (books.py), and nothing of
   a process that has left in an orderly way.
2. Nobody is held up: each survivor that is not stopped takes a turn every PATIENCE seconds.
3. No error comes out of a call but for its reason (members.py), and nothing is dropped but for the reasons in DROPS.
4. No survivor has more descriptors after the storm than before it, but for those of a bounded table (`kept`): dgram
   closes sockets for the dead only when it needs the room, and tdb may have all survivors open.
5. messages.tdb stays near what was queued at once, however many have come and gone: each process may have a record, and
   each pair of a sender and a survivor a small slot, with their room.  It is made short again when they have gone, and
   is whole.

Who is stopped.  Survivors alone; with dgram and stream by a SIGSTOP at any instant, since they change no file of
libtdb's then.  With tdb every call may be in the middle of a change of messages.tdb, and a process that is stopped
there holds up all others for as long as it is stopped (SECURITY.md, known limit 1).  So with tdb a survivor stops
itself between two calls when it is told to.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from msgd import Config, ServerID
from msgd.backends.tdb.destination import DESCRIPTORS as DESTINATION
from msgd.backends.tdb.messages_file import ROOM
from msgd.backends.tdb.repair import SLACK
from msgd.backends.tdb.segments import FIRST_ROOM
from tests.backends.variants import CARRYING_FDS, Variant
from tests.storm.members import DESCRIPTORS, Board, Leaving, Resting, Word, World, suffer, survive
from tests.support.disk import fill_disk, small_disk
from tests.support.harness import PATIENCE, Channel, Child, ChildFailed, chosen_pids_reason

MiB = 1 << 20
NEW_FILE = 4 * MiB
DISK = 96 * MiB
DROPS = {"the destination is gone", "the rest never came"}
"""The reasons for which a survivor may have dropped messages."""

QUEUE = 100
"""Messages that may wait for each destination in each process."""

Say = Callable[[str], None]


class Storm:
    """One variant of a messaging type, in the directory `place`; a third of `processes` survive."""

    def __init__(self, variant: Variant, place: Path, processes: int, seed: int, disk: Path | None) -> None:
        self.variant = variant
        self.chance = random.Random(seed)
        self.seed = seed
        self.disk = disk
        self.is_tdb = variant.messaging_type == "tdb"
        self.survivors: list[Child] = []
        self.ids: list[ServerID] = []
        self.victims: list[Child] = []
        self.victims_wanted = processes - processes // 3
        self.counts: Counter[str] = Counter()
        self.left: list[Leaving] = []
        self.most_bytes = self.most_queued = 0
        self._heard_bytes = 0
        settings = {"lock_directory": str(place / "lock"), "messaging_type": variant.messaging_type}
        config = Config(**({"send_queue_messages": QUEUE} | settings | variant.overrides))
        self.file = Path(config.lock_directory) / "messages.tdb"
        self.world = World(config, Board(processes), variant.messaging_type in CARRYING_FDS, self.is_tdb)
        self.may_choose_pids = chosen_pids_reason() is None
        self._ballast: Path | None = None
        self._stopped: dict[Child, float] = {}
        """Who is or will be stopped, and until when."""
        self._rows: dict[Child, int] = {}
        """Of the victims, in the board."""
        self._turns: dict[Child, tuple[int, float]] = {}

    # Processes

    def start(self, body: Callable[[Channel], None], pid: int | None = None) -> Child:
        """Start a process, which does not keep the others' channels, nor the processor when the storm wants it."""

        def alone(channel: Channel) -> None:
            os.nice(10)
            for other in (*self.survivors, *self.victims):
                other.channel.close()
            body(channel)

        return Child(alone, pid=pid)

    def begin(self) -> None:
        """Start everybody; the survivors have heard each other before the first victim comes."""
        for row in range(len(self.world.board) - self.victims_wanted):
            self.survivors.append(self.start(lambda channel, row=row: survive(channel, self.world, row)))  # type: ignore[misc]
        self.ids = [one.hear() for one in self.survivors]
        for one, own in zip(self.survivors, self.ids, strict=True):
            one.tell([other for other in self.ids if other != own])
        for one in self.survivors:
            one.hear()
        for row in range(len(self.survivors), len(self.world.board)):
            self.add_victim(row)

    def add_victim(self, row: int, pid: int | None = None) -> None:
        self.seed += 1
        seed, pids = self.seed, [victim.pid for victim in self.victims]

        def body(channel: Channel) -> None:
            suffer(channel, self.world, row, self.ids, pids, seed)

        try:
            self.victims.append(self.start(body, pid))
        except OSError as error:
            if pid is None or error.errno != errno.EEXIST:
                raise
            self.victims.append(self.start(body))  # somebody else has got the pid meanwhile
        else:
            self.counts["reused pids"] += pid is not None
        self._rows[self.victims[-1]] = row

    def bury(self, victim: Child) -> None:
        """Take out a victim that has ended or is to be killed, and start another one, one in three with its pid."""
        self.victims.remove(victim)
        if victim.channel.poll():
            with contextlib.suppress(EOFError):
                self.note(victim.channel.recv(), victim)
        victim.kill()
        reuse = self.may_choose_pids and self.chance.random() < 0.33
        self.add_victim(self._rows.pop(victim), victim.pid if reuse else None)

    def note(self, thing: object, victim: Child) -> None:
        """What a victim has said: that it has left, or an exception."""
        if not isinstance(thing, Leaving):
            raise ChildFailed(f"in pid {victim.pid}, a victim:\n{getattr(thing, 'traceback', thing)}")
        self.left.append(thing)
        self.counts["left"] += 1

    # Weather

    def blow(self, seconds: float, say: Say) -> None:
        """Do harm for so long, and say once a second how it goes."""
        began = said = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            self.look(now)
            self.harm(now)
            if now >= said + 1:
                said = now
                say(f"{now - began:4.0f} s  {self.state()}")
            wait([child.channel for child in (*self.survivors, *self.victims)], self.chance.expovariate(100))

    def look(self, now: float) -> None:
        """See who has something to say, and whether the survivors go on."""
        for one in self.survivors:
            if one.channel.poll():
                one.hear()
                raise AssertionError(f"pid {one.pid}, a survivor, has spoken without being asked")
        for victim in [one for one in self.victims if one.channel.poll()]:
            self.bury(victim)
        for row, one in enumerate(self.survivors):
            turns = self.world.board.get(row, Word.TURNS)
            before, since = self._turns.get(one, (-1, now))
            if turns != before or one in self._stopped:
                self._turns[one] = (turns, now)
            elif now > since + PATIENCE:
                os.kill(one.pid, signal.SIGUSR2)  # it prints where it is
                raise AssertionError(f"pid {one.pid}, a survivor, is held up: no turn for {PATIENCE:g} seconds")
        self.note_queued()
        if self.is_tdb:
            self.most_bytes = max(self.most_bytes, self.file.stat().st_size)

    def note_queued(self) -> None:
        """Note an upper bound of the bytes that have been queued for survivors at any moment since the last time.

        At each such moment as much had been heard as the last time, or more, and as much had been sent as now, or less.
        """
        heard, sent = (self.world.board.total(word) for word in (Word.HEARD_BYTES, Word.SENT_BYTES))
        self.most_queued = max(self.most_queued, sent - self._heard_bytes)
        self._heard_bytes = heard

    def harm(self, now: float) -> None:
        """Let those go on whose time has come; then do one thing at random."""
        for one in [one for one, until in self._stopped.items() if now >= until]:
            self.resume(one)
        if self._ballast is not None and self.chance.random() < 0.1:
            self.make_room()
        deed = self.chance.random()
        if deed < 0.8:
            self.counts["kills"] += 1
            self.bury(self.chance.choice(self.victims))
        elif deed < 0.95 and len(self._stopped) < 3:
            self.stop(self.chance.choice(self.survivors), now + self.chance.uniform(0, 0.5))
        elif deed > 0.99 and self.disk is not None and self._ballast is None:
            self.counts["full disks"] += 1
            self.world.board.disk_changes += 1
            self._ballast = fill_disk(self.disk)

    def stop(self, one: Child, until: float) -> None:
        if one in self._stopped:
            return
        self.counts["stops"] += 1
        self._stopped[one] = until
        if self.is_tdb:
            self.world.board.put(self.survivors.index(one), Word.STOP, 1)
        else:
            os.kill(one.pid, signal.SIGSTOP)

    def resume(self, one: Child) -> None:
        """Let it go on, if it has stopped; else the next time."""
        if os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOHANG) is not None:
            one.resume()
            del self._stopped[one]

    def make_room(self) -> None:
        if self._ballast is not None:
            self._ballast.unlink()
            self._ballast = None
            self.world.board.disk_changes += 1

    def state(self) -> str:
        """How it goes, in a line."""
        board = self.world.board
        most = max(board.get(row, Word.DESCRIPTORS) for row in range(len(board)))
        parts = [f"{board.total(Word.HEARD):,} messages heard", f"{board.total(Word.REFUSED):,} refused"]
        parts += [f"{number:,} {what}" for what, number in self.counts.items()]
        parts.append(f"at most {most} descriptors")
        if self.is_tdb:
            parts.append(f"messages.tdb {self.most_bytes / MiB:.1f} MiB, {self.most_queued / MiB:.1f} queued")
        return f"{self.variant.name}: " + ", ".join(parts)

    # Afterwards

    def end(self) -> None:
        """Come to rest, and check everything."""
        self.make_room()
        for victim in self.victims:
            if victim.channel.poll():
                with contextlib.suppress(EOFError):
                    self.note(victim.channel.recv(), victim)
            victim.kill()
        self.victims.clear()
        while self._stopped:
            for one in list(self._stopped):
                self.resume(one)
            self.look(time.monotonic())
        sent: dict[ServerID, Any] = dict(zip(self.ids, self.ask("rest"), strict=True))
        left = {one.server_id: one.sent for one in self.left}
        due = [{src: numbers.get(dst, 0) for src, numbers in (sent | left).items() if src != dst} for dst in self.ids]
        self.ask(*due)
        self.check(self.ask("say how you are"))

    def kill_all(self) -> None:
        for one in (*self.survivors, *self.victims):
            one.kill()

    def ask(self, *questions: object) -> list[Any]:
        """Give each survivor its question, or all the only one; their answers."""
        asked = questions if len(questions) > 1 else questions * len(self.survivors)
        for one, question in zip(self.survivors, asked, strict=True):
            one.tell(question)
        return [one.hear() for one in self.survivors]

    @property
    def kept(self) -> int:
        """Descriptors that may be open after the storm and were not before it: what the destinations' tables allow."""
        half = DESCRIPTORS // 2
        if self.is_tdb:
            return max(0, DESTINATION * len(self.survivors) - half)
        return half if self.variant.messaging_type == "dgram" else 0

    def check(self, resting: Sequence[Resting]) -> None:
        for one in resting:
            assert one.faults == []
            assert one.drops.keys() <= DROPS, one.drops
            assert not [name for name in one.after if "msg.lock/" in name and name.endswith("(deleted)")]
            assert len(one.after) <= len(one.before) + self.kept, (one.before, one.after)
        if self.is_tdb:
            room = ROOM * len(self.world.board) + FIRST_ROOM * len(self.survivors) * len(self.world.board)
            most = NEW_FILE + 4 * self.most_queued + 3 * room // 2  # libtdb takes more than it needs
            assert self.most_bytes <= most, f"messages.tdb had {self.most_bytes} bytes, more than {most}"
            last, *others = self.survivors
            for other in others:
                other.kill()
            last.tell("clean up after the others")
            last.hear()
            size = self.file.stat().st_size
            assert size <= NEW_FILE + SLACK, f"messages.tdb has {size} bytes and one process"
            check_file(self.file)


def check_file(file: Path) -> None:
    """tdbtool finds it whole, where there is a tdbtool."""
    if shutil.which("tdbtool") is not None:
        found = subprocess.run(["tdbtool", file, "check"], capture_output=True, text=True, check=False)
        assert "Database integrity is OK" in found.stdout, found.stdout


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """What the processes of this block log goes there."""
    logger, handler = logging.getLogger("msgd"), logging.FileHandler(path)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
        handler.close()


def run(variant: Variant, scratch: Path, *, seconds: float, processes: int, seed: int, say: Say) -> None:
    """Run a storm in a directory.  Raises AssertionError for what went wrong; its notes have the end of the log."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(scratch, DISK)) if os.geteuid() == 0 else None
        log = scratch / "log"
        stack.enter_context(log_file(log))
        storm = Storm(variant, disk or scratch, processes, seed, disk)
        stack.callback(storm.kill_all)
        try:
            storm.begin()
            storm.blow(seconds, say)
            storm.end()
            assert "damaged" not in log.read_text(), "messages.tdb was damaged"
        except BaseException as error:
            error.add_note(f"seed {seed}: {storm.state()}\n" + "\n".join(log.read_text().splitlines()[-30:]))
            raise
        say(f"  end   {storm.state()}")
