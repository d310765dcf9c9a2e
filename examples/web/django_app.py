# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Django under gunicorn: a local-memory cache in each worker, whose deletions reach all of them.

gunicorn --config gunicorn.conf.py --workers 4 django_app:app
"""

from __future__ import annotations

import os

import django
import prices
from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    CACHES={
        "default": {
            "BACKEND": "msgd.integrations.django_cache.CoherentCache",
            "LOCATION": os.environ.get("MSGD_DIRECTORY") or "shop",
            "TIMEOUT": 3600,
        }
    },
)
django.setup()


def price(request: HttpRequest, product: int) -> HttpResponse:
    """Read a price through the cache, or change the data first and then have all workers forget it."""
    if request.method == "PUT":
        prices.write(product, int(request.body))
        cache.delete(f"price:{product}")
        text = "done"
    else:
        text = str(cache.get_or_set(f"price:{product}", lambda: prices.read(product)))
    return HttpResponse(text, headers={"X-Worker": str(os.getpid())})


urlpatterns = [path("prices/<int:product>", price)]
app = get_wsgi_application()
