# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the servers under test run: the example that EXAMPLE names, and an auditor beside it in each worker.

The auditor subscribes to everything in the example's directory, and says on request what this worker has heard.  A gap
speaks of what was published before it: whatever is published later must be heard.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from msgd.pubsub import Event, Gap, PubSub

pubsub = PubSub(check_interval=0.2)
heard: set[int] = set()
gaps: list[str] = []
since: list[float] = []


def note(event: Event) -> None:
    """The example has published: the number of the product is the last thing of it."""
    data = event.data[-1] if isinstance(event.data, list) else str(event.data)
    heard.add(int(data.rpartition(":")[2]))


def answer(event: Event) -> None:
    """Say what this worker knows."""
    pubsub.publish("audited", {"pid": os.getpid(), "heard": sorted(heard), "gaps": gaps, "since": since[0]})


def note_gap(gap: Gap) -> None:
    """Something may have been missed until now."""
    since[:] = [time.monotonic()]
    gaps.append(gap.reason.name)


pubsub.on_gap(note_gap)
pubsub.subscribe("msgd.cache/*", note)
for topic in ("prices", "django.cache"):
    pubsub.subscribe(topic, note)
pubsub.subscribe("audit", answer)
since[:] = [time.monotonic()]

app: Any = importlib.import_module(os.environ["EXAMPLE"]).app
