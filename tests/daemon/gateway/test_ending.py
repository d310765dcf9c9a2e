# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The last moments of a connection process."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.process import serve
from msgd.daemon.logs import STDERR, Log
from msgd.daemon.settings import Settings
from tests.support.daemons import Place
from tests.support.harness import Channel, Child


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_signal_does_not_kill_it_when_it_has_served(place: Place, signum: signal.Signals) -> None:
    """It has no handlers any more, and the main process would log that a signal has killed it."""

    def serve_to_the_end(channel: Channel) -> None:
        signal.signal(signum, signal.SIG_DFL)
        ours, theirs = socket.socketpair()
        theirs.close()
        with Log(STDERR) as log:
            config = place.config
            settings = Settings(config, lambda: config, log, lambda _: STDERR)
            channel.send(serve(ours, Peer.of(ours), settings, config.client_memory, None, None, lambda: None))
        os.kill(os.getpid(), signum)

    with Child(serve_to_the_end) as child:
        assert child.hear() == 0
        assert child.wait() == 0
