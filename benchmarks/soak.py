"""A long time under everything at once: `python -m benchmarks.soak BUNDLE BUNDLE --minutes 30`; writes docs/soak.md.

    every 20 s    the link that the service follows points to the other bundle, and /v1/models/reload is asked
    all the time  recommendations by user and by history, events, items deleted and restored; open loop
                  (benchmarks/load_client.py), state in Redis
    every 5 min   Redis is killed (SIGKILL) and, some seconds later, started again

A recommendation, an item or a swap that is not answered as it should be has failed. An event may be refused by 503
while Redis is away: that is on purpose, and its sender sends it again. In the end every event that was acknowledged
must be there. Ends with 1 where anything failed or was lost, or where memory went on growing.
"""

import argparse
import json
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import cpu_count, getloadavg
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.load_client import Answered, Due, ask_all, poisson, post, send_all
from benchmarks.redis_process import RedisProcess
from benchmarks.running import Running, running
from recsys.bundle import open_bundle
from recsys.errors import RecsysError
from recsys.steps import git_commit, write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "soak.md"
PERIOD, RESTARTS, AWAY, USERS, SEED = 20.0, 300.0, 4.0, 300, 0
MIX = {"by user": 0.45, "by history": 0.25, "event": 0.25, "item": 0.05}
EXPECTED = {"by user": {200}, "by history": {200}, "event": {202, 503}, "item": {201, 204}}
GROWTH = 1.05
"""Of the last quarter's memory over the second's, at most."""


@dataclass
class Soaked:
    """What has happened so far."""

    outcomes: Counter[tuple[str, int]] = field(default_factory=Counter)
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    refused: list[Due] = field(default_factory=list)
    swaps: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    items: int = 0
    without_state: int = 0
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def take(self, due: Sequence[Due], answered: Sequence[Answered]) -> None:
        """The answers of one period; refused events are sent again in the next."""
        self.refused = []
        for request, answer in zip(due, answered, strict=True):
            self.outcomes[answer.kind, answer.status] += 1
            self.milliseconds.append(answer.seconds * 1e3)
            if answer.kind != "event":
                self.without_state += b'"state":"unavailable"' in answer.body
                continue
            event = json.loads(request.content.partition(b"\r\n\r\n")[2])
            if answer.status == 202:
                self.acknowledged.setdefault(event["user_id"], set()).add(event["event_id"])
            else:
                self.refused.append(request)

    @property
    def failed(self) -> int:
        """Requests that were not answered as they should be, and swaps that were not made."""
        wrong = sum(count for (kind, status), count in self.outcomes.items() if status not in EXPECTED[kind])
        return wrong + sum(count for outcome, count in self.swaps.items() if outcome != "swapped")

    @property
    def growth(self) -> float:
        """Allocated memory of the last quarter over that of the second."""
        own = np.array([own for _, own, _ in self.memory])
        quarters = np.array_split(own, 4)
        return float(np.median(quarters[3]) / np.median(quarters[1]))


def main() -> None:
    """Soaks and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs=2)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=60, help="requests a second")
    parser.add_argument("--restarts", type=float, default=RESTARTS, help="seconds between kills of Redis")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    load = getloadavg()[0]
    soaked, lost, traceback = soak(arguments.bundles, arguments.minutes * 60, arguments.rate, arguments.restarts)
    write_text(arguments.page, page(soaked, lost, arguments.bundles, arguments.rate, load))
    print(arguments.page.read_text(encoding="utf-8"))
    if soaked.failed or lost or traceback or soaked.growth > GROWTH:
        sys.exit(1)


def soak(bundles: Sequence[Path], seconds: float, rate: float, restarts: float) -> tuple[Soaked, int, bool]:
    """What happened, how many acknowledged events are gone, and whether the log holds a traceback."""
    soaked, random = Soaked(), Random(SEED)
    items = sorted(set.intersection(*(set(open_bundle(bundle).catalog.item_ids) for bundle in bundles)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        redis, link = RedisProcess(folder), folder / "bundle"
        link.symlink_to(bundles[0].resolve())
        redis.start()
        try:
            settings = {"state": redis.url, "new_items": folder / "items.sqlite", "watch_seconds": 0}
            with running(link, folder / "log", **settings) as service:
                began, killed = time.monotonic(), time.monotonic()
                while (now := time.monotonic()) - began < seconds:
                    kill = now - killed >= restarts
                    killed = now if kill else killed
                    target = bundles[(sum(soaked.swaps.values()) + 1) % 2]
                    _period(
                        service, soaked, _requests(soaked, random, items, rate), link, target, redis if kill else None
                    )
                    soaked.memory.append((now - began, service.own_mib(), service.resident_mib()))
                lost = _lost(service, soaked)
            return soaked, lost, "Traceback" in (folder / "log").read_text(encoding="utf-8")
        finally:
            redis.kill()


def _period(
    service: Running, soaked: Soaked, due: list[Due], link: Path, target: Path, redis: RedisProcess | None
) -> None:
    """The requests of one period, and in the midst of them a swap, and Redis killed where it is given."""
    answered: list[Answered] = []
    traffic = threading.Thread(target=lambda: answered.extend(send_all(service.port, due)))
    traffic.start()
    time.sleep(PERIOD / 4)
    soaked.swaps[_swap(service, link, target)] += 1
    if redis is not None:
        redis.kill()
        time.sleep(AWAY)
        redis.start()
        soaked.restarts += 1
    traffic.join()
    soaked.take(due, answered)


def _swap(service: Running, link: Path, target: Path) -> str:
    """`swapped`, or why not."""
    new = link.with_name("next")
    new.symlink_to(target.resolve())
    new.replace(link)
    ((status, body),) = ask_all(service.port, [post("/v1/models/reload", b"{}")])
    if status == 404:
        raise RecsysError("the service has no /v1/models/reload: this version cannot change its bundle while it runs.")
    return "swapped" if status == 200 and json.loads(body)["swapped"] else f"{status}: {body[:200]!r}"


def _requests(soaked: Soaked, random: Random, items: Sequence[str], rate: float) -> list[Due]:
    """Those of one period; events that were refused in the last one come first, and once more."""
    due = [Due(0.1 * number, "event", again.content) for number, again in enumerate(soaked.refused[:100])]
    for at in poisson(rate, PERIOD, random):
        (kind,) = random.choices(list(MIX), list(MIX.values()))
        user = f"user-{random.randrange(USERS)}"
        if kind == "item":
            due += _changed_item(items[soaked.items % len(items)], at)
            soaked.items += 1
            continue
        body: dict[str, Any] = {
            "by user": {"user_id": user, "k": 10},
            "by history": {"history": random.sample(items, min(len(items), 20)), "exclude_seen": True},
            "event": {"user_id": user, "item_id": random.choice(items), "event_id": f"{random.getrandbits(64):x}"},
        }[kind]
        path = "/v1/events" if kind == "event" else "/v1/recommend"
        due.append(Due(at, kind, post(path, json.dumps(body).encode())))
    return sorted(due, key=lambda request: request.at)


def _changed_item(item_id: str, at: float) -> list[Due]:
    """Deleted, and restored a while later; one item after the other, for only deleted ones can be restored."""
    head = f"DELETE /v1/items/{item_id} HTTP/1.1\r\nHost: x\r\n\r\n"
    restored = post("/v1/items", json.dumps({"item_id": item_id}).encode())
    return [Due(at, "item", head.encode()), Due(at + 1, "item", restored)]


def _lost(service: Running, soaked: Soaked) -> int:
    """Acknowledged events that are not there in the end."""
    users = list(soaked.acknowledged)
    asked = [f"GET /v1/users/{user} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for user in users]
    lost = 0
    for user, (status, body) in zip(users, ask_all(service.port, asked), strict=True):
        if status != 200:
            raise RecsysError(f"the events of {user} cannot be read: {status} {body[:200]!r}")
        lost += len(soaked.acknowledged[user] - {event["event_id"] for event in json.loads(body)["events"]})
    return lost


def page(soaked: Soaked, lost: int, bundles: Sequence[Path], rate: float, load: float) -> str:
    """Markdown."""
    acknowledged = sum(len(events) for events in soaked.acknowledged.values())
    p50, p99 = np.quantile(soaked.milliseconds, (0.5, 0.99))
    seconds = soaked.memory[-1][0] + PERIOD
    every = max(1, len(soaked.memory) // 12)
    return "\n".join([
        "# Soak",
        "",
        "Written by `python -m benchmarks.soak`; do not edit. One service process with its state in Redis, "
        f"{seconds / 60:.0f} minutes at {rate:g} requests a second (open loop): recommendations by user and by "
        "history, events, items deleted and restored; the bundle swapped every 20 s; Redis killed and started again.",
        "",
        "| what | count |",
        "|---|---|",
        f"| bundles | {', '.join(open_bundle(bundle).card.name for bundle in bundles)} "
        f"({open_bundle(bundles[0]).catalog.num_items:,} items) |",
        f"| requests | {sum(soaked.outcomes.values()):,} |",
        *(
            f"| {kind}, {status or 'no answer'} | {count:,} |"
            for (kind, status), count in sorted(soaked.outcomes.items())
        ),
        *(f"| swaps: {outcome} | {count} |" for outcome, count in sorted(soaked.swaps.items())),
        f"| Redis killed and restarted | {soaked.restarts} |",
        f"| answers without the user's events meanwhile | {soaked.without_state:,} |",
        f"| **failed** (503 for an event while Redis is away is on purpose) | **{soaked.failed}** |",
        f"| events acknowledged | {acknowledged:,} |",
        f"| **of them lost** | **{lost}** |",
        f"| memory of the last quarter over the second's (at most {GROWTH}) | {soaked.growth:.3f} |",
        f"| milliseconds since due, median and 99th percentile | {p50:.2f}, {p99:.2f} |",
        "",
        "## Memory",
        "",
        "| minute | allocated MiB | resident MiB, mapped files included |",
        "|---|---|---|",
        *(f"| {at / 60:.1f} | {own:.0f} | {all_of_it:.0f} |" for at, own, all_of_it in soaked.memory[::every]),
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_commit() or 'unknown')[:12]}; {platform.machine()}, "
        f"{cpu_count()} cores, no accelerator; load average before {load:.1f}.",
        "",
    ])


if __name__ == "__main__":
    main()
