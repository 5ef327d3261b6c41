"""The viewer's web server: one page, and one socket that sends each looker the newest of everything.

A socket carries text (the state as JSON, twice a second) and binary messages: one byte with the length of a topic's
name, the name, and a JPEG. A slow looker gets fewer pictures and never an old one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from pathlib import Path

from aiohttp import WSMsgType, web

from dino_perception.ros.viewer.listener import Listener

PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1")
STATE_S, PICTURES_S = 0.5, 0.04


def application(listener: Listener, token: str = "") -> web.Application:
    """The web application. With a `token`, page and socket are for those whose address carries `?token=...`; without,
    for a browser that names this machine (another site's page, led here under a name of its own, is refused)."""
    app = web.Application(middlewares=[_guard(token)])
    lookers: set[web.WebSocketResponse] = set()

    async def page(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        return web.Response(text=PAGE.read_text(), content_type="text/html", headers=headers)

    async def socket(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(heartbeat=10)
        await ws.prepare(request)
        lookers.add(ws)
        listener.watched = True
        sender = asyncio.create_task(_send(ws, listener))
        try:
            async for message in ws:
                if message.type == WSMsgType.ERROR:
                    break
        finally:
            sender.cancel()
            lookers.discard(ws)
            listener.watched = bool(lookers)
        return ws

    async def leave(app: web.Application) -> None:
        for ws in set(lookers):
            await ws.close()

    app.router.add_get("/", page)
    app.router.add_get("/look", socket)
    app.on_shutdown.append(leave)
    return app


POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)


def _guard(token: str):
    @web.middleware
    async def guard(request: web.Request, handler):
        if token:
            if not hmac.compare_digest(request.query.get("token", "").encode(), token.encode()):
                raise web.HTTPForbidden(text="This page needs the token that `dino-perception view` printed.\n")
        elif request.url.host not in LOCAL:
            raise web.HTTPForbidden(text=f"This page is only for {', '.join(LOCAL)}.\n")
        if request.path == "/look":
            origin = request.headers.get("Origin", "")
            if origin and origin.partition("://")[2] != request.host:
                raise web.HTTPForbidden(text="A page of another site may not look here.\n")
        return await handler(request)

    return guard


async def _send(ws: web.WebSocketResponse, listener: Listener) -> None:
    sent: dict[str, int] = {}
    last_state = 0.0
    while not ws.closed:
        if time.monotonic() - last_state >= STATE_S:
            last_state = time.monotonic()
            await ws.send_str(json.dumps(state(listener)))
        for topic, channel in list(listener.channels.items()):
            number, jpeg = channel.number, channel.jpeg
            if number > sent.get(topic, 0):
                name = topic.encode()[:255]
                await ws.send_bytes(bytes([len(name)]) + name + jpeg)
                sent[topic] = number
        await asyncio.sleep(PICTURES_S)


def state(listener: Listener) -> dict:
    """What the page shows beside the pictures."""
    return {
        "channels": [
            {"topic": topic, "hz": round(channel.rate_hz(), 1), "problem": channel.problem}
            for topic, channel in list(listener.channels.items())
        ],
        "status": [{"name": name, **status} for name, status in sorted(listener.status.items())],
    }
