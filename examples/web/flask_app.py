# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Flask under gunicorn: each worker keeps prices in memory, and all forget one when it changes.

gunicorn --config gunicorn.conf.py --workers 4 flask_app:app
"""

from __future__ import annotations

import os

import prices
from flask import Flask, Response, request

from msgd.cache import cached

app = Flask(__name__)


@cached(ttl=3600)
def price(product: int) -> int:
    """Read a price."""
    return prices.read(product)


@app.get("/prices/<int:product>")
def get_price(product: int) -> str:
    """The price, from this worker's memory if it is there."""
    return str(price(product))


@app.put("/prices/<int:product>")
def put_price(product: int) -> str:
    """Change the data first, then have all workers forget it."""
    prices.write(product, int(request.get_data()))
    price.invalidate(product)
    return "done"


@app.after_request
def name_worker(response: Response) -> Response:
    """Show which worker has answered."""
    response.headers["X-Worker"] = str(os.getpid())
    return response
