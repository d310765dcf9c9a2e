# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What `Config(...)` accepts by keyword: each parameter's Python type, or text in smb.conf's syntax.

A test compares the names with the table in parameters.py, which says what each of them means.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypedDict

Path = str | os.PathLike[str]
Size = int | str
"""Bytes, or text such as `16M`."""
Number = int | str
Seconds = float | str
Switch = bool | str
Users = str | Iterable[str | int]
"""User or group names, or their numbers."""


class ConfigValues(TypedDict, total=False):
    """The keywords of Config.  Each may be left out; docs/parameters.md has the meanings and the defaults."""

    messaging_type: str
    lock_directory: Path
    private_dir: Path
    state_directory: Path
    pid_directory: Path
    clustering: Switch
    ctdbd_socket: Path
    ctdb_timeout: Number
    log_level: Number
    log_file: Path
    use_mmap: Switch
    tdb_mutexes: Switch
    samba3: Switch
    socket_directory: Path
    max_message_size: Size
    send_queue_messages: Number
    send_queue_bytes: Size
    close_timeout: Seconds
    clean_up_interval: Seconds
    reassembly_timeout: Seconds
    reassembly_messages: Number
    reassembly_bytes: Size
    connection_cache: Number
    max_connections: Number
    half_open_connections: Number
    receive_buffer_bytes: Size
    gather_bytes: Size
    trusted_users: Users
    monitor: Switch
    listen: str
    allow_users: Users
    allow_groups: Users
    allow_types: str | Iterable[str]
    max_clients: Number
    max_clients_per_user: Number
    client_line_bytes: Size
    client_buffer_bytes: Size
    client_stall_timeout: Seconds
    client_idle_timeout: Seconds
    client_memory: Size
    user_memory: Size
    metrics: str
