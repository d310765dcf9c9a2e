"""The lock of one record's chain: single on what Debian ships, and where it cannot be had the one over all."""

from __future__ import annotations

from msgd import Messaging
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.chain_lock import ChainLocks
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, send_many


class Elsewhere:
    """A tdb whose object has something else where the module's has the handle."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_debians_module_leads_to_its_handle(messaging: Messaging) -> None:
    backend = messaging._endpoint.backend
    assert isinstance(backend, TdbBackend)
    assert backend._file.chains.are_single


def test_without_handle_it_is_the_lock_over_all(messaging: Messaging, start: StartPeer) -> None:
    backend = messaging._endpoint.backend
    assert isinstance(backend, TdbBackend)
    backend._file.chains = ChainLocks(Elsewhere(backend._tdb))
    assert not backend._file.chains.are_single
    backend._chain = backend._file.chains.of(backend._key)
    assert backend._chain.acquire == backend._tdb.lock_all
    seen: list[bytes] = []
    messaging.register(TEXT, lambda message: seen.append(message.data))
    texts = [b"%d" % number for number in range(2000)]
    start().call(send_many, messaging.server_id, texts)
    while len(seen) < len(texts):
        messaging.dispatch()
    assert seen == texts
