# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The output of msgbench: tables, JSON, pictures, comparisons, pages, and the messages for wrong usage."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from msgd.bench import plot, record
from msgd.bench.page import fill, markdown
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.tables import number, plain, table_of
from msgd.bench.workers import RunFailed, Team
from tests.bench.conftest import Msgbench


def row(subject: str, *values: float, page: float | None = None, **parameters: int) -> Row:
    return Row(subject, parameters, [Outcome({"rate": value}, {"sent": 10}) for value in values], page_2006=page)


def result(*rows: Row) -> Result:
    return Result(
        "ping", "ping: a title", (Figure("rate", "messages/s"),), list(rows), {"window": 20}, counts=("sent",)
    )


RESULT = result(
    row("tdb", 3000, 1000, 2000, page=64_850),
    row("dgram", 1500, page=58_400),
    Row("pyzmq", note="PAIR", missing="zmq is not installed"),
    Row("asyncio", outcomes=[Outcome({"rate": 9.0}), Outcome(failure="2 of 10 answers missing")]),
)
MACHINE: dict[str, Any] = {"processor": "a fast one", "packages": {"rich": "1.0"}, "configured": "./configure.py"}


def test_table() -> None:
    assert plain(table_of(RESULT)).splitlines() == [
        "ping: a title",
        "",
        "         rate (messages/s)    min    max  % of tdb  sent    2006  2006 %  note",
        "-------  -----------------  -----  -----  --------  ----  ------  ------  ----------------------------------",
        "tdb                  2,000  1,000  3,000     100 %    30  64,850   100 %",
        "dgram                1,500  1,500  1,500      75 %    10  58,400    90 %",
        "pyzmq                    -                                                not measured: zmq is not installed",
        "asyncio             FAILED                                                run 2: 2 of 10 answers missing",
    ]


def test_table_that_compares_a_second_figure() -> None:
    figures = (Figure("rate", "messages/s"), Figure("time", "us", less_is_better=True), Figure("cpu", "us"))
    rows = [
        Row(subject, {}, [Outcome({"rate": 1000 / time, "time": time, "cpu": 1.0})])
        for subject, time in (("msgd", 5.0), ("pyzmq", 10.0))
    ]
    shown = table_of(Result("fanout", "a title", figures, rows, base="pyzmq", compared=("time",)))
    assert shown.headings[4:] == ["% of pyzmq", "time (us)", "% of pyzmq", "cpu (us)", "note"]
    assert [cells[4:] for cells in shown.rows] == [
        ["200 %", "5.00", "50 %", "1.00", ""],
        ["100 %", "10.00", "100 %", "1.00", ""],
    ]


@pytest.mark.parametrize(("value", "text"), [(123456.7, "123,457"), (999.94, "999.9"), (12.345, "12.35"), (0, "0.00")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_percentage_of_the_base_with_the_same_parameters() -> None:
    rows = (row("tdb", 10, senders=1), row("tdb", 100, senders=8), row("dgram", 50, senders=8))
    assert result(*rows).percentage(rows[2]) == 50


def test_json_round_trip(tmp_path: Path) -> None:
    record.write(tmp_path / "a.json", [RESULT], MACHINE)
    assert record.read(tmp_path / "a.json") == ([RESULT], MACHINE)
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_has_every_run_and_the_machine(msgbench: Msgbench, scratch: Path) -> None:
    msgbench.measure("ping", "--types", "dgram", "--runs", "2")
    written = json.loads((scratch / "result.json").read_bytes())
    assert {"time", "processor", "cpus", "kernel", "python", "msgd", "net.unix.max_dgram_qlen"} < written[
        "machine"
    ].keys()
    (only,) = written["results"]
    assert len(only["rows"][0]["runs"]) == 2
    assert only["settings"]["seconds"] == 0.05


def test_compare(msgbench: Msgbench, tmp_path: Path) -> None:
    old, new = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    record.write(
        Path(old), [result(row("tdb", 10, 12), row("dgram", 10, 10), row("stream", 5), row("gone", 5))], MACHINE
    )
    record.write(Path(new), [result(row("tdb", 11, 12), row("dgram", 20, 30), row("stream", 4))], MACHINE)
    done = msgbench("compare", old, new)
    assert done.status == 0
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[4:] == [
        "ping tdb rate (messages/s) 11.00 11.50 1.05 the runs overlap",
        "ping dgram rate (messages/s) 10.00 25.00 2.50 better",
        "ping stream rate (messages/s) 5.00 4.00 0.80 worse",
        "",
    ]
    assert msgbench("compare", "--at-least", "0.8", old, new).status == 0
    done = msgbench("compare", "--at-least", "0.9", old, new)
    assert (done.status, done.err) == (1, "msgbench: the worst figure is 0.80 times as good as before\n")


def test_compare_when_less_is_better(msgbench: Msgbench, tmp_path: Path) -> None:
    for name, value in (("old", 10.0), ("new", 5.0)):
        faster = dataclasses.replace(result(row("tdb", value)), figures=(Figure("rate", "us", less_is_better=True),))
        record.write(tmp_path / f"{name}.json", [faster], MACHINE)
    done = msgbench("compare", "--at-least", "2", str(tmp_path / "old.json"), str(tmp_path / "new.json"))
    assert done.status == 0
    assert "0.50  better" in done.out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"msgbench": 1}', '{"msgbench": 99, "results": []}', "\xff"])
def test_foreign_files_are_refused(msgbench: Msgbench, tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text, encoding="latin-1")
    done = msgbench("compare", str(file), str(file))
    assert done.status == 2
    assert done.err.startswith(f"msgbench compare: {file}: it")
    assert len(done.err.splitlines()) == 1


def test_markdown() -> None:
    lines = markdown(table_of(result(row("tdb", 5)))).splitlines()
    assert lines == [
        "**ping: a title**",
        "",
        "|  | rate (messages/s) | min | max | % of tdb | sent | note |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | :--- |",
        "| tdb | 5.00 | 5.00 | 5.00 | 100 % | 10 |  |",
    ]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "draw", lambda result, path: path.touch())
    monkeypatch.setattr(plot, "missing", lambda path: "")


@pytest.mark.usefixtures("no_pictures")
def test_page(msgbench: Msgbench, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- msgbench ping -->\nold\n<!-- end -->\nbetween\n<!-- msgbench machine -->\n<!-- end -->\n"
        "<!-- msgbench flood -->\nkept\n<!-- end -->\nafter\n"
    )
    record.write(tmp_path / "ping.json", [result(row("tdb", 5))], MACHINE)
    for _ in range(2):  # the second time replaces the first
        assert msgbench("page", str(page), str(tmp_path / "ping.json")).status == 0
    text = page.read_text()
    assert "old" not in text
    assert text.count("| tdb | 5.00 |") == 1
    assert "![ping: a title](page-ping.png)" in text
    assert "- processor: a fast one\n- packages: rich 1.0\n" in text
    assert "between\n" in text
    assert "<!-- msgbench flood -->\nkept\n<!-- end -->\nafter\n" in text
    assert (tmp_path / "page-ping.png").exists()


@pytest.mark.usefixtures("no_pictures")
def test_page_without_a_place_for_the_result(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="no place <!-- msgbench ping -->"):
        fill(tmp_path / "page.md", [RESULT], MACHINE)


@pytest.mark.parametrize("benchmark", ["ping", "size"])
def test_pictures(msgbench: Msgbench, scratch: Path, benchmark: str) -> None:
    arguments = ["--sizes", "0,1K,1M"] if benchmark == "size" else ["--runs", "2"]
    picture = scratch / "it.png"
    done = msgbench.measure(benchmark, "--plot", str(picture), *arguments)
    if why := plot.missing(picture):
        assert (done.status, done.err) == (
            2,
            f"msgbench {benchmark}: --plot {picture}: {why} (see msgbench {benchmark} --help)\n",
        )
    else:
        assert done.status == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("ping --types carrier-pigeon", "messaging type 'carrier-pigeon' is unknown; available: "),
        ("ping --window 0", "'0' is not a whole number of at least 1"),
        ("ping --size 1G", "'1G' is not a number of bytes"),
        ("ping --size 17M", "bytes are more than msgd:max message size"),
        ("ping --seconds nan", "'nan' is not a number of seconds"),
        ("ping --pin 9999", "this process may not run on CPU 9999"),
        ("ping --json /proc/no/such.json", "/proc/no/such.json cannot be written"),
        ("ping --json /", "/ cannot be written"),
        ("ping --plot picture.odt", "a picture's name ends in .png, .svg, .pdf"),
        ("ping --directory /nowhere", "not a writable directory"),
        ("flood --senders 0", "'0' is not a whole number of at least 1"),
        ("size --sizes 1,x", "'x' is not a number of bytes"),
        ("dbench --load /nowhere/client.txt", "--load /nowhere/client.txt: No such file or directory"),
        ("torture --max-size 16M", "bytes are more than msgd:max message size"),
        ("torture --qlen 0", "'0' is not a whole number of at least 1"),
        ("compare a.json /nowhere/b.json", "a.json: No such file or directory"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage(msgbench: Msgbench, arguments: str, complaint: str) -> None:
    done = msgbench(*arguments.split())
    assert done.status == 2
    assert complaint in done.err
    assert len(done.err.splitlines()) == 1
    assert not done.out


def test_configfile_before_or_after_the_command(msgbench: Msgbench, scratch: Path) -> None:
    smb_conf = scratch / "smb.conf"
    smb_conf.write_text("msgd:max message size = loud")
    for arguments in (("-s", str(smb_conf), "ping"), ("ping", "-s", str(smb_conf))):
        done = msgbench(*arguments)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"msgbench: {smb_conf}:1: msgd:max message size = loud")


def test_full_disk_for_json(msgbench: Msgbench) -> None:
    done = msgbench.measure("ping", "--types", "dgram", "--json", "/dev/full")
    assert done.status == 1
    assert done.err == "msgbench: /dev/full: No space left on device\n"


def test_type_that_is_not_compiled_in(msgbench: Msgbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgd.bench.subjects.MESSAGING_MODULES", ())
    done = msgbench("ping", "--types", "stream")
    assert done.status == 2
    assert "messaging type 'stream' is not compiled in" in done.err


def test_directory_whose_path_is_too_long(msgbench: Msgbench, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    done = msgbench("ping", "--directory", str(deep))
    assert done.status == 2
    assert "choose a shorter directory" in done.err


def test_every_command_has_help(msgbench: Msgbench) -> None:
    for command in (
        "ping",
        "flood",
        "size",
        "latency",
        "fanout",
        "pubsub",
        "mesh",
        "scale",
        "dbench",
        "torture",
        "compare",
        "page",
    ):
        done = msgbench(command, "--help")
        assert done.status == 0
        assert done.out.startswith(f"usage: msgbench {command} ")
        assert "Exit status: 0" in done.out


def test_progress_without_a_terminal_is_a_line_for_each_run(msgbench: Msgbench, scratch: Path) -> None:
    done = msgbench("ping", "--types", "dgram", "--runs", "2", "--seconds", "0.05", "--directory", str(scratch))
    lines = done.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["dgram, run 1 of 2", "dgram, run 2 of 2"]
    assert os.listdir(scratch) == []


def test_failure_of_a_worker_fails_the_run() -> None:
    def fail(channel: object) -> None:
        raise RunFailed("it failed")

    with Team() as team, pytest.raises(RunFailed, match=r"^the failing worker: it failed$"):
        team.start("the failing worker", fail).receive(20)
    with Team() as team, pytest.raises(RunFailed, match=r"^the dead worker has died \(exit status 3\)$"):
        team.start("the dead worker", lambda channel: os._exit(3)).receive(20)
    with Team() as team, pytest.raises(RunFailed, match=r"^the silent worker has not finished within 0.01 s"):
        team.start("the silent worker", lambda channel: channel.recv()).receive(0.01)
