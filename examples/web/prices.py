# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The shop's data for the examples of this directory: prices in SQLite, in the file that PRICES names."""

from __future__ import annotations

import contextlib
import os
import sqlite3


def _database() -> sqlite3.Connection:
    database = sqlite3.connect(os.environ.get("PRICES", "/tmp/prices.db"), isolation_level=None, timeout=30)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE IF NOT EXISTS prices (product INTEGER PRIMARY KEY, price INTEGER)")
    return database


def read(product: int) -> int:
    """The price of a product; 0 if it has none."""
    with contextlib.closing(_database()) as database:
        row = database.execute("SELECT price FROM prices WHERE product = ?", (product,)).fetchone()
    return int(row[0]) if row else 0


def write(product: int, price: int) -> None:
    """Set the price of a product."""
    with contextlib.closing(_database()) as database:
        database.execute("INSERT OR REPLACE INTO prices VALUES (?, ?)", (product, price))
