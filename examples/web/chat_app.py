# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Django Channels under uvicorn: a chat whose WebSockets are in several workers.

uvicorn --workers 4 chat_app:app
"""

from __future__ import annotations

import os

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    CHANNEL_LAYERS={"default": {"BACKEND": "msgd.integrations.channels.MsgdChannelLayer"}},
)
django.setup()
urlpatterns: list[object] = []


class Chat(AsyncWebsocketConsumer):
    """One WebSocket.  It is told first which worker it has."""

    async def connect(self) -> None:
        """Join the chat."""
        await self.channel_layer.group_add("chat", self.channel_name)
        await self.accept()
        await self.send(str(os.getpid()))

    async def disconnect(self, code: int) -> None:
        """Leave it."""
        await self.channel_layer.group_discard("chat", self.channel_name)

    async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        """Tell everybody, in all workers."""
        await self.channel_layer.group_send("chat", {"type": "chat.message", "text": text_data})

    async def chat_message(self, event: dict[str, str]) -> None:
        """Somebody has said something."""
        await self.send(event["text"])


app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": URLRouter([path("chat", Chat.as_asgi())])})
