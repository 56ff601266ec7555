"""Before any route: who calls, whether the key allows it, how often, and for how long.

Plain ASGI, by path and before routing: what is not named in `RULES` needs the scope `admin`, so a new route is closed
until somebody has thought about it (a test names those that are not).
"""

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import api_keys
from serving.api_keys import ApiKey, KeyRing
from serving.problems import problem
from serving.rates import Rates

READING = ("GET", "HEAD")
ANY = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PAGES = ("/", "/dashboard", "/dashboard/figures")
"""What people open in browsers, which can send a key as a password only."""
UNHURRIED = ("/v1/models/reload",)
"""What may take longer than a request: a bundle is loaded."""


@dataclass(frozen=True)
class Rule:
    """What a path needs; one that ends in / stands for all below it. `scope` None: open to everybody."""

    path: str
    scope: api_keys.Scope | None
    methods: tuple[str, ...] = ANY

    def covers(self, method: str, path: str) -> bool:
        """Whether the rule is about this request."""
        below = self.path.endswith("/") and len(self.path) > 1 and path.startswith(self.path)
        return method in self.methods and (path == self.path or below)


RULES = (
    Rule("/health/", None),
    Rule("/static/", None),
    Rule("/openapi.json", None),
    Rule("/version", "recommend"),
    Rule("/", "recommend"),
    Rule("/v1/recommend", "recommend"),
    Rule("/v1/recommend/", "recommend"),
    Rule("/v1/similar/", "recommend"),
    Rule("/v1/models", "recommend", READING),
    Rule("/v1/models/", "admin"),
    Rule("/v1/variants", "admin"),
    Rule("/v1/variants/", "admin"),
    Rule("/v1/items/", "recommend", READING),
    Rule("/v1/items", "items"),
    Rule("/v1/items/", "items"),
    Rule("/v1/events", "events"),
    Rule("/v1/users/", "users"),
    Rule("/metrics", "admin"),
    Rule("/dashboard", "admin"),
    Rule("/dashboard/", "admin"),
)


def rule_of(method: str, path: str) -> Rule | None:
    """The first that covers the request."""
    return next((rule for rule in RULES if rule.covers(method, path)), None)


def needed(method: str, path: str, query: str) -> set[api_keys.Scope]:
    """Scopes that a key must have; none for what is open to everybody."""
    rule = rule_of(method, path)
    if rule is None:
        return {"admin"}
    if rule.scope is None:
        return set()
    return {rule.scope, "users"} if path in PAGES and "user" in parse_qs(query) else {rule.scope}


class Guard:
    """Lets a request through that bears a key with the scopes it needs and comes within its rate.

    Without `keys` nobody is asked for one, and rates are those of addresses; without `rates` there are none.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None, rates: Rates | None) -> None:
        self._app, self._keys, self._rates = app, keys, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scopes = needed(scope["method"], scope["path"], scope["query_string"].decode("latin-1"))
        if not scopes:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        key = self._key(scope)
        scope["state"]["key"] = None if key is None else key.name
        if self._rates is not None and (seconds := await self._rates.seconds_to_wait(_caller(key, scope))):
            refusal = problem(request, 429, f"too many requests; the next may come in {seconds} s")
            refusal.headers["Retry-After"] = str(seconds)
        elif self._keys is None or (key is not None and scopes <= set(key.scopes)):
            await self._app(scope, receive, send)
            return
        elif key is None:
            refusal = problem(request, 401, "no valid API key; send one as Authorization: Bearer KEY")
            refusal.headers["WWW-Authenticate"] = _how_to_ask(scope)
        else:
            missing = ", ".join(sorted(scopes - set(key.scopes)))
            refusal = problem(request, 403, f"key {key.name!r} lacks the scope {missing}")
        await refusal(scope, receive, send)

    def _key(self, scope: Scope) -> ApiKey | None:
        """The first valid one of those that came along."""
        if self._keys is None:
            return None
        found = (self._keys.find(secret) for secret in _offered(scope))
        return next((key for key in found if key is not None), None)


class Timeout:
    """Answers 503 in place of what is not begun within `seconds`; threads that work on it end by themselves.

    Those that are `UNHURRIED` have all the time they need.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNHURRIED:
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds):
                await self._app(scope, receive, noted_send)
        except TimeoutError:
            if begun:
                raise
            refusal = problem(Request(scope), 503, f"no answer within {self._seconds:g} s; try again later")
            refusal.headers["Retry-After"] = "1"
            await refusal(scope, receive, send)


def _offered(scope: Scope) -> Iterator[str]:
    kind, _, value = Headers(scope=scope).get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield value.strip()
    elif kind.lower() == "basic" and scope["path"] in PAGES and scope["method"] in READING:
        # On pages only: browsers add it to requests that other sites make.
        try:
            yield base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no text
            return


def _how_to_ask(scope: Scope) -> str:
    return 'Basic realm="recsys: any name, the API key as password"' if scope["path"] in PAGES else "Bearer"


def _caller(key: ApiKey | None, scope: Scope) -> str:
    if key is not None:
        return f"key:{key.name}"
    return f"address:{scope['client'][0] if scope['client'] else 'unknown'}"
