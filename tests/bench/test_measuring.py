# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Each subcommand measures briefly.  The tests check what it counted, never its speed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from msgd.bench import subjects
from msgd.bench.broadcast.table import BROADCAST_PEERS, PUBSUB_PEERS
from msgd.bench.exchange import quantiles
from msgd.bench.peers.table import PEERS, TIMED_PEERS
from tests.bench.conftest import Done, Msgbench

ALL = list(subjects.compiled_in())
PLAIN = [name for name in ALL if name in subjects.PLAIN]


def runs(done: Done) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each row with each of its runs; every run must be good."""
    assert done.status == 0, done.err
    for row in done.result["rows"]:
        assert not row["missing"]
        for run in row["runs"]:
            assert not run["failure"]
            assert all(value > 0 for value in run["figures"].values()), row
            yield row, run


def test_ping(msgbench: Msgbench) -> None:
    done = msgbench.measure("ping", "--runs", "2")
    counts = [(row["subject"], run["counts"]) for row, run in runs(done)]
    assert [subject for subject, _ in counts] == [subject for subject in ALL for _ in range(2)]
    assert all(count["sent"] == count["received"] >= 2 and count["sent"] % 2 == 0 for _, count in counts)
    assert done.rows["dgram"]["page_2006"] == 58_400


@pytest.mark.parametrize("command", ["ping", "flood", "latency", "fanout", "pubsub", "scale"])
def test_something_is_measured_even_in_a_short_time(msgbench: Msgbench, command: str) -> None:
    """Simulate a machine that stalls until the time is over."""
    for _, run in runs(msgbench.measure(command, "--types", "dgram", "--seconds", "0.000001")):
        assert run["figures"]


def test_ping_with_a_window_of_one_and_another_size(msgbench: Msgbench) -> None:
    done = msgbench.measure("ping", "--types", "dgram", "--window", "1", "--size", "5000", "--pin", "0")
    assert [run["counts"]["sent"] == run["counts"]["received"] >= 1 for _, run in runs(done)] == [True]
    assert done.result["settings"] | {"window": 1, "size": 5000, "pin": [0]} == done.result["settings"]


def test_ping_within_one_process(msgbench: Msgbench) -> None:
    done = msgbench.measure("ping", "--single-process", "--peers")
    assert done.status == 0
    for row in done.result["rows"]:
        if row["subject"] in ALL:
            assert row["runs"][0]["counts"]["sent"] == row["runs"][0]["counts"]["received"] >= 2
        else:
            assert row["missing"] == "needs two processes"


def test_peers_are_measured_or_give_the_reason(msgbench: Msgbench) -> None:
    done = msgbench.measure("ping", "--peers", "--types", "dgram")
    assert done.status == 0, done.err
    assert [row["subject"] for row in done.result["rows"]] == ["dgram", *(peer.name for peer in PEERS)]
    for row in done.result["rows"]:
        if row["missing"]:
            assert "install" in row["missing"] or "compiler" in row["missing"]
            assert f"not measured: {row['missing']}" in done.out
        else:
            (run,) = row["runs"]
            assert run["figures"]["rate"] > 0
            assert run["counts"].get("sent") == run["counts"].get("received")
    always_there = ("multiprocessing", "asyncio")
    assert not any(done.rows[name]["missing"] for name in always_there)


def test_flood(msgbench: Msgbench) -> None:
    done = msgbench.measure("flood", "--senders", "1,3")
    measured = [(row["subject"], row["parameters"], run["counts"]) for row, run in runs(done)]
    assert [(subject, parameters["senders"]) for subject, parameters, _ in measured] == [
        (subject, senders) for senders in (1, 3) for subject in PLAIN
    ]
    assert all(counts["sent"] == counts["received"] > 0 == counts["lost"] for *_, counts in measured)


def test_size(msgbench: Msgbench) -> None:
    done = msgbench.measure("size", "--sizes", "1,64K,16M", "--seconds", "0.01")
    counts = [run["counts"] for _, run in runs(done)]
    assert len(counts) == 3 * len(PLAIN)
    assert all(count["sent"] == count["received"] >= 1 for count in counts)


def test_size_with_peers(msgbench: Msgbench) -> None:
    done = msgbench.measure("size", "--sizes", "0,100K", "--seconds", "0.01", "--peers", "--types", "stream")
    rows = [row for row in done.result["rows"] if not row["missing"]]
    assert {"stream", "multiprocessing"} <= {row["subject"] for row in rows}
    assert done.result["base"] == "multiprocessing"
    assert all(run["counts"]["sent"] == run["counts"]["received"] >= 1 for row in rows for run in row["runs"])


def test_latency(msgbench: Msgbench) -> None:
    for _, run in runs(msgbench.measure("latency")):
        figures = run["figures"]
        assert figures["p50"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
        assert run["counts"]["sent"] == run["counts"]["received"] >= 1


def test_latency_beside_peers(msgbench: Msgbench) -> None:
    done = msgbench.measure("latency", "--peers", "--types", "dgram")
    assert done.status == 0, done.err
    assert [row["subject"] for row in done.result["rows"]] == ["dgram", *(peer.name for peer in TIMED_PEERS)]
    for row in done.result["rows"]:
        if row["missing"]:
            assert "install" in row["missing"] or "compiler" in row["missing"]
            continue
        (run,) = row["runs"]
        figures = run["figures"]
        assert 0 < figures["p50"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
        assert figures["cpu"] > 0
        assert run["counts"]["sent"] == run["counts"]["received"] >= 1
    assert not any(done.rows[name]["missing"] for name in ("multiprocessing", "asyncio"))


def test_quantiles_are_measured_times() -> None:
    times = [number / 1e6 for number in range(1, 1001)]
    assert quantiles(times) == pytest.approx({"p50": 500, "p99": 990, "p99.9": 999, "max": 1000})
    assert quantiles([1e-6]) == pytest.approx({"p50": 1, "p99": 1, "p99.9": 1, "max": 1})


def test_fanout(msgbench: Msgbench) -> None:
    for row, run in runs(msgbench.measure("fanout", "--listeners", "1,3")):
        counts = run["counts"]
        assert counts["received"] == counts["broadcasts"] * row["parameters"]["listeners"] > 0 == counts["lost"]


def test_fanout_beside_peers(msgbench: Msgbench) -> None:
    done = msgbench.measure("fanout", "--peers", "--types", "dgram", "--listeners", "3", "--windows", "1,4")
    assert done.status == 0, done.err
    subjects_of_a_window = ["dgram", *(peer.name for peer in BROADCAST_PEERS)]
    assert [row["subject"] for row in done.result["rows"]] == 2 * subjects_of_a_window
    assert (done.result["base"], done.result["compared"]) == ("pyzmq", ["time"])
    for row in done.result["rows"]:
        if row["missing"]:
            assert "install" in row["missing"] or "compiler" in row["missing"]
            continue
        (run,) = row["runs"]
        counts, figures = run["counts"], run["figures"]
        assert counts["received"] == counts["broadcasts"] * 3 > 0 == counts["lost"]
        assert counts["broadcasts"] % row["parameters"]["window"] == 0
        assert figures["deliveries"] * figures["time"] == pytest.approx(3e6)
        assert figures["cpu"] > 0


def test_pubsub_beside_peers(msgbench: Msgbench) -> None:
    done = msgbench.measure("pubsub", "--peers", "--workers", "3", "--windows", "1,4")
    assert done.status == 0, done.err
    subjects_of_a_window = [*PLAIN, *(peer.name for peer in PUBSUB_PEERS)]
    assert [row["subject"] for row in done.result["rows"]] == 2 * subjects_of_a_window
    assert (done.result["base"], done.result["compared"]) == ("redis", ["time"])
    for row in done.result["rows"]:
        if row["missing"]:
            assert "install" in row["missing"]
            continue
        (run,) = row["runs"]
        counts, figures = run["counts"], run["figures"]
        assert counts["received"] == counts["broadcasts"] * 3 > 0 == counts["lost"]
        assert ("p99" in figures) == (row["parameters"]["window"] == 1)
        assert figures.get("p50", 0) <= figures.get("p99", 0)


def test_mesh(msgbench: Msgbench) -> None:
    for row, run in runs(msgbench.measure("mesh", "--processes", "2,6")):
        number = row["parameters"]["processes"]
        assert run["counts"] == {"sent": number * (number - 1), "received": number * (number - 1), "lost": 0}


def test_scale(msgbench: Msgbench) -> None:
    for _, run in runs(msgbench.measure("scale", "--processes", "2,6")):
        assert run["counts"]["sent"] == run["counts"]["received"] >= 1
        assert run["figures"]["memory"] > 100


def test_torture(msgbench: Msgbench) -> None:
    done = msgbench.measure("torture", "--seconds", "0.6", "--processes", "4", "--max-size", "20000", "--seed", "7")
    for _, run in runs(done):
        counts = run["counts"]
        assert counts["sent"] == counts["delivered"] + counts["unread"]
        assert counts["kills"] + counts["stops"] >= 1
        assert not any(counts[wrong] for wrong in ("lost", "doubled", "reordered", "damaged"))
    assert done.result["settings"]["seed"] == 7
    assert "seed 7, net.unix.max_dgram_qlen " in done.out


def test_loss_makes_ping_fail(msgbench: Msgbench, lossy: str) -> None:
    done = msgbench.measure("ping", "--seconds", "0.5", "--patience", "4")  # the process may be late by as much
    assert done.status == 1
    assert "answers are missing" in done.rows[lossy]["runs"][0]["failure"]
    assert "FAILED" in done.out
    assert done.err.startswith("msgbench: ping failed: lossy: run 1: ")


def test_loss_makes_flood_fail(msgbench: Msgbench, lossy: str) -> None:
    done = msgbench.measure("flood", "--seconds", "0.3", "--patience", "1", "--senders", "1", "--types", lossy)
    assert done.status == 1
    counts = done.rows[lossy]["runs"][0]["counts"]
    assert counts["sent"] >= 1000
    assert counts["lost"] == counts["sent"] - counts["received"] >= counts["sent"] // 1000


def test_loss_makes_fanout_fail(msgbench: Msgbench, lossy: str) -> None:
    arguments = ("--types", lossy, "--listeners", "2", "--windows", "16", "--seconds", "0.5", "--patience", "1")
    done = msgbench.measure("fanout", *arguments)
    assert done.status == 1
    assert done.rows[lossy]["runs"][0]["failure"]
    assert done.rows[lossy]["runs"][0]["counts"]["lost"] >= 1


def test_loss_makes_torture_fail(msgbench: Msgbench, lossy: str) -> None:
    done = msgbench.measure(
        "torture", "--seconds", "1", "--patience", "1", "--processes", "3", "--max-size", "100", "--seed", "3"
    )
    assert done.status == 1
    assert done.rows[lossy]["runs"][0]["counts"]["lost"] >= 1
    assert "(seed 3)" in done.err
