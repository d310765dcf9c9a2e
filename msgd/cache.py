# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Caches that all workers of a service keep coherent: what one invalidates, all forget.

Rule 1.  A value is stored only if nothing that concerns it was invalidated since its computation began, by its key, a
    tag, or for all.  So a computation that has read the old state never puts it back.  There is no set(): of a value
    that comes from outside nobody knows when it was read.
Rule 2.  A gap (msgd.pubsub) clears the cache: nobody knows what was invalidated.
Rule 3.  No lock is held while something is computed or published.
Rule 4.  What has been cached before a fork stays in the child if the child can tell that it is still true; see
    pubsub/face.py.  If a thread was changing the cache at that moment, the child begins with an empty one.
Rule 5.  With strict=True, get() compares what has been published with what has been handled here, and a value counts
    only if they are the same.  So after invalidate() has returned, in whatever process, nobody gets the old value.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar, cast, overload

from msgd.errors import NotAcknowledged
from msgd.pubsub import Event, Gap, Publication, PubSub
from msgd.pubsub.subscriptions import check_function

try:
    import cachetools
except ImportError:
    raise ImportError("msgd.cache needs cachetools: install python3-cachetools, or msgd[cache]") from None

P = ParamSpec("P")
T = TypeVar("T")
Wait = Literal["acked"] | None

DEFAULT_SIZE = 1024
"""Entries of a cache."""

ACK_TIMEOUT = 5.0
"""Seconds that an invalidation waits for its acknowledgements by default."""

_SPOILED_MAX = 10_000
"""Invalidations that are remembered for the computations that are running; past that, none of them is stored."""

_PLAIN = (str, int, float, bool, bytes, type(None))
"""Arguments that look alike in all processes."""

_MISSING: Final = object()
_ALL = "all", ""

Scope = tuple[str, str]
"""What is invalidated: ("key", key), ("tag", tag), or _ALL."""


class _Entry(NamedTuple):
    value: Any
    tags: frozenset[str]
    ttl: float


class Computation:
    """A value that is being computed; store() keeps it, unless it has been invalidated since."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache = cache
        self._key = key
        self.spoiled: set[Scope] = set()
        """What has been invalidated since it began."""

    def store(self, value: object, *, tags: Iterable[str] = (), ttl: float | None = None) -> bool:
        """Keep the value.  Returns whether it is kept.  `ttl`: seconds, by default the cache's."""
        return self._cache._store(self, self._key, value, frozenset(tags), ttl)

    def note(self, scope: Scope) -> None:
        """Something has been invalidated."""
        if len(self.spoiled) >= _SPOILED_MAX:
            self.spoiled = {_ALL}
        self.spoiled.add(scope)


class Cache:
    """A cache of at most `maxsize` entries, the least recently used of which goes first, for `ttl` seconds (None: no
    limit).

    Those of all processes with the same `name` whose `pubsub` meet in one directory are one cache: what is invalidated
    in one of them is forgotten by all.  Keys and tags are text.  Values are those of this process, and are not copied.
    `strict`: Rule 5; each get() costs two microseconds more, and misses while something is on its way.

    Any thread may call anything.  The first use opens `pubsub`, and raises what that raises.  ValueError for a `ttl` or
    a `maxsize` that is none, TypeError for keys and tags that are no text.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        pubsub: PubSub | None = None,
        maxsize: int = DEFAULT_SIZE,
        ttl: float | None = None,
        strict: bool = False,
    ) -> None:
        self.name = name
        self.pubsub = PubSub() if pubsub is None else pubsub
        self.strict = strict
        _check_ttl(ttl)
        if not (isinstance(maxsize, int) and maxsize > 0):
            raise ValueError(f"maxsize={maxsize!r}: it is a number of entries above 0")
        self._ttl = ttl
        self._topic = f"msgd.cache/{name}"
        self._lock = threading.RLock()
        self._is_subscribed = False
        self._running: set[Computation] = set()
        self._maxsize = maxsize
        self._entries = self._new_entries()
        _caches.add(self)

    def _new_entries(self) -> cachetools.TLRUCache[str, _Entry]:
        return cachetools.TLRUCache(self._maxsize, lambda key, entry, now: now + entry.ttl)

    def _open(self) -> None:
        """Hear of invalidations, in this process.  Two threads may subscribe at once, which does no harm."""
        if not self._is_subscribed:
            self.pubsub.subscribe(self._topic, self._on_event, on_gap=self._on_gap)
            self._is_subscribed = True
        self.pubsub.start()

    # Reading and storing

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        self._open()
        if self.strict and not self.pubsub.is_current():
            return default
        with self._lock:
            entry = self._entries.get(key)
        return default if entry is None else entry.value

    @contextlib.contextmanager
    def computing(self, key: str) -> Iterator[Computation]:
        """Compute a value inside: `with cache.computing(key) as computation: computation.store(read())`."""
        _check_text("a key", key)
        self._open()
        computation = Computation(self, key)
        with self._lock:
            self._running.add(computation)
        try:
            yield computation
        finally:
            with self._lock:
                self._running.discard(computation)

    def get_or_compute(
        self, key: str, compute: Callable[[], T], *, tags: Iterable[str] = (), ttl: float | None = None
    ) -> T:
        """The value of a key: the one that is kept, or else what compute() returns, which is kept."""
        found = self.get(key, _MISSING)
        if found is not _MISSING:
            return cast("T", found)
        with self.computing(key) as computation:
            value = compute()
            computation.store(value, tags=tags, ttl=ttl)
        return value

    def _store(
        self, computation: Computation, key: str, value: object, tags: frozenset[str], ttl: float | None
    ) -> bool:
        for tag in tags:
            _check_text("a tag", tag)
        _check_ttl(ttl)
        scopes = {_ALL, ("key", key), *(("tag", tag) for tag in tags)}
        seconds = self._ttl if ttl is None else ttl
        with self._lock:
            if computation not in self._running or scopes & computation.spoiled:
                return False
            self._entries[key] = _Entry(value, tags, math.inf if seconds is None else seconds)
            return True

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    # Invalidating

    def invalidate(self, key: str, *, wait: Wait = None, timeout: float | None = ACK_TIMEOUT) -> Publication:
        """Forget a key, in all processes.

        Returns at once, with those that could not be told.  With wait="acked" it returns when all have forgotten it,
        and fails closed: NotAcknowledged names the living ones that have not said so within `timeout` seconds.
        """
        return self._invalidate(("key", key), wait, timeout)

    def invalidate_tag(self, tag: str, *, wait: Wait = None, timeout: float | None = ACK_TIMEOUT) -> Publication:
        """Forget all entries with a tag, in all processes; see invalidate()."""
        return self._invalidate(("tag", tag), wait, timeout)

    def clear(self, *, wait: Wait = None, timeout: float | None = ACK_TIMEOUT) -> Publication:
        """Forget everything, in all processes; see invalidate()."""
        return self._invalidate(_ALL, wait, timeout)

    def _invalidate(self, scope: Scope, wait: Wait, timeout: float | None) -> Publication:
        _check_text(f"a {scope[0]}", scope[1])
        self._open()
        self._forget(scope)
        publication = self.pubsub.publish(self._topic, scope, wait=wait, timeout=timeout, include_self=False)
        if wait is not None and not publication.is_complete:
            reasons = "; ".join(map(str, publication.reasons()))
            raise NotAcknowledged(f"not all caches have forgotten {' '.join(scope)}: {reasons}", publication.failures)
        return publication

    def _on_event(self, event: Event) -> None:
        match event.data:
            case [str(kind), str(what)]:
                self._forget((kind, what))
            case _:
                self._forget(_ALL)  # of a version that is unknown here

    def _on_gap(self, gap: Gap) -> None:
        self._forget(_ALL)

    def _forget(self, scope: Scope) -> None:
        kind, what = scope
        with self._lock:
            for computation in self._running:
                computation.note(scope)
            if kind == "key":
                self._entries.pop(what, None)
            elif kind == "tag":
                for key in [key for key, entry in self._peek() if what in entry.tags]:
                    self._entries.pop(key, None)
            else:
                self._entries = self._new_entries()

    def _peek(self) -> Iterator[tuple[str, _Entry]]:
        """The entries; looking at them does not count as using them."""
        for key in tuple(self._entries):
            yield key, cachetools.Cache.__getitem__(self._entries, key)

    def after_fork(self) -> None:
        """In a forked child (Rule 4)."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()
            self._entries = self._new_entries()
            self._running = set()


def _check_ttl(ttl: object) -> None:
    if ttl is not None and not (isinstance(ttl, int | float) and ttl >= 0):
        raise ValueError(f"ttl={ttl!r}: it is a number of seconds, or None")


def _check_text(what: str, text: object) -> None:
    """All processes are to mean the same by it, and 7 is not "7"."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is text, not {type(text).__name__}")


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in tuple(_caches):
        cache.after_fork()


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def default_cache() -> Cache:
    """The cache of functions that name none: in the directory that PubSub() has by default."""
    return Cache()


@overload
def cached(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def cached(
    *,
    ttl: float | None = None,
    key: Callable[..., str] | None = None,
    tags: Callable[..., Iterable[str]] | None = None,
    cache: Cache | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def cached(
    function: Callable[P, T] | None = None,
    /,
    *,
    ttl: float | None = None,
    key: Callable[..., str] | None = None,
    tags: Callable[..., Iterable[str]] | None = None,
    cache: Cache | None = None,
) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep what a plain or an `async def` function returns, by its arguments, in all workers.

    A decorator, with arguments or without.

    `ttl`: seconds, by default the cache's.  `key(*arguments)` names what is kept; without it the arguments are to be
    text, numbers, bytes, None, or tuples of these.  `tags(*arguments)`: what else invalidates it.

    The function gets three more: `invalidate(*arguments, wait=None, timeout=5)`, `clear(wait=None, timeout=5)`, and
    `cache_key(*arguments)`.  Raises ValueError, TypeError for what no argument can be.
    """
    _check_ttl(ttl)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        check_function("what is cached", function)
        return _decorated(function, ttl, key or _plain_key, tags or _no_tags, cache)

    return decorate if function is None else decorate(function)


def _decorated(
    function: Callable[P, T],
    ttl: float | None,
    key: Callable[..., str],
    tags: Callable[..., Iterable[str]],
    cache: Cache | None,
) -> Callable[P, T]:
    name = f"{function.__module__}.{function.__qualname__}"

    def the_cache() -> Cache:
        return default_cache() if cache is None else cache

    def cache_key(*arguments: Any, **named: Any) -> str:
        return f"{name}:{key(*arguments, **named)}"

    def all_tags(*arguments: Any, **named: Any) -> set[str]:
        return {name, *tags(*arguments, **named)}

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        return the_cache().get_or_compute(
            cache_key(*arguments, **named),
            lambda: function(*arguments, **named),
            tags=all_tags(*arguments, **named),
            ttl=ttl,
        )

    @functools.wraps(function)
    async def call_async(*arguments: P.args, **named: P.kwargs) -> Any:
        mine, this = the_cache(), cache_key(*arguments, **named)
        found = mine.get(this, _MISSING)
        if found is not _MISSING:
            return found
        with mine.computing(this) as computation:
            value = await cast("Any", function(*arguments, **named))
            computation.store(value, tags=all_tags(*arguments, **named), ttl=ttl)
        return value

    def invalidate(
        *arguments: Any, wait: Wait = None, timeout: float | None = ACK_TIMEOUT, **named: Any
    ) -> Publication:
        return the_cache().invalidate(cache_key(*arguments, **named), wait=wait, timeout=timeout)

    def clear(*, wait: Wait = None, timeout: float | None = ACK_TIMEOUT) -> Publication:
        return the_cache().invalidate_tag(name, wait=wait, timeout=timeout)

    decorated: Any = call_async if inspect.iscoroutinefunction(function) else call
    decorated.invalidate, decorated.clear, decorated.cache_key = invalidate, clear, cache_key
    return cast("Callable[P, T]", decorated)


def _plain_key(*arguments: Any, **named: Any) -> str:
    """The arguments as text.  TypeError for what does not look alike in all processes."""
    for one in (*arguments, *named.values()):
        _check_plain(one)
    return ",".join((*(repr(one) for one in arguments), *(f"{name}={named[name]!r}" for name in sorted(named))))


def _check_plain(argument: Any) -> None:
    if isinstance(argument, tuple):
        for one in argument:
            _check_plain(one)
    elif type(argument) not in _PLAIN:
        kind = type(argument).__name__
        raise TypeError(f"an argument of type {kind} cannot name what is cached: pass key= to cached()")


def _no_tags(*arguments: Any, **named: Any) -> tuple[str, ...]:
    return ()
