# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Rebuilding the free list from the hash chains: on real files, after any work on them, and on damaged ones."""

from __future__ import annotations

import contextlib
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import tdb
from hypothesis import given, settings
from hypothesis import strategies as st

from msgd.wire.tdb_space import compact, rebuilt_free_list, used_bytes
from tests.backends.tdb.conftest import needs_tdb_tools

KINDS = {"mutexes": (89, tdb.CLEAR_IF_FIRST | 4096), "fcntl": (0, tdb.CLEAR_IF_FIRST)}
Steps = list[tuple[int, int | None]]
WORK = st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 20_000))), max_size=60)
"""Keys, and the length of the value to store under each; None to delete it."""


def work(database: tdb.Tdb, values: dict[bytes, bytes], steps: Steps) -> None:
    for number, length in steps:
        key = b"%d" % number
        if length is not None:
            values[key] = bytes([number]) * length
            database.store(key, values[key])
        elif values.pop(key, None) is not None:
            database.delete(key)


def content(database: tdb.Tdb) -> dict[bytes, bytes]:
    return {key: database.get(key) for key in list(database.keys())}


def is_whole(path: Path) -> bool:
    found = subprocess.run(["tdbtool", path, "check"], capture_output=True, text=True, check=False).stdout
    return "Database integrity is OK" in found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("space")


@needs_tdb_tools
@pytest.mark.parametrize("kind", KINDS)
@given(before=WORK, after=WORK)
@settings(max_examples=60, deadline=None)
def test_rebuilt_free_list(directory: Path, kind: str, before: Steps, after: Steps) -> None:
    path = directory / "file.tdb"
    path.unlink(missing_ok=True)
    chains, flags = KINDS[kind]
    database = tdb.Tdb(str(path), chains, flags, os.O_RDWR | os.O_CREAT, 0o600)
    fd = os.open(path, os.O_RDWR)
    try:
        values: dict[bytes, bytes] = {}
        work(database, values, before)
        writes = rebuilt_free_list(partial(os.pread, fd), os.fstat(fd).st_size)
        assert writes is not None
        os.pwrite(fd, b"\xff\xff\xff\x7f", writes[0].place)
        for place, data in writes:
            os.pwrite(fd, data, place)
        assert content(database) == values
        assert is_whole(path)
        work(database, values, after)
        assert content(database) == values
        assert is_whole(path)
    finally:
        database.close()
        os.close(fd)


class Killed(Exception):
    """The process is killed between two writes."""


@needs_tdb_tools
@pytest.mark.parametrize("kind", KINDS)
@given(before=WORK, after=WORK, most=st.integers(0, 200_000), killed_after=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_compacted_and_cut_off(
    directory: Path, kind: str, before: Steps, after: Steps, most: int, killed_after: int
) -> None:
    """Nothing is lost, also if the process is killed after any number of writes; others have the file open."""
    path = directory / "compact.tdb"
    path.unlink(missing_ok=True)
    chains, flags = KINDS[kind]
    database = tdb.Tdb(str(path), chains, flags, os.O_RDWR | os.O_CREAT, 0o600)
    fd = os.open(path, os.O_RDWR)
    writes = 0

    def write(data: bytes, place: int) -> None:
        nonlocal writes
        if writes == killed_after:
            raise Killed
        writes += 1
        os.pwrite(fd, data, place)

    read = partial(os.pread, fd)
    try:
        values: dict[bytes, bytes] = {}
        work(database, values, before)
        size = os.fstat(fd).st_size
        used = used_bytes(read, size)
        assert used is not None
        assert used >= sum(len(key) + len(value) for key, value in values.items())
        with contextlib.suppress(Killed):
            end = compact(read, write, size, 1000, most)
            assert end is not None
            assert used <= end <= size
            size = end + 4096
        writes_of_list = rebuilt_free_list(read, size)
        assert writes_of_list is not None
        os.posix_fallocate(fd, 0, size)
        for place, data in writes_of_list:
            os.pwrite(fd, data, place)
        os.ftruncate(fd, size)
        assert content(database) == values
        assert is_whole(path)
        work(database, values, after)
        assert content(database) == values
        assert is_whole(path)
    finally:
        database.close()
        os.close(fd)


def test_compacting_makes_a_sparse_file_short(directory: Path) -> None:
    path = directory / "sparse.tdb"
    database = tdb.Tdb(str(path), 0, tdb.CLEAR_IF_FIRST, os.O_RDWR | os.O_CREAT, 0o600)
    work(database, {}, [(number, 10_000) for number in range(250)])
    work(database, {}, [(251, 50)])
    for number in range(10, 250):
        database.delete(b"%d" % number)
    data = bytearray(path.read_bytes())
    database.close()

    def write(part: bytes, place: int) -> None:
        data[place : place + len(part)] = part

    end = compact(lambda length, place: bytes(data[place : place + length]), write, len(data), 1000, len(data))
    assert len(data) > 2_500_000
    assert end is not None
    assert end < 200_000


def read_from(data: bytes, length: int, place: int) -> bytes:
    return data[place : place + length]


@given(data=st.binary(max_size=300), spoiled=st.dictionaries(st.integers(0, 9000), st.integers(0, 255), max_size=20))
def test_damage_is_reported_and_raises_nothing(sample: bytes, data: bytes, spoiled: dict[int, int]) -> None:
    assert rebuilt_free_list(partial(read_from, data), len(data)) is None
    damaged = bytearray(sample)
    for place, byte in spoiled.items():
        damaged[place] = byte
    writes = rebuilt_free_list(partial(read_from, bytes(damaged)), len(damaged))
    assert writes is None or all(place + len(one) <= len(damaged) for place, one in writes)


@pytest.fixture(scope="module")
def sample(directory: Path) -> bytes:
    """A file with records and free space."""
    path = directory / "sample.tdb"
    database = tdb.Tdb(str(path), 0, tdb.CLEAR_IF_FIRST, os.O_RDWR | os.O_CREAT, 0o600)
    work(database, {}, [(number, 300) for number in range(12)])
    database.delete(b"3")
    database.close()
    return path.read_bytes()


def test_overlapping_records_are_damage(sample: bytes) -> None:
    """Two processes were given the same space."""
    magic = (0x26011999).to_bytes(4, "little")
    first = sample.index(magic) - 20
    length = int.from_bytes(sample[first + 4 : first + 8], "little")
    damaged = sample[: first + 4] + (length + 100).to_bytes(4, "little") + sample[first + 8 :]
    assert rebuilt_free_list(partial(read_from, sample), len(sample)) is not None
    assert rebuilt_free_list(partial(read_from, damaged), len(damaged)) is None


def test_records_in_a_circle_are_damage(sample: bytes) -> None:
    """It is noticed at once, however large the file is."""
    first = sample.index((0x26011999).to_bytes(4, "little")) - 20
    damaged = sample[:first] + first.to_bytes(4, "little") + sample[first + 4 :]
    reads = 0

    def read(length: int, place: int) -> bytes:
        nonlocal reads
        reads += 1
        return read_from(damaged, length, place)

    assert rebuilt_free_list(read, len(damaged)) is None
    assert reads < 20
