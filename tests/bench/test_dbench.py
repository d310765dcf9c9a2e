# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench dbench: the load files it reads, the files it makes, and the messages it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgd.bench import subjects
from msgd.bench.dbench import load
from msgd.bench.dbench.load import BadLoad, Operation
from msgd.bench.dbench.open_files import OpenFiles
from msgd.bench.dbench.replay import Replay, Unexpected
from msgd.bench.dbench.sharing import Sharing
from tests.bench.conftest import Msgbench

PLAIN = [name for name in subjects.compiled_in() if name in subjects.PLAIN]


def test_clients_with_and_without_messages(msgbench: Msgbench) -> None:
    done = msgbench.measure("dbench", "--clients", "1,3", "--seconds", "0.3")
    assert done.status == 0, done.err
    assert [(row["subject"], row["parameters"]["clients"]) for row in done.result["rows"]] == [
        (subject, clients) for clients in (1, 3) for subject in (*PLAIN, "no messages")
    ]
    for row in done.result["rows"]:
        (run,) = row["runs"]
        assert run["counts"]["operations"] > 0
        assert run["counts"]["lost"] == 0
        with_messages = row["subject"] != "no messages" and row["parameters"]["clients"] > 1
        assert (run["counts"]["notifies"] > 0) is with_messages
        assert run["counts"]["messages"] >= run["counts"]["notifies"]


def test_load_is_replayed_to_its_end_even_in_a_short_time(msgbench: Msgbench) -> None:
    done = msgbench.measure("dbench", "--clients", "2", "--types", "dgram", "--seconds", "0.000001")
    assert done.status == 0, done.err
    counts = done.rows["dgram"]["runs"][0]["counts"]
    assert counts["operations"] == 2 * len(load.read(load.DEFAULT))
    assert counts["notifies"] > 0


def test_opening_a_held_file_sends_a_break_request(msgbench: Msgbench, scratch: Path) -> None:
    shared = scratch / "shared.load"
    shared.write_text(
        'NTCreateX "\\plan.txt" 0x40 0x3 1 NT_STATUS_OK\nWriteX 1 0 10 10 NT_STATUS_OK\nClose 1 NT_STATUS_OK\n'
    )
    done = msgbench.measure("dbench", "--clients", "3", "--load", str(shared), "--seconds", "0.5")
    assert done.status == 0, done.err
    for row in done.result["rows"]:
        counts = row["runs"][0]["counts"]
        assert counts["breaks"] > 0
        silent = row["subject"] == "no messages"
        assert counts["messages"] == (0 if silent else 2 * counts["breaks"] + counts["notifies"])


def test_operations_on_real_files(scratch: Path) -> None:
    operations = [
        ("Mkdir", ("clients",), True),
        ("NTCreateX", ("clients/client1/a", 0x40, 1, 1), False),
        ("NTCreateX", ("clients/client1/a", 0x40, 2, 1), True),
        ("WriteX", (1, 100, 5000, 5000), True),
        ("ReadX", (1, 5000, 100, 100), True),
        ("ReadX", (1, 5000, 101, 101), False),
        ("LockX", (1, 2147483538, 1), True),
        ("UnlockX", (1, 2147483538, 1), True),
        ("Flush", (1,), True),
        ("SET_FILE_INFORMATION", (1, 1004), True),
        ("QUERY_FILE_INFORMATION", (1, 258), True),
        ("QUERY_FS_INFORMATION", (1,), True),
        ("Rename", ("clients/client1/a", "clients/client1/b"), True),
        ("QUERY_PATH_INFORMATION", ("clients/client1/a", 1004), False),
        ("QUERY_PATH_INFORMATION", ("clients/client1/b", 1004), True),
        ("FIND_FIRST", ("clients/client1/*", 260, 1366, 1), True),
        ("FIND_FIRST", ("clients/client1/c*", 260, 1366, 0), False),
        ("Close", (1,), True),
        ("Close", (1,), False),
        ("NTCreateX", ("clients/client1/d", 1, 2, 2), True),
        ("Close", (2,), True),
        ("Rmdir", ("clients/client1/d",), True),
    ]
    lines = [Operation(line, *operation) for line, operation in enumerate(operations, 1)]
    replay = Replay(scratch, Sharing(OpenFiles(scratch / "open_files.tdb"), 4, 5), 0, fsync=True)
    with pytest.raises(Unexpected, match="line 99, Close: KeyError"):
        replay.run([*lines, Operation(99, "Close", (1,), True)], 20)
    assert os.listdir(scratch / "clients" / "client4") == ["b"]
    assert (scratch / "clients" / "client4" / "b").stat().st_size == 5100


def test_first_open_is_exclusive_until_shared(scratch: Path) -> None:
    files = OpenFiles(scratch / "open_files.tdb")
    assert files.add(b"1:1", "a/name", 0) == []
    assert files.latest(0) == "a/name"
    assert files.add(b"1:1", "a/name", 1) == [0]
    assert files.add(b"1:1", "a/name", 0) == []
    files.share(b"1:1", 0)
    assert files.add(b"1:1", "a/name", 1) == []
    assert files.latest(1) is None
    for client in (0, 0, 1):
        files.remove(b"1:1", client)
    assert files.add(b"1:1", "a/name", 1) == []
    assert files.add(b"1:1", "a/name", 0) == [1]


def test_load_files(tmp_path: Path) -> None:
    file = tmp_path / "some.load"
    file.write_text(
        "# a remark\n\n"
        'NTCreateX "\\clients\\client1\\~DMTMP\\A B.doc" 0x40 0x1 17 NT_STATUS_OBJECT_NAME_NOT_FOUND\n'
        "0.250 WriteX 17 65534 1 1 NT_STATUS_OK\n"
    )
    assert load.read(file) == [
        Operation(3, "NTCreateX", ("clients/client1/~dmtmp/a b.doc", 0x40, 1, 17), False),
        Operation(4, "WriteX", (17, 65534, 1, 1), True),
    ]
    assert len(load.read(load.DEFAULT)) > 100


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Dance 1 NT_STATUS_OK", "bad.load:2: unknown operation 'Dance'"),
        ("Close NT_STATUS_OK", "bad.load:2: Close takes 1 arguments and a status"),
        ("Close one NT_STATUS_OK", "bad.load:2: invalid literal"),
        ('Unlink "\\..\\..\\etc\\passwd" 0x6 NT_STATUS_OK', "bad.load:2: .* is not an allowed path"),
        ('Mkdir "\\a/b" NT_STATUS_OK', "bad.load:2: .* is not an allowed path"),
        ("Mkdir a NT_STATUS_OK", "bad.load:2: '' is not an allowed path"),
    ],
)
def test_bad_load_files(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "bad.load"
    file.write_text(f"Flush 1 NT_STATUS_OK\n{line}\n")
    with pytest.raises(BadLoad, match=complaint):
        load.read(file)


def test_empty_load_file(tmp_path: Path) -> None:
    (tmp_path / "empty.load").write_text("# nothing\n")
    with pytest.raises(BadLoad, match="has no operations"):
        load.read(tmp_path / "empty.load")
