"""The service under load: `python -m benchmarks.load`, on a quiet machine; writes docs/load.md.

Three bundles, each in a process of its own beside this one: MovieLens-1M's trained SASRec, and made catalogues of
100,000 and 1,000,000 items (benchmarks/load_bundles.py). What is done is kept as JSON in `--work` and not done again.

    mixed      open loop (benchmarks/load_client.py) at a fixed rate: users who are known, some after a new event;
               events; users who are not known and send their history; a filter that lets 1 % of the items pass
    filtered   the same rate, every request by a known user with such a filter
    ceiling    wrk, as fast as it goes, known users; in turn with routes that do nothing (benchmarks/empty_route.py)
"""

import argparse
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.empty_route import LOOP, THREAD
from benchmarks.load_bundles import Made
from benchmarks.load_client import Answered, Due, ask_all, poisson, post, send_all
from benchmarks.load_page import PAGE, page
from benchmarks.running import Running, running
from pipelines.export import ExportConfig, export
from recsys.bundle import open_bundle
from recsys.errors import RecsysError
from recsys.runs import open_run
from recsys.steps import git_commit, write_text

RUN = Path("build/results/ml-1m/runs/sasrec-0f0a8e1238925924-1")
WARM, COLD, LONGEST, SEED = 500, 3_000, 1_000, 0
MIX = {"known user": 0.55, "event": 0.2, "new user": 0.15, "1 % filter": 0.1}
FILTERS, SHARE = 10, 0.01
TURNS, TURN_SECONDS, CONNECTIONS = 5, 6, 4
EMPTY = "from benchmarks.empty_route import serve; serve({port})"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bundle and how it is loaded; the 99th percentile is to stay below `most` milliseconds."""

    name: str
    made: int | None
    rate: float
    most: float
    cells: tuple[str, ...]


CASES = (
    Case(name="MovieLens-1M", made=None, rate=300, most=15, cells=("mixed", "ceiling")),
    Case(name="100,000 made items", made=100_000, rate=300, most=15, cells=("mixed", "ceiling")),
    Case(name="1,000,000 made items", made=1_000_000, rate=100, most=30, cells=("mixed", "filtered", "ceiling")),
)


@dataclass(frozen=True)
class Traffic:
    """Whose requests there are: item ids, oldest first, and filters of which each lets 1 % of the items pass."""

    known: dict[str, list[str]]
    new: Sequence[list[str]]
    filters: Sequence[dict[str, Any]]


def main() -> None:
    """Measures what is missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/load"), help="where bundles and records are kept")
    parser.add_argument("--run", type=Path, default=RUN, help="a trained run on MovieLens-1M")
    parser.add_argument("--seconds", type=float, default=60, help="of each open loop")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        missing = [cell for cell in case.cells if not record_path(arguments.work, case, cell).exists()]
        if missing:
            bundle = bundle_of(case, arguments.work, arguments.run)
            measure(case, missing, bundle, traffic_of(case, bundle, arguments.run), arguments.work, arguments.seconds)
    paths = [record_path(arguments.work, case, cell) for case in CASES for cell in case.cells]
    write_text(PAGE, page([json.loads(path.read_text(encoding="utf-8")) for path in paths]))
    print(PAGE.read_text(encoding="utf-8"))


def bundle_of(case: Case, work: Path, run: Path) -> Path:
    """Made where there is none."""
    folder = work / (f"made-{case.made}" if case.made else "ml-1m")
    if not folder.exists():
        Made(case.made).write(folder) if case.made else export(ExportConfig(run=run, out=folder))
    return folder


def traffic_of(case: Case, bundle: Path, run: Path) -> Traffic:
    """Random users of the log, or of the made catalogue."""
    catalog = open_bundle(bundle).catalog
    if case.made:
        rows = Made(case.made).histories(WARM + COLD)
    else:
        store = open_run(run).prepared().store
        users = np.random.default_rng(SEED).permutation(np.flatnonzero(store.lengths > 0))[: WARM + COLD]
        rows = [store.item_idx[store.offsets[user] : store.offsets[user + 1]] for user in users]
    ids = np.array(["", *catalog.item_ids.to_list()], dtype=object)
    histories = [ids[history[-LONGEST:]].tolist() for history in rows]
    known = {f"user-{number}": history for number, history in enumerate(histories[:WARM])}
    return Traffic(known, histories[WARM:], filters_of(ids[1:].astype(np.float64)))


def filters_of(numbers: np.ndarray) -> list[dict[str, Any]]:
    """Ranges of ids, which are numbers in all three catalogues; spread over them."""
    numbers, share = np.sort(numbers), int(len(numbers) * SHARE)
    starts = [place * (len(numbers) - share) // (FILTERS - 1) for place in range(FILTERS)]
    return [{"item_id": {"min": numbers[start], "max": numbers[start + share - 1]}} for start in starts]


def measure(case: Case, cells: Sequence[str], bundle: Path, traffic: Traffic, work: Path, seconds: float) -> None:
    """Each cell after the other on one service, whose users are known and asked for once before."""
    with serving(bundle, traffic) as service:
        for cell in cells:
            load, before, began = os.getloadavg()[0], service.cpu_seconds(), datetime.now(UTC)
            found = CELLS[cell](service, case, traffic, seconds)
            record = {"case": asdict(case), "cell": cell, "load": load, **found}
            record["cores"] = (service.cpu_seconds() - before) / (datetime.now(UTC) - began).total_seconds()
            record["resident"], record["own"] = service.resident_mib(), service.own_mib()
            record["index"] = open_bundle(bundle).manifest["counts"].get("index", {"kind": "flat", "recall": 1.0})
            record["date"], record["commit"] = f"{datetime.now(UTC):%Y-%m-%d}", (git_commit() or "unknown")[:12]
            write_text(record_path(work, case, cell), json.dumps(record, indent=2) + "\n")
            print(case.name, cell, json.dumps(found), flush=True)


@contextmanager
def serving(bundle: Path, traffic: Traffic) -> Iterator[Running]:
    """With its users' events stored and their encodings kept."""
    with (
        TemporaryDirectory() as folder,
        running(bundle, Path(folder) / "log", state=Path(folder) / "state.sqlite") as service,
    ):
        events = [
            post("/v1/events", json.dumps([{"user_id": user, "item_id": item} for item in history]).encode())
            for user, history in traffic.known.items()
        ]
        filters = [asked({"history": [], "filter": one}) for one in traffic.filters]
        expect(ask_all(service.port, [*events, *map(known_user, traffic.known), *filters]))
        yield service


def expect(answers: Sequence[tuple[int, bytes]]) -> None:
    """An error where one was refused."""
    if refused := [(status, body) for status, body in answers if status not in {200, 202}]:
        raise RecsysError(f"{len(refused)} requests were refused, the first with {refused[0]}")


def asked(body: dict[str, Any]) -> bytes:
    """A request for recommendations."""
    return post("/v1/recommend", json.dumps(body).encode())


def known_user(user_id: str) -> bytes:
    """The same, for one whose events are stored."""
    return asked({"user_id": user_id})


def mixed(service: Running, case: Case, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """All kinds by their shares."""
    random, new = Random(SEED), iter(traffic.new * 100)
    users, items = list(traffic.known), [item for history in traffic.known.values() for item in history]
    make: dict[str, Callable[[], bytes]] = {
        "known user": lambda: known_user(random.choice(users)),
        "event": lambda: post(
            "/v1/events", json.dumps({"user_id": random.choice(users), "item_id": random.choice(items)}).encode()
        ),
        "new user": lambda: asked({"history": next(new)}),
        "1 % filter": lambda: asked({"user_id": random.choice(users), "filter": random.choice(traffic.filters)}),
    }
    due = []
    for at in poisson(case.rate, seconds, random):
        (kind,) = random.choices(list(MIX), list(MIX.values()))
        due.append(Due(at, kind, make[kind]()))
    return summary(send_all(service.port, due))


def filtered(service: Running, case: Case, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """Known users with a filter; lists as long as the recall is measured at."""
    random, users = Random(SEED), list(traffic.known)
    due = [
        Due(
            at,
            "1 % filter",
            asked({"user_id": random.choice(users), "filter": random.choice(traffic.filters), "k": 100}),
        )
        for at in poisson(case.rate, seconds, random)
    ]
    return summary(send_all(service.port, due))


def summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Percentiles in milliseconds since each request was due, of all and of each kind; an error is no 200 or 202."""
    kinds = {"all": list(answered)}
    for answer in answered:
        kinds.setdefault(answer.kind, []).append(answer)
    encodings = Counter(json.loads(answer.body).get("encoding") for answer in answered if answer.status == 200)
    encodings.pop(None, None)
    late = np.quantile([answer.late for answer in answered], 0.99) * 1e3
    return {
        "kinds": {kind: percentiles(some) for kind, some in kinds.items()},
        "late": late,
        "encodings": {str(origin): count for origin, count in encodings.items()},
    }


def percentiles(answered: Sequence[Answered]) -> dict[str, float]:
    """Of one kind."""
    points = np.quantile([answer.seconds for answer in answered], (0.5, 0.95, 0.99, 0.999)) * 1e3
    errors = sum(answer.status not in {200, 202} for answer in answered)
    return dict(zip(("p50", "p95", "p99", "p99.9"), points.tolist(), strict=True)) | {
        "requests": len(answered),
        "errors": errors,
    }


def ceiling(service: Running, _: Case, traffic: Traffic, __: float) -> dict[str, Any]:
    """Requests a second of known users and of the two empty routes, turn by turn; medians, and those of the ratios."""
    with TemporaryDirectory() as folder, running(Path(), Path(folder) / "log", EMPTY) as empty:
        script = Path(folder) / "users.lua"
        turns = []
        for _turn in range(TURNS):
            before = service.cpu_seconds()
            ours = wrk(service, THREAD, script, traffic)
            cpu = (service.cpu_seconds() - before) / (ours * TURN_SECONDS)
            turns.append((ours, wrk(empty, THREAD, script, traffic), wrk(empty, LOOP, script, traffic), cpu))
    rates = np.array(turns)
    ours, thread, loop, cpu = np.median(rates, axis=0).tolist()
    return {
        "ours": ours,
        "empty": thread,
        "empty_loop": loop,
        "ratio": float(np.median(rates[:, 0] / rates[:, 1])),
        "ratio_loop": float(np.median(rates[:, 0] / rates[:, 2])),
        "cpu_milliseconds": cpu * 1e3,
    }


def wrk(service: Running, path: str, script: Path, traffic: Traffic) -> float:
    """Requests a second; an error where one was refused."""
    program = shutil.which("wrk")
    if program is None:
        raise RecsysError("wrk is not installed; `apt-get install wrk` brings it.")
    users = ", ".join(json.dumps(user) for user in traffic.known)
    write_text(script, WRK.replace("USERS", users).replace("PATH", path))
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{TURN_SECONDS}s", "-s", str(script), service.address]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if any("Non-2xx" in line or "Socket errors" in line for line in lines):
        raise RecsysError("\n".join(lines))
    return float(next(line.split()[1] for line in lines if line.startswith("Requests/sec")))


WRK = """
local users = {USERS}
local place = 0
request = function()
  place = place % #users + 1
  return wrk.format("POST", "PATH", {["Content-Type"] = "application/json"}, '{"user_id": "' .. users[place] .. '"}')
end
"""
CELLS = {"mixed": mixed, "filtered": filtered, "ceiling": ceiling}


def record_path(work: Path, case: Case, cell: str) -> Path:
    """Where a cell is kept."""
    return work / f"{case.made or 'ml-1m'}-{cell}.json"


if __name__ == "__main__":
    main()
