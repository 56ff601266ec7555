"""Constants for docs/sizing.md: `python -m benchmarks.sizing`, on a quiet machine; writes the page.

What an event, a user's kept encoding and an item take, and what a request computes: each measured on the service's own
parts, the rest is arithmetic on the page.
"""

import json
import os
import platform
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from redis import Redis

from benchmarks.load_bundles import Made
from benchmarks.load_client import ask_all, post
from benchmarks.redis_process import RedisProcess
from benchmarks.running import Running, running
from models.sasrec import SASRec, SASRecConfig
from recsys.export import export_encoder, export_step
from recsys.steps import git_commit, write_text
from serving.encoder import Encoder
from serving.encodings import ENTRY_BYTES, Encodings
from serving.redis_state import RedisState
from serving.state import Event, SqliteState, UserState

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sizing.md"
USERS, EVENTS, LENGTH = 500, 100, 200
CATALOGUES = (10_000, 100_000)
WIDTHS, LENGTHS, BLOCKS = (64, 128), (50, 200), 2
REQUESTS = 2_000


@dataclass(frozen=True)
class Constants:
    """Bytes, and milliseconds of computing in the service's process."""

    sqlite_event: float
    redis_event: float
    encodings: dict[tuple[int, int], float]
    item: float
    base: float
    cached: float
    full: float
    event: float


def main() -> None:
    """Measures and writes."""
    load = os.getloadavg()[0]
    with TemporaryDirectory() as name:
        folder = Path(name)
        small, large = (catalogue(folder, size) for size in CATALOGUES)
        item = (large.memory - small.memory) / (CATALOGUES[1] - CATALOGUES[0])
        constants = Constants(
            sqlite_event=sqlite_bytes(folder),
            redis_event=redis_bytes(folder),
            encodings={(width, length): encoding_bytes(width, length) for width in WIDTHS for length in LENGTHS},
            item=item,
            base=small.memory - item * CATALOGUES[0],
            cached=large.cached,
            full=large.full,
            event=large.event,
        )
    write_text(PAGE, page(constants, load))
    print(PAGE.read_text(encoding="utf-8"))


def stored(state: UserState) -> None:
    """Users with as many events, of ids as they are seen in shops."""
    for user in range(USERS):
        name = f"customer-{user:09}"
        state.append([
            Event(user_id=name, item_id=f"B{item:09}", timestamp=10**15 + item, event_id=f"{user}-{item}")
            for item in range(EVENTS)
        ])


def sqlite_bytes(folder: Path) -> float:
    """Of the file, an event."""
    path = folder / "state.sqlite"
    state = SqliteState(path, EVENTS)
    stored(state)
    state.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path.stat().st_size / (USERS * EVENTS)


def redis_bytes(folder: Path) -> float:
    """Of Redis's memory, an event."""
    redis = RedisProcess(folder)
    redis.start()
    try:
        with Redis(port=redis.port) as client:
            before = client.info("memory")["used_memory"]
            state = RedisState(redis.url, EVENTS)
            stored(state)
            state.close()
            return (client.info("memory")["used_memory"] - before) / (USERS * EVENTS)
    finally:
        redis.kill()


def encoding_bytes(width: int, length: int) -> float:
    """Of the service's cache, one history of so many events."""
    torch.manual_seed(0)
    config = SASRecConfig(num_items=100, max_len=length, embedding_dim=width, num_blocks=BLOCKS, positions="none")
    model = SASRec(config).eval()
    with TemporaryDirectory() as folder:
        paths = Path(folder) / "encoder.onnx", Path(folder) / "step.onnx"
        export_encoder(model, length, paths[0])
        export_step(model, length, paths[1])
        kept = Encodings(Encoder(*paths), 2**40, 3600)
        kept.of(np.arange(length, dtype=np.int64) % 100 + 1)
        return kept.size().bytes


@dataclass(frozen=True)
class Catalogue:
    """Of one service: bytes that it has allocated, and milliseconds of computing a request of each kind."""

    memory: float
    cached: float
    full: float
    event: float


def catalogue(folder: Path, size: int) -> Catalogue:
    """A made catalogue, asked a while; without any kept encoding in the memory that is counted."""
    bundle, made = folder / str(size), Made(size)
    made.write(bundle)
    histories = [[str(row) for row in history[-LENGTH:]] for history in made.histories(REQUESTS)]
    with running(bundle, folder / "log", state=folder / f"{size}.sqlite") as service:
        memory = service.own_mib() * 2**20
        asked = [post("/v1/recommend", json.dumps({"history": history}).encode()) for history in histories]
        events = [
            post("/v1/events", json.dumps({"user_id": f"user-{number % 100}", "item_id": "1"}).encode())
            for number in range(REQUESTS)
        ]
        full = cpu(service, lambda: ask_all(service.port, asked))
        cached = cpu(service, lambda: ask_all(service.port, asked[-500:] * (REQUESTS // 500)))
        event = cpu(service, lambda: ask_all(service.port, events))
    return Catalogue(memory, cached, full, event)


def cpu(service: Running, ask: Callable[[], object]) -> float:
    """Milliseconds of computing for each of `REQUESTS`."""
    before = service.cpu_seconds()
    ask()
    return (service.cpu_seconds() - before) / REQUESTS * 1e3


def page(found: Constants, load: float) -> str:
    """Markdown."""
    kept, per_core = found.encodings[WIDTHS[0], LENGTHS[1]], 1e3 / found.cached
    small, large = CATALOGUES
    scales = "\n".join(scale_row(found, users, kept) for users in (10**5, 10**6, 10**7, 10**8, 10**9))
    made = f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_commit() or 'unknown')[:12]}; {platform.machine()}"
    return f"""# Sizing

Written by `python -m benchmarks.sizing`; do not edit. How many machines a service needs, by formulas over what was
measured.

| letter | is | measured |
|---|---|---|
| U, E | users whose events are stored, events kept of each (at most `RECSYS_HISTORY_LIMIT`) | yours |
| A | users who ask within `RECSYS_ENCODING_CACHE_SECONDS` (an hour) | yours |
| N, D, L, B | items, width, window, blocks of the model | yours |
| R, C | requests a second at the peak, computing a request | below |
| S | bytes a stored event, ids of 10 and 18 letters | SQLite {found.sqlite_event:.0f}, Redis {found.redis_event:.0f} |

## Memory of one process

    base + N x bytes an item + the caches' budgets

- base: {found.base / 2**20:.0f} MiB. An item of width 64 takes {found.item:,.0f} bytes of allocated memory
  ({small:,} beside {large:,} items): 4 x D for vectors of length one, 4 x D for the encoder's table, the rest names and
  tables. The exact index (4 x D on disk), and a faster one beside it, are mapped from files and shared by the processes
  of a machine.
- a kept encoding of a causal model: 2 x B x min(L, events) x D x 4 bytes, + 8 x events + {ENTRY_BYTES}:

| D | events | formula, KiB | measured, KiB | users in 256 MiB | in 8 GiB |
|---|---|---|---|---|---|
{encoding_rows(found)}

  So `RECSYS_ENCODING_CACHE_BYTES` = A x that, shared out over the processes if a balancer keeps users on theirs (by a
  hash of the user id); where it does not, each process comes to hold the same users. Users beyond the budget are
  encoded anew: slower, not wrong.
- while a bundle is swapped, up to three are loaded: keep room for 3 x N x bytes an item.

## Cores

    cores = R x C / 1000 / 0.5        at half load, for short queues

| request | computing, ms | a second and core, fully loaded |
|---|---|---|
{cpu_row("history known to the cache", found.cached)}
{cpu_row("history encoded anew (median of 36 events)", found.full)}
{cpu_row("event, SQLite", found.event)}

{large:,} made items, exact search, D = 64, lists of 10. Exact search grows with N x D; what large catalogues cost is in
[load.md](load.md).

## State

    bytes = U x E x S

Redis holds it in memory, with appendonly on disk as well; SQLite on one machine's disk. Events that never expire are
the largest part of any large service: choose `RECSYS_HISTORY_LIMIT` near the model's window, and
`RECSYS_FORGET_SECONDS`.

## By arithmetic

E = 100 events a user, an hour's active users A = U / 50, each asking 10 times in that hour, three times that at the
peak, every second request of a kept encoding, L = 200, D = 64 (the cache holds all active users); no such service was
run here.

| users | state, Redis | active users' encodings | requests/s at the peak | cores | processes of 1 core, 8 GiB |
|---|---|---|---|---|---|
{scales}

From some 10 million users on, one Redis is not enough: users are split by a hash over several groups, each of some
processes and a Redis of its own, and the proxy before them sends a user to the same group always. Groups share nothing
but the bundle, so a billion users are a hundred groups of ten million. Redis Cluster is not served
([state.md](decisions/state.md)).

{made}, {os.cpu_count()} cores, no accelerator; load average before {load:.1f}. A core fully loaded by known histories
answers {per_core:,.0f} requests a second.
"""


def encoding_rows(found: Constants) -> str:
    """One a width and length."""
    return "\n".join(
        f"| {width} | {length} | {formula(width, length) / 1024:.0f} | {measured / 1024:.0f} "
        f"| {2**28 / measured:,.0f} | {2**33 / measured:,.0f} |"
        for (width, length), measured in found.encodings.items()
    )


def formula(width: int, length: int) -> int:
    """Bytes of a kept encoding."""
    return 2 * BLOCKS * length * width * 4 + 8 * length + ENTRY_BYTES


def cpu_row(name: str, milliseconds: float) -> str:
    """Of one kind of request."""
    return f"| {name} | {milliseconds:.2f} | {1e3 / milliseconds:,.0f} |"


def scale_row(found: Constants, users: int, kept: float) -> str:
    """What so many users need."""
    rate = users / 50 * 10 / 3600 * 3
    cores = rate * (found.cached + found.full) / 2 / 1e3 / 0.5
    caches, state = users / 50 * kept, users * 100 * found.redis_event
    processes = max(1, cores, caches / (6 * 2**30))
    return (
        f"| {users:,} | {size(state)} | {size(caches)} | {rate:,.0f} | {max(cores, 0.1):,.1f} "
        f"| {int(np.ceil(processes)):,} |"
    )


def size(count: float) -> str:
    """Bytes in a unit that can be read."""
    for unit in ("MiB", "GiB", "TiB"):
        count /= 1024 if unit != "MiB" else 2**20
        if count < 1024:
            break
    return f"{count:,.1f} {unit}"


if __name__ == "__main__":
    main()
