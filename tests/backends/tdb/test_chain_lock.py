# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lock of one record's chain: a single lock with Debian's libtdb; otherwise the lock over the whole file."""

from __future__ import annotations

from msgd import Messaging
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.chain_lock import ChainLocks
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, send_many


class Elsewhere:
    """A tdb whose object does not hold the handle where the module's object does."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_handle_is_found_in_debians_module(messaging: Messaging) -> None:
    backend = messaging._endpoint.backend
    assert isinstance(backend, TdbBackend)
    assert backend._file.chains.are_single


def test_without_the_handle_the_whole_file_is_locked(messaging: Messaging, start: StartPeer) -> None:
    backend = messaging._endpoint.backend
    assert isinstance(backend, TdbBackend)
    backend._file.chains = ChainLocks(Elsewhere(backend._file.tdb))
    assert not backend._file.chains.are_single
    inbox = backend._inbox
    inbox._chain = backend._file.chains.of(inbox._key)
    assert inbox._chain.acquire == backend._file.tdb.lock_all
    seen: list[bytes] = []
    messaging.register(TEXT, lambda message: seen.append(message.data))
    texts = [b"%d" % number for number in range(2000)]
    start().call(send_many, messaging.server_id, texts)
    while len(seen) < len(texts):
        messaging.dispatch()
    assert seen == texts
