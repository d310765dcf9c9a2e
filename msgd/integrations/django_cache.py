# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Django's local-memory cache, coherent: what one worker changes, deletes or clears, the others forget.

    CACHES = {"default": {"BACKEND": "msgd.integrations.django_cache.CoherentCache", "LOCATION": "shop"}}

Rule 1.  A LOCATION that begins with a slash is the directory where the workers meet; another one names a private one.
Rule 2.  Each worker has its own store, so a value is read without a system call.  set(), incr(), delete() and clear()
    reach the others, which forget the key; they never get the value.  add(), get_or_set() and touch() only concern this
    worker: they fill the cache.
Rule 3.  A gap clears the store.
Rule 4.  What get_or_set() has computed is kept only if the key was not forgotten meanwhile: so change the data first,
    then delete() the key.  set() cannot know when its value was read.
Rule 5.  With OPTIONS = {"TELL_SET": False} set() only fills, too.  That is for what fills by set(), such as Django's
    cache_page(): otherwise each worker that fills would empty the others.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterator
from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.locmem import LocMemCache

from msgd.pubsub import Event, Gap, PubSub

_MISSING: Final = object()


class _Store:
    """What all backend objects of one LOCATION in this process share: Django makes one object for each thread."""

    def __init__(self, location: str) -> None:
        self.cache = LocMemCache(f"msgd {location}", {})
        self.pubsub = PubSub(location) if location.startswith("/") else PubSub(name=location or None)
        self._running: list[set[str | None]] = []
        """For each computation that is running, what has been forgotten since it began; None: everything."""
        self.pubsub.subscribe("django.cache", self._on_event, on_gap=self._on_gap)

    def _on_event(self, event: Event) -> None:
        match event.data:
            case [str(key)]:
                self.forget(key)
            case _:
                self.forget(None)

    def _on_gap(self, gap: Gap) -> None:
        self.forget(None)

    def forget(self, key: str | None) -> bool:
        """Forget a key here, or everything.  Returns whether the key was there."""
        with self.cache._lock:
            for spoiled in self._running:
                spoiled.add(key)
            if key is not None:
                return bool(self.cache._delete(key))
            self.cache._cache.clear()
            self.cache._expire_info.clear()
            return True

    @contextlib.contextmanager
    def computing(self) -> Iterator[set[str | None]]:
        """Something is computed inside; what is forgotten meanwhile."""
        spoiled: set[str | None] = set()
        with self.cache._lock:
            self._running.append(spoiled)
        try:
            yield spoiled
        finally:
            with self.cache._lock:
                self._running = [one for one in self._running if one is not spoiled]


_stores: dict[str, _Store] = {}
_lock = threading.Lock()


def _store(location: str) -> _Store:
    with _lock:
        if location not in _stores:
            _stores[location] = _Store(location)
        return _stores[location]


class CoherentCache(LocMemCache):  # type: ignore[misc]  # django has no types
    """The backend.  Its calls raise what msgd.pubsub.PubSub raises where it cannot be opened."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        options = dict(params.get("OPTIONS", {}))
        self._tells_set = bool(options.pop("TELL_SET", True))
        super().__init__(f"msgd {location}", {**params, "OPTIONS": options})
        self._location = location

    def _opened(self) -> _Store:
        """The store, which hears of what others forget from here on."""
        store = _store(self._location)
        store.pubsub.start()
        return store

    def _forget(self, key: str | None) -> bool:
        """Forget a key, or everything, in all workers."""
        store = self._opened()
        was_there = store.forget(key)
        store.pubsub.publish("django.cache", [] if key is None else [key], include_self=False)
        return was_there

    def _tell(self, key: str) -> None:
        self._opened().pubsub.publish("django.cache", [key], include_self=False)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """As LocMemCache.get."""
        self._opened()
        return super().get(key, default, version)

    def has_key(self, key: str, version: int | None = None) -> bool:
        """As LocMemCache.has_key."""
        self._opened()
        return bool(super().has_key(key, version))

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """As LocMemCache.add, in this worker."""
        self._opened()
        return bool(super().add(key, value, timeout, version))

    def get_or_set(self, key: str, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """The value of a key; where it is missing, `default`, called if it can be, which is kept (Rule 4)."""
        found = self.get(key, _MISSING, version)
        if found is not _MISSING:
            return found
        made = self.make_and_validate_key(key, version=version)
        with self._opened().computing() as spoiled:
            value = default() if callable(default) else default
            pickled = pickle.dumps(value, self.pickle_protocol)
            with self._lock:
                if not spoiled & {made, None}:
                    self._set(made, pickled, timeout)
        return value

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """As LocMemCache.set; the others forget the key."""
        self._opened()
        super().set(key, value, timeout, version)
        if self._tells_set:
            self._tell(self.make_and_validate_key(key, version=version))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """As LocMemCache.incr; the others forget the key."""
        self._opened()
        value: int = super().incr(key, delta, version)
        self._tell(self.make_and_validate_key(key, version=version))
        return value

    def delete(self, key: str, version: int | None = None) -> bool:
        """Forget a key, in all workers.  Returns whether this one had it."""
        return self._forget(self.make_and_validate_key(key, version=version))

    def clear(self) -> None:
        """Forget everything, in all workers."""
        self._forget(None)
