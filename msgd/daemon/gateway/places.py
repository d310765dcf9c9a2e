# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Who gets one of the gateway's places (msgd:max clients, msgd:max clients per user).

Rule 1.  One place in ROOT_SHARE is kept for the privileged: root and the daemon's own user.  They may have all the
others, too.

Rule 2.  Of the places that are left, one in SMALL_SHARE is kept for users with fewer than SMALL clients.  So a few
users who take all they can get leave room for many who want little.

Rule 3.  A client that waits for its connection process has its place already.

Rejected: a larger share for each user while nobody else is there, to be given back when others come.  A client cannot
be asked to leave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from msgd.config import Config

ROOT_SHARE = 16
SMALL_SHARE = 4
SMALL = 4


def is_privileged(uid: int) -> bool:
    """Whether the bounds on a user do not apply: root and the daemon's own user could end the daemon anyway."""
    return uid in (0, os.geteuid())


def why_no_place(config: Config, uid: int, taken: Mapping[int, int]) -> str | None:
    """Why this user gets no further place, or None if it does.  `taken` is the number of each user's places."""
    everybody, own, places = sum(taken.values()), taken.get(uid, 0), config.max_clients
    if places and everybody >= places:
        return f"{everybody} clients are connected (msgd:max clients)"
    if is_privileged(uid):
        return None
    if own >= config.max_clients_per_user:
        return f"{own} clients of uid {uid} are connected (msgd:max clients per user)"
    if not places:
        return None
    users = sum(number for one, number in taken.items() if not is_privileged(one))
    for_users = places - kept_for_root(places)
    if users >= for_users:
        return f"{users} clients are connected, and the other places are root's (msgd:max clients)"
    if own >= SMALL and users >= for_users - for_users // SMALL_SHARE:
        return f"the last places are kept for users with fewer than {SMALL} clients (msgd:max clients)"
    return None


def kept_for_root(places: int) -> int:
    """How many of so many places are kept for the privileged: at least one, unless there is no other."""
    return -(-places // ROOT_SHARE) if places > 1 else 0
