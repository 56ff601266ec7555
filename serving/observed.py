"""Around every request: an id, a limit to its body, and its place in the metrics.

Plain ASGI: Starlette's middleware base class would cost a task and two queues a request.
"""

import re
import time
import uuid

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.logs import REQUESTS
from serving.metrics import Metrics

REQUEST_ID = "X-Request-ID"
ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Observed:
    """Gives each request an id (the client's where it is plain), counts it, and refuses large bodies."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, logs_requests: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._limit = max_body_bytes
        self._logs_requests = logs_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = accepted_id(Headers(scope=scope).get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        status, started = 500, time.perf_counter()

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, _limited(receive, self._limit), noted_send)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.request(_route(scope), status, seconds)
            if self._logs_requests:
                REQUESTS.info("request", extra={"fields": _line(scope, status, seconds)})


def accepted_id(offered: str | None) -> str:
    """The client's id where it is short and plain, else a new one."""
    return offered if offered and ACCEPTED_ID.fullmatch(offered) else uuid.uuid4().hex


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that ends in a 413 once the body is longer than `limit`, whatever its header claims."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(413, f"body: more than {limit:,} bytes; send less at once")
        return message

    return limited


def _line(scope: Scope, status: int, seconds: float) -> dict[str, object]:
    """What the log says of a request: neither its body, nor ids in its path, nor its key."""
    return {
        "request_id": scope["state"]["request_id"],
        "method": scope["method"],
        "route": _route(scope),
        "status": status,
        "milliseconds": round(seconds * 1_000, 3),
        "key": scope["state"].get("key"),
    }


def _route(scope: Scope) -> str:
    """The route's template, so that ids in paths make no labels of their own."""
    return getattr(scope.get("route"), "path", "other")
