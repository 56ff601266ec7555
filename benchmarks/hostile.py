"""Requests of somebody who means harm, or whose client is broken: `python -m benchmarks.hostile BUNDLE`.

By a seed, to a service process, over plain sockets, since HTTP libraries refuse to send much of it: huge and deep
bodies, unicode, numbers out of range, wrong types and encodings, markup and SQL in ids, broken chunks, bytes that are
no HTTP. An answer of 5xx, none where there had to be one, markup that comes back unescaped, or a service that is not
well afterwards, ends the run with 1.
"""

import argparse
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from benchmarks.running import running

SECONDS = 30
MARKUP = "<script>alert(1)</script>"
STRINGS = (
    MARKUP,
    "\"><img src=x onerror='alert(1)'>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}${7*7}#{7*7}",
    "'; DROP TABLE events; --",
    "1' OR '1'='1",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "${jndi:ldap://127.0.0.1/a}",
    "$(sleep 9)`sleep 9`",
    "%s%s%n%x",
    "\x00",
    "a\x00b",
    "\u202etxt.exe",
    "\ufeff",
    "e\u0301" * 50,
    "Z" + "\u0334\u0335" * 200,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\uffff\ufffe",
    "\uff53\uff43\uff52\uff49\uff50\uff54",
    "\u0130" * 40,
    "NULL",
    "",
    " ",
    "/" * 300,
    "a" * 513,
)
SURROGATES = ('"\\ud800"', '"\\udfff\\ud800"', '"a\\udc00"', '"\\ud83d"')
NUMBERS = (
    *("-1", "0", "-0", "1.5", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1e-400", "9" * 400, "9" * 5_000),
    *("-9223372036854775809", "9223372036854775808", "4294967296", "253402300800000000", "1e3", "true", "null", '"1"'),
)
TYPES = (
    *("application/json", "text/plain", "application/xml", "application/x-www-form-urlencoded", "image/png", ""),
    *("multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/json;charset=nonsense"),
)
ENDPOINTS = ("/v1/recommend", "/v1/recommend/batch", "/v1/events", "/v1/items")
PATHS = ("/v1/items/", "/v1/similar/", "/v1/users/", "/static/", "/", "/health/")
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "BREW")
FIELDS = (
    *("history", "user_id", "k", "exclude_seen", "exclude", "reasoning_steps", "rank", "filter", "boosts", "diversity"),
    *("after", "why", "fields", "requests", "item_id", "title", "categories", "timestamp", "event_id", "__proto__"),
)


@dataclass(frozen=True)
class Attack:
    """Bytes for the socket. `answered`: HTTP enough that an answer must come."""

    name: str
    content: bytes
    answered: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came back; `status` is 0 where the connection was closed without an answer."""

    attack: Attack
    status: int
    head: bytes
    body: bytes

    @property
    def complaint(self) -> str | None:
        """What the service did wrong, if anything."""
        if self.status >= 500:
            return f"status {self.status}"
        if not self.status and self.attack.answered:
            return "no answer"
        page = b"content-type: text/html" in self.head.lower()
        if page and b"<script" in self.body.replace(b'<script src="', b""):
            return "markup came back unescaped"
        return "a header came back that was sent" if b"\r\nset-cookie:" in self.head.lower() else None


def main() -> None:
    """Starts the service and attacks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with running(arguments.bundle, log, state=Path(folder) / "state.sqlite") as service:
            before, began = service.own_mib(), time.perf_counter()
            outcomes = [sent(service.port, attack) for attack in attacks(arguments.seed, arguments.requests)]
            seconds, grown = time.perf_counter() - began, service.own_mib() - before
            well = sent(service.port, Attack("well", request("GET", "/health/ready"))).status == 200
        traceback = "Traceback" in log.read_text(encoding="utf-8")
    for (name, status), count in sorted(Counter((done.attack.name, done.status) for done in outcomes).items()):
        print(f"{name:12} {status or 'closed':>6} {count:6,}")
    wrong = [done for done in outcomes if done.complaint]
    for done in wrong[:20]:
        print(f"{done.complaint}: {done.attack.name} {done.attack.content[:300]!r} -> {done.body[:200]!r}")
    print(
        f"{len(outcomes):,} requests in {seconds:.0f} s, {len(wrong)} answered wrongly; memory grew by {grown:.0f} MiB"
    )
    if wrong or traceback or not well:
        sys.exit(1)


def attacks(seed: int, count: int, *, huge: bool = True) -> Iterator[Attack]:
    """The same for the same seed, all kinds in turn; the largest bodies only where `huge`."""
    random = Random(seed)
    kinds = [*KINDS, *((a_huge_body,) if huge else ())]
    for number in range(count):
        yield kinds[number % len(kinds)](random)


def sent(port: int, attack: Attack) -> Outcome:
    """Over a connection of its own; reads until the service has said all."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        try:
            connection.sendall(attack.content)
            if not attack.answered:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused while it was still being sent; what was said of it may be read
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except (ConnectionResetError, TimeoutError):
            pass
    head, _, body = bytes(received).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0
    return Outcome(attack, status, head, body)


def request(method: str, target: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """HTTP/1.1, closed after the answer."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def a_post(random: Random, body: bytes, name: str) -> Attack:
    """To any endpoint that reads a body."""
    return Attack(name, request("POST", random.choice(ENDPOINTS), body, [("Content-Type", "application/json")]))


def a_string(random: Random) -> str:
    """As JSON."""
    if random.random() < 0.2:
        return random.choice(SURROGATES)
    return json.dumps(random.choice(STRINGS), ensure_ascii=random.random() < 0.5)


def a_value(random: Random, depth: int = 0) -> str:
    """Any JSON, or nearly."""
    kind = random.randrange(4 if depth < 3 else 2)
    if kind == 0:
        return a_string(random)
    if kind == 1:
        return random.choice(NUMBERS)
    parts = [a_value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 2:
        return f"[{', '.join(parts)}]"
    names = [json.dumps(random.choice(FIELDS)) if random.random() < 0.5 else a_string(random) for _ in parts]
    return "{" + ", ".join(f"{name}: {value}" for name, value in zip(names, parts, strict=True)) + "}"


def wrong_types(random: Random) -> Attack:
    """A request whose fields hold anything."""
    fields = random.sample(FIELDS, random.randrange(1, 5))
    content = ", ".join(f"{json.dumps(name)}: {a_value(random)}" for name in fields)
    return a_post(random, f"{{{content}}}".encode(), "types")


def nearly_right(random: Random) -> Attack:
    """A request that is right but for one value."""
    valid: dict[str, dict[str, Any]] = {
        "/v1/recommend": {"history": ["a"], "k": 3, "filter": {}, "boosts": [], "why": 1, "fields": [], "after": None},
        "/v1/events": {"user_id": "u", "item_id": "i", "timestamp": 1_700_000_000_000_000, "event_id": "e"},
        "/v1/items": {"item_id": "new", "title": "t", "categories": ["c"], "fields": {"brand": "b"}},
    }
    path = random.choice(list(valid))
    parts = {name: json.dumps(value) for name, value in valid[path].items()}
    parts[random.choice(list(parts))] = a_value(random)
    content = ", ".join(f"{json.dumps(name)}: {value}" for name, value in parts.items())
    return Attack("nearly", request("POST", path, f"{{{content}}}".encode(), [("Content-Type", "application/json")]))


def markup_in_ids(random: Random) -> Attack:
    """Stored as well, so that pages will show it."""
    names = [random.choice(STRINGS) for _ in range(4)]
    body = random.choice((
        [{"user_id": names[0], "item_id": names[1], "event_id": names[2]}],
        {"history": names, "user_id": names[0], "exclude": names},
        {"item_id": names[0], "title": names[1], "categories": [names[2]], "fields": {names[3]: names[0]}},
        {"item_id": names[0], "title": "t", "fields": {random.choice(("\ud800", "a\udfff")): names[1]}},
        {"history": [], "filter": {names[0]: {"any": [names[1]]}}},
        {"history": [], "diversity": {"quota": {"field": names[2], "most": 1}}, "fields": [names[3]]},
    ))
    return a_post(random, json.dumps(body).encode(), "markup")


def a_page(random: Random) -> Attack:
    """What people see, with anything in its address."""
    query = "&".join(f"{random.choice(('q', 'user', 'item', 'k'))}={an_address(random)}" for _ in range(4))
    return Attack("page", request("GET", f"/?{query}"))


def an_address(random: Random) -> str:
    """Part of one: escaped, escaped twice, or bytes that are no text."""
    text = quote(random.choice(STRINGS), safe="")
    return random.choice((text, quote(text), "%ff%fe", "%ed%a0%80", "%00", "%", "%zz", text * 20))


def a_path(random: Random) -> Attack:
    """Any method."""
    method, path = random.choice(METHODS), random.choice(PATHS)
    return Attack("path", request(method, path + an_address(random)), answered=method in METHODS[:7])


def deep(random: Random) -> Attack:
    """Brackets in brackets."""
    levels = random.choice((50, 900, 1_100, 20_000, 200_000))
    opened, closed = random.choice((("[", "]"), ('{"history":', "}"), ('{"filter":{"a":', "}}")))
    whole = random.random() < 0.5
    return a_post(random, (opened * levels + (("1" + closed * levels) if whole else "")).encode(), "deep")


def large(random: Random) -> Attack:
    """Lists and texts up to the limits and beyond."""
    count = random.choice((200, 2_000, 10_001))
    return a_post(
        random,
        random.choice((
            json.dumps({"history": ["x"] * count, "exclude": ["y"] * count}),
            json.dumps([{"user_id": "u", "item_id": str(number)} for number in range(count)]),
            json.dumps({"requests": [{"history": []}] * count}),
            json.dumps({"history": [], "filter": {str(number): {"known": True} for number in range(count)}}),
            json.dumps({"user_id": "u" * count, "history": []}),
            json.dumps({str(number): number for number in range(count)}),
        )).encode(),
        "large",
    )


def a_huge_body(random: Random) -> Attack:
    """A million items, or more bytes than are read."""
    body = random.choice((
        b'{"history": [' + b",".join([b'"a"'] * 1_000_000) + b"]}",
        b'{"history": ["' + b"a" * 8_000_000 + b'"]}',
        b" " * 6_000_000,
    ))
    return a_post(random, body, "huge")


def no_json(random: Random) -> Attack:
    """Bytes, with any type and encoding."""
    body = random.choice((
        random.randbytes(random.randrange(1, 300)),
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        '{"history": []}'.encode("utf-16"),
        b'{"history": [] /* */}',
        b"a=b&c=d",
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--",
        b"",
    ))
    headers = [("Content-Type", random.choice(TYPES))]
    headers += [("Content-Encoding", random.choice(("gzip", "br", "nonsense")))] if random.random() < 0.3 else []
    return Attack("no json", request("POST", random.choice(ENDPOINTS), body, headers))


def strange_headers(random: Random) -> Attack:
    """Ids, keys and lengths that lie."""
    text = random.choice(STRINGS).replace("\r\n", " ").replace("\x00", "?")
    headers = random.choice((
        ("X-Request-ID", text),
        ("Authorization", f"Bearer {text}"),
        ("Authorization", "Basic ////"),
        ("Cookie", text * 20),
        ("X-Forwarded-For", text),
        ("Accept-Encoding", "\xff"),
        ("Expect", "100-continue"),
        ("Range", "bytes=0-,-1,9999999999999-"),
        ("If-None-Match", text),
    ))
    return Attack("headers", request("GET", random.choice(("/", "/version", "/static/style.css")), b"", [headers]))


def broken(random: Random) -> Attack:
    """What is no HTTP, or ends too early: an answer may come, or the connection may go."""
    head = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunked = head + "Transfer-Encoding: chunked\r\n"
    content = random.choice((
        chunked + "\r\n5\r\nhello",
        chunked + "\r\nzz\r\nhello\r\n0\r\n\r\n",
        chunked + "\r\nffffffffffffffff\r\nhello\r\n",
        chunked + "\r\n-1\r\n\r\n",
        chunked + "Content-Length: 3\r\n\r\n0\r\n\r\n",
        head + "Content-Length: 100\r\n\r\n{}",
        head + "Content-Length: -1\r\n\r\n{}",
        head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        head + "X: " + "a" * 100_000 + "\r\n\r\n",
        head + "a: b\r\n" * 5_000 + "\r\n",
        "GET " + "/" + "a" * 70_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        "\r\n" * 50,
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ))
    return Attack("broken", content.encode("latin-1"), answered=False)


KINDS: tuple[Callable[[Random], Attack], ...] = (
    wrong_types,
    nearly_right,
    markup_in_ids,
    a_page,
    a_path,
    deep,
    large,
    no_json,
    strange_headers,
    broken,
)

if __name__ == "__main__":
    main()
