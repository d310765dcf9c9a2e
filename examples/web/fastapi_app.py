# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""FastAPI under uvicorn, hypercorn, granian or gunicorn: each worker keeps prices in memory, and hears of changes.

uvicorn --workers 4 fastapi_app:app
"""

from __future__ import annotations

import os

import prices
from fastapi import FastAPI, Request, Response

from msgd.integrations.asgi import Lifespan
from msgd.pubsub import Event, Gap

topics = Lifespan()
app = FastAPI(lifespan=topics)
known: dict[int, int] = {}


def forget_all(gap: Gap) -> None:
    """Something may have been missed: everything here may be stale."""
    known.clear()


@topics.subscribe("prices", on_gap=forget_all)
def forget(event: Event) -> None:
    """The price of a product has changed."""
    known.pop(event.data, None)


@app.get("/prices/{product}")
async def get_price(product: int) -> Response:
    """The price, from this worker's memory if it is there."""
    if product not in known:
        known[product] = prices.read(product)
    return Response(str(known[product]), headers={"X-Worker": str(os.getpid())})


@app.put("/prices/{product}")
async def put_price(product: int, request: Request) -> Response:
    """Change the data first, then tell all workers, this one too."""
    prices.write(product, int(await request.body()))
    await topics.publish("prices", product)
    return Response("done", headers={"X-Worker": str(os.getpid())})
