# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Hooks for gunicorn.conf.py, so that every worker hears what is published, preloaded or not.

    from msgd.integrations.gunicorn import post_fork, worker_exit

Rule 1.  A worker opens its PubSub objects when its application is loaded, not at the fork: until then it may be root
    (`--user`), and gevent has not patched it yet.
Rule 2.  gunicorn also calls worker_exit() in the master, for a worker that is gone already.  There it does
    nothing.
"""

from __future__ import annotations

import os
from typing import Any

from msgd.pubsub import close_all, start_all


def post_fork(server: Any, worker: Any) -> None:
    """In a new worker: have it open what the master had open, as soon as its application is loaded."""
    go_on = worker.cfg.post_worker_init

    def post_worker_init(worker: Any) -> None:
        start_all()
        go_on(worker)

    worker.cfg.set("post_worker_init", post_worker_init)


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker that ends: send what is queued, and leave."""
    if worker.pid == os.getpid():
        close_all()
