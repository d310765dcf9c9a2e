# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Topics for the workers of a service: publish, subscribe, and know what was missed.  docs/pubsub.md has the whole."""

from msgd.pubsub.events import Event, Gap, GapReason, Publication
from msgd.pubsub.process import close_all, start_all
from msgd.pubsub.pubsub import PubSub, Subscription

__all__ = ["Event", "Gap", "GapReason", "PubSub", "Publication", "Subscription", "close_all", "start_all"]
