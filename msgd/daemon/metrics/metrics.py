# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Metrics for Prometheus: the counters of all processes of the daemon, served over HTTP.

The numbers are those of this msgd and of the connection processes that it has started, the ended ones included.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, NamedTuple

from msgd.config import Config
from msgd.config.kinds import UNIX
from msgd.daemon.listener import Listener
from msgd.daemon.loop import Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metered import (
    BLOCKED,
    BUCKET,
    BUCKETS,
    BYTES,
    DROPS,
    GAUGES,
    HANDLER_ERRORS,
    MESSAGES,
    NANOSECONDS,
    QUEUED_BYTES,
    QUEUED_MESSAGES,
)
from msgd.daemon.metrics.nodes import node_families
from msgd.daemon.metrics.scrapes import Answer, Scrapes
from msgd.errors import BackendUnavailable, MsgdError
from msgd.messaging import backend_class
from msgd.presence import RendezvousDirectory

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, Metric

logger = logging.getLogger("msgd.daemon")

PARAMETER = "msgd:metrics"

_SOCKET_MODE = 0o600
"""Who messages whom, and how much, is not for every user to read."""


class Gauge(NamedTuple):
    """A current value: its metric's name without `msgd_`, its help text, the number."""

    name: str
    text: str
    number: int


class Metrics:
    """The counters of the processes, served at `config.metrics`.

    `gauges` is called at each scrape.  Raises BackendUnavailable without prometheus_client, and what Listener raises.
    """

    def __init__(
        self,
        config: Config,
        loop: Loop,
        let_go: Callable[[], None],
        gauges: Callable[[], Sequence[Gauge]],
    ) -> None:
        _prometheus_client()  # fail now rather than at the first scrape
        self._config = config
        self._gauges = gauges
        self.own = Counters()
        """The counters of the main process."""
        self._others: dict[int, Counters] = {}
        self._ended: Counter[str] = Counter()
        self._scrapes = Scrapes(loop, _listen(config.metrics), let_go, self._prepare)

    def started(self, pid: int, counters: Counters) -> None:
        """A child has started with these counters."""
        self._others[pid] = counters

    def ended(self, pid: int) -> None:
        """A child has ended; its counts are kept."""
        counters = self._others.pop(pid, None)
        if counters is not None:
            self._ended.update({name: number for name, number in counters.items() if name not in GAUGES})
            counters.close()

    def reap(self) -> None:
        """Reap the processes of scrapes that have ended."""
        self._scrapes.reap()

    def close(self) -> None:
        """Stop serving."""
        self._scrapes.close()

    def abandon(self) -> None:
        """In a forked child: close the copies."""
        self._scrapes.abandon()

    def _prepare(self) -> Answer:
        gauges = self._gauges()  # in the other process the directory would have to be opened again
        return lambda client, note_request: self._answer(client, gauges, note_request)

    def _answer(self, client: socket.socket, gauges: Sequence[Gauge], note_request: Callable[[], None]) -> None:
        totals = Counter(self._ended)
        for counters in (self.own, *self._others.values()):
            totals.update(dict(counters.items()))

        def collector() -> _Collector:
            note_request()
            everything = (*_queues(self._config, totals), *gauges)
            return _Collector(totals, everything, self._config)

        with contextlib.suppress(ConnectionError):  # the scraper has gone
            client.setblocking(True)
            _Scrape(collector, client)


class _Collector:
    """The metrics, as prometheus_client asks for them."""

    def __init__(self, totals: Counter[str], gauges: Sequence[Gauge], config: Config) -> None:
        self._totals = totals
        self._gauges = gauges
        self._config = config
        self._core = importlib.import_module("prometheus_client.core")

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        core, totals = self._core, self._totals
        yield self._by_class("msgd_messages", "Messages sent, and those that came in and had a handler", MESSAGES)
        yield self._by_class("msgd_message_bytes", "The data of these messages", BYTES)
        drops = core.CounterMetricFamily("msgd_drops", "Messages given up", labels=["reason"])
        for reason, number in _beginning(totals, DROPS):
            drops.add_metric([reason], number)
        yield drops
        errors = "Handlers that have raised an exception"
        yield core.CounterMetricFamily("msgd_handler_errors", errors, value=totals[HANDLER_ERRORS])
        yield core.HistogramMetricFamily(
            "msgd_handler_seconds",
            "The time that handlers took",
            buckets=list(_cumulative(totals)),
            sum_value=totals[NANOSECONDS] / 1e9,
        )
        for name, text, number in self._gauges:
            yield core.GaugeMetricFamily(f"msgd_{name}", text, value=number)
        if self._config.clustering:
            yield from node_families(self._config, self._totals)

    def _by_class(self, name: str, text: str, prefix: str) -> CounterMetricFamily:
        family: CounterMetricFamily = self._core.CounterMetricFamily(
            name, text, labels=["direction", "type_class", "backend"]
        )
        for labels, number in _beginning(self._totals, prefix):
            direction, kind = labels.split(" ", 1)
            family.add_metric([direction, kind, self._config.messaging_type], number)
        return family


class _Scrape(BaseHTTPRequestHandler):
    """One HTTP request and its answer."""

    def __init__(self, collector: Callable[[], _Collector], client: socket.socket) -> None:
        self._collector = collector
        super().__init__(client, ("", 0), None)  # type: ignore[arg-type]  # it asks nothing of a server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404)
            return
        client = _prometheus_client()
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(self._collector())
        text: bytes = client.generate_latest(registry)
        self.send_response(200)
        self.send_header("Content-Type", client.CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug("a scrape: %s", format % arguments)


def _prometheus_client() -> Any:
    try:
        return importlib.import_module("prometheus_client")
    except ImportError as error:
        raise BackendUnavailable(
            f"{PARAMETER} needs the Python module prometheus_client ({error}):"
            " install python3-prometheus-client, or leave the parameter empty"
        ) from None


def _listen(address: str) -> Listener:
    if address.startswith(UNIX):
        return Listener.bind(PARAMETER, address.removeprefix(UNIX), _SOCKET_MODE)
    host, _, port = address.rpartition(":")
    return Listener.bind_tcp(PARAMETER, host.strip("[]"), int(port))


def _queues(config: Config, totals: Counter[str]) -> Iterator[Gauge]:
    """The queued messages: those in the memory of our processes, or, where the queues are shared, of all processes.

    Only for a process that is not present in the directory, as the one that answers a scrape.
    """
    try:
        with RendezvousDirectory(config) as directory:
            by_pid = backend_class(config.messaging_type).depths(config, directory)
    except MsgdError as error:
        logger.error("the queues are left out of a scrape: %s", error)
        return
    depths = [depth for depth in by_pid.values() if depth]
    waiting, destinations = (sum(depths), len(depths)) if depths else (totals[QUEUED_MESSAGES], totals[BLOCKED])
    whose = "those of msgd's processes (messaging type tdb: of all processes of the directory)"
    yield Gauge("queued_messages", f"Messages that wait for their receivers, {whose}", waiting)
    yield Gauge("blocked_destinations", f"Receivers that messages wait for, {whose}", destinations)
    text = "Bytes of messages that wait for their receivers (messaging type tdb: not known, 0)"
    yield Gauge("queued_bytes", text, totals[QUEUED_BYTES])


def _beginning(totals: Counter[str], prefix: str) -> Iterator[tuple[str, int]]:
    """The counters whose names have this prefix, by the rest of the name."""
    for name, number in sorted(totals.items()):
        if name.startswith(prefix):
            yield name.removeprefix(prefix), number


def _cumulative(totals: Counter[str]) -> Iterator[tuple[str, int]]:
    """The buckets of the histogram, cumulative as Prometheus wants them."""
    number = 0
    for index, bound in enumerate((*BUCKETS, float("inf"))):
        number += totals[f"{BUCKET}{index}"]
        yield "+Inf" if bound == float("inf") else str(bound), number
