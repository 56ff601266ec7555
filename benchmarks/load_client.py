"""An open-loop client: requests leave when they are due, whether or not those before were answered.

Latency is counted from the moment that a request was due, so a service that stops for a second is charged for all that
should have been asked in it (what closed loops leave out is called coordinated omission).

    due       |     |     |     |          at a fixed rate, gaps random as those of many independent callers (Poisson)
    sent      |     |         | |          late where this process or the network was: also counted
    answered     |      |       |  |
"""

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

import uvloop

LATEST = 30.0
"""Seconds after which an answer counts as none."""


@dataclass(frozen=True)
class Due:
    """One request: when, of which kind, and the bytes to send."""

    at: float
    kind: str
    content: bytes


@dataclass(frozen=True)
class Answered:
    """What became of it: status (0: none came), seconds since it was due, and how much of them it was sent late."""

    kind: str
    status: int
    seconds: float
    late: float
    body: bytes


class _Connection(asyncio.Protocol):
    """Kept alive; one request at a time."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether the service has not closed it: it does, some seconds after the last request."""
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by the loop; answers have a Content-Length, or, as 204, no body."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        _, status, *_ = head.split(None, 2)
        said = head.lower().partition(b"content-length:")[2]
        length = int(said.split(None, 1)[0]) if said else 0
        if len(body) >= length and self.waiting is not None and not self.waiting.done():
            self.received = bytearray()
            self.waiting.set_result((int(status), bytes(body)))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's own name
        """Called by the loop."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result((0, b""))

    async def ask(self, content: bytes) -> tuple[int, bytes]:
        """Status and body."""
        assert self.transport is not None
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(content)
        return await self.waiting


class _Client:
    """As many connections as requests are open at once."""

    def __init__(self, port: int) -> None:
        self._port, self._idle = port, list[_Connection]()

    async def ask(self, content: bytes) -> tuple[int, bytes]:
        """Status 0 where no answer came in time."""
        self._idle = [kept for kept in self._idle if kept.is_open]
        try:
            connection = self._idle.pop() if self._idle else await self._connected()
            status, body = await asyncio.wait_for(connection.ask(content), LATEST)
        except (OSError, TimeoutError):
            return 0, b""
        if status:
            self._idle.append(connection)
        return status, body

    async def _connected(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return connection

    def close(self) -> None:
        """All connections."""
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()


def poisson(rate: float, seconds: float, random: Random) -> list[float]:
    """Moments from 0 to `seconds`, `rate` of them a second in the mean."""
    moments, now = list[float](), random.expovariate(rate)
    while now < seconds:
        moments.append(now)
        now += random.expovariate(rate)
    return moments


def send_all(port: int, due: Sequence[Due]) -> list[Answered]:
    """Sends each when it is due; all answers, in the order of the requests."""
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(_send_all(port, due))
    finally:
        gc.enable()


async def _send_all(port: int, due: Sequence[Due]) -> list[Answered]:
    loop, client = asyncio.get_running_loop(), _Client(port)
    began = loop.time() + 0.1

    async def one(request: Due) -> Answered:
        late = loop.time() - began - request.at
        status, body = await client.ask(request.content)
        return Answered(request.kind, status, loop.time() - began - request.at, late, body)

    tasks = []
    for request in due:
        if (wait := began + request.at - loop.time()) > 0:
            await asyncio.sleep(wait)
        tasks.append(loop.create_task(one(request)))
    answered = await asyncio.gather(*tasks)
    client.close()
    return answered


def ask_all(port: int, contents: Sequence[bytes], at_once: int = 2) -> list[tuple[int, bytes]]:
    """The same without a clock, a few at a time: to prepare."""

    async def asked() -> list[tuple[int, bytes]]:
        client, places = _Client(port), asyncio.Semaphore(at_once)

        async def one(content: bytes) -> tuple[int, bytes]:
            async with places:
                return await client.ask(content)

        answers = await asyncio.gather(*(one(content) for content in contents))
        client.close()
        return answers

    return uvloop.run(asked())


def post(path: str, body: bytes) -> bytes:
    """The bytes of a request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
