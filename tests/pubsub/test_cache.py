# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Caches of several workers: what one invalidates, all forget, and what was read before is never put back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("cachetools", reason="cachetools is not installed")

from msgd import Config, NotAcknowledged
from msgd.cache import Cache, cached, default_cache
from msgd.pubsub import PubSub
from tests.pubsub.conftest import StartWorker
from tests.pubsub.test_gaps import killed_before_it_sends
from tests.pubsub.workers import INTERVAL, Notes, settle, wait
from tests.support.daemons import ENVIRONMENT
from tests.support.harness import Child


def opened(notes: Notes) -> None:
    notes.others["cache"] = Cache("shop", pubsub=notes.pubsub)
    notes.others["cache"].get("nothing")


def keep(notes: Notes, key: str, value: Any, *tags: str) -> Any:
    return notes.others["cache"].get_or_compute(key, lambda: value, tags=tags)


def kept(notes: Notes, key: str) -> Any:
    return notes.others["cache"].get(key)


def forgotten(notes: Notes, key: str) -> Any:
    """Wait until the key is forgotten."""
    wait(notes, lambda: notes.others["cache"].get(key) is None)
    return len(notes.others["cache"])


@pytest.fixture
def cache(config: Config) -> Iterator[Cache]:
    with PubSub(config, check_interval=INTERVAL) as pubsub:
        yield Cache("shop", pubsub=pubsub)


def test_all_forget_a_key_a_tag_or_everything(cache: Cache, config: Config, start: StartWorker) -> None:
    workers = [start(config, first=opened) for _ in range(2)]
    for worker in workers:
        for key, tags in (("1", ["a"]), ("2", ["a", "b"]), ("3", ["b"]), ("4", [])):
            assert worker.call(keep, key, key * 2, *tags) == key * 2
            worker.call(keep, key, "never")
    cache.invalidate("1")
    assert [worker.call(forgotten, "1") for worker in workers] == [3, 3]
    cache.invalidate_tag("b")
    assert [worker.call(forgotten, "2") for worker in workers] == [1, 1]
    assert [worker.call(kept, "4") for worker in workers] == ["44", "44"]
    cache.clear()
    assert [worker.call(forgotten, "4") for worker in workers] == [0, 0]


def test_the_own_process_forgets_at_once(plain_config: Config) -> None:
    with PubSub(plain_config, background=False) as pubsub:
        cache = Cache(pubsub=pubsub)
        cache.get_or_compute("a", lambda: None)
        assert cache.get("a", "missing") is None
        cache.invalidate("a")
        assert cache.get("a", "missing") == "missing"
        assert pubsub.is_current()


def test_acknowledged_invalidation_fails_closed(cache: Cache, config: Config, start: StartWorker) -> None:
    good, slow = start(config, first=opened), start(config, first=opened)
    for worker in (good, slow):
        worker.call(keep, "a", 1)
        worker.begin(forgotten, "a")
    publication = cache.invalidate("a", wait="acked", timeout=30)
    assert publication.acked == {good.pid: 1, slow.pid: 1}
    good.hear()
    slow.hear()
    slow.stop()
    good.begin(settle)
    with pytest.raises(NotAcknowledged, match=f"key a: pid {slow.pid} has not handled it") as raised:
        cache.invalidate("a", wait="acked", timeout=0.2)
    assert list(raised.value.failures) == [slow.pid]
    slow.kill()
    assert cache.invalidate("a", wait="acked").is_complete


@pytest.mark.parametrize("scope", ["key", "tag", "all", "other key", "other tag"])
def test_what_was_read_before_an_invalidation_is_not_kept(plain_config: Config, start: StartWorker, scope: str) -> None:
    """The computation reads the old state; then another process changes the state and invalidates; then it ends."""
    other = start(plain_config, first=opened)
    with PubSub(plain_config, background=False) as pubsub:
        cache = Cache("shop", pubsub=pubsub)
        notes = Notes(pubsub)

        def compute() -> str:
            other.call(invalidate, scope)
            settle(notes)
            return "old"

        assert cache.get_or_compute("a", compute, tags=["t"]) == "old"
        assert cache.get("a") == ("old" if scope.startswith("other") else None)
        assert cache.get_or_compute("a", lambda: "new", tags=["t"]) == ("old" if scope.startswith("other") else "new")


def invalidate(notes: Notes, scope: str) -> None:
    cache: Cache = notes.others["cache"]
    actions: dict[str, Callable[[], object]] = {
        "key": lambda: cache.invalidate("a"),
        "tag": lambda: cache.invalidate_tag("t"),
        "all": cache.clear,
        "other key": lambda: cache.invalidate("b"),
        "other tag": lambda: cache.invalidate_tag("u"),
    }
    actions[scope]()


def test_a_computation_does_not_keep_anything_afterwards(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        cache = Cache(pubsub=pubsub)
        with cache.computing("a") as computation:
            assert computation.store(1)
        assert not computation.store(2)
        assert cache.get("a") == 1


def test_a_gap_clears_everything(cache: Cache, config: Config, start: StartWorker) -> None:
    worker, publisher = start(config, first=opened), start(config)
    worker.call(keep, "a", 1)
    publisher.begin(killed_before_it_sends)
    publisher.wait()
    assert worker.call(forgotten, "a") == 0


def test_a_strict_cache_has_no_stale_value_once_invalidate_has_returned(
    plain_config: Config, start: StartWorker
) -> None:
    other = start(plain_config, first=opened)
    with PubSub(plain_config, background=False) as pubsub:
        cache, lax = Cache("shop", pubsub=pubsub, strict=True), Cache("shop", pubsub=pubsub)
        for one in (cache, lax):
            assert one.get_or_compute("a", lambda: "old") == "old"
            assert one.get("a") == "old"
        other.call(invalidate, "key")
        assert cache.get("a") is None  # nothing has been dispatched in this process
        assert lax.get("a") == "old"
        settle(Notes(pubsub))
        assert cache.get("a") is lax.get("a") is None


def test_entries_end(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        cache = Cache(pubsub=pubsub, maxsize=3, ttl=3600)
        for number in range(4):
            cache.get_or_compute(str(number), lambda: 1, tags=["t"])
        assert (len(cache), cache.get("0")) == (3, None)
        cache.get_or_compute("short", lambda: 1, ttl=0)
        assert cache.get("short") is None
        cache.invalidate_tag("t")
        assert len(cache) == 0


def test_a_child_keeps_what_is_true(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        cache = Cache(pubsub=pubsub)
        cache.get_or_compute("a", lambda: 1)
        with Child(lambda channel: channel.send((channel.recv(), cache.get("a")))) as child:
            child.tell("now")
            assert child.hear() == ("now", 1)
        with Child(lambda channel: channel.send((channel.recv(), cache.get("a")))) as child:
            cache.invalidate("b")
            child.tell("now")
            assert child.hear() == ("now", None)


def test_a_child_that_was_forked_in_the_middle_of_a_change_begins_empty(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        cache = Cache(pubsub=pubsub)
        cache.get_or_compute("a", lambda: 1)
        is_held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with cache._lock:
                is_held.set()
                go_on.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        is_held.wait()
        with Child(lambda channel: channel.send(cache.get("a"))) as child:
            go_on.set()
            thread.join()
            assert child.hear() is None
        assert cache.get("a") == 1


def test_a_cached_function(plain_config: Config) -> None:
    calls: list[Any] = []
    with PubSub(plain_config) as pubsub:
        cache = Cache(pubsub=pubsub)

        @cached(ttl=60, cache=cache)
        def square(number: int, *, by: str = "x") -> int:
            calls.append(number)
            return number * number

        @cached(key=lambda number: str(number), tags=lambda number: [f"n{number}"], cache=cache)
        async def cube(number: int) -> int:
            calls.append(number)
            return number**3

        assert [square(2), square(2), square(2, by="y"), square(3)] == [4, 4, 4, 9]
        assert calls == [2, 2, 3]
        square.invalidate(2)  # type: ignore[attr-defined]
        assert [square(2), square(2, by="y"), square(3)] == [4, 4, 9]
        assert calls == [2, 2, 3, 2]
        assert [asyncio.run(cube(2)), asyncio.run(cube(2))] == [8, 8]
        square.clear(wait="acked")  # type: ignore[attr-defined]
        assert (square(3), asyncio.run(cube(2))) == (9, 8)
        cache.invalidate_tag("n2")
        asyncio.run(cube(2))
        assert calls == [2, 2, 3, 2, 2, 3, 2]
        with pytest.raises(TypeError, match="pass key="):
            square([1])  # type: ignore[arg-type]


def test_what_no_cache_takes(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        for wrong in (-1, "60"):
            with pytest.raises(ValueError, match="ttl="):
                Cache(ttl=wrong, pubsub=pubsub)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="ttl="):
                cached(ttl=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="maxsize="):
            Cache(maxsize=0, pubsub=pubsub)
        with pytest.raises(TypeError, match="what is cached is a function"):
            cached("price")  # type: ignore[call-overload]
        cache = Cache(pubsub=pubsub)
        with pytest.raises(TypeError, match="a key is text, not int"):
            cache.get_or_compute(7, int)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a key is text, not tuple"):
            cache.invalidate((1, 2))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a tag is text, not int"):
            cache.get_or_compute("a", int, tags=[7])  # type: ignore[list-item]
        assert len(cache) == 0


def test_a_decorator_without_arguments(scratch: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSGD_DIRECTORY", os.path.join(scratch, "lock"))
    computed = []

    @cached
    def double(number: int) -> int:
        computed.append(number)
        return 2 * number

    try:
        assert double(2) == double(2) == 4
        assert computed == [2]
        double.invalidate(2)  # type: ignore[attr-defined]
        assert double(2) == 4
        assert computed == [2, 2]
    finally:
        default_cache().pubsub.close()
        default_cache.cache_clear()


def test_without_cachetools(scratch: os.PathLike[str]) -> None:
    with open(os.path.join(scratch, "cachetools.py"), "w") as file:
        file.write("raise ImportError('not here')\n")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{scratch}:{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", "import msgd.cache"], env=environment, capture_output=True, text=True, check=False
    )
    assert "install python3-cachetools, or msgd[cache]" in done.stderr
