"""docs/load.md from the records of `benchmarks.load`."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "load.md"
KINDS = ("all", "known user", "new user", "1 % filter", "event")
HEAD = """# The service under load

Written by `python -m benchmarks.load`; do not edit. One service process (its own settings: SQLite state, 4 threads) and
the load generator share the machine. Latencies are milliseconds from the moment a request was **due** at a fixed rate
with random gaps (Poisson), so what waits behind a slow answer is charged too; *late* is the 99th percentile of how much
of them the generator itself was late to send.

*Known users*: 500 whose events are stored and whose encodings are kept; {kept} went on by a step, for an event had
come. *New users* send their whole history. *1 % filter*: a known user, and a range of ids that 1 % of the items lie in.
MovieLens-1M is a trained SASRec (width 128, window 200, exact index) with users of the log; the made catalogues are
clustered vectors of width 64 behind a SASRec of random weights (`benchmarks/load_bundles.py`), users from their
clusters: they say what sizes cost, and nothing of quality.
"""


def page(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    kept = sum(record.get("encodings", {}).get("step", 0) for record in records)
    lines = [HEAD.format(kept=f"{kept:,} requests"), "## At a fixed rate", ""]
    lines += [
        "| bundle | requests/s | of them | requests | p50 | p95 | p99 | p99.9 | errors | late | goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(row for record in records if "kinds" in record for row in rows(record)),
        "",
        "## As fast as it goes",
        "",
        "`wrk`, one thread, 4 connections, known users, turn by turn with a route that does nothing: in the thread",
        "pool, as the service's routes, and in the event loop. Medians; the goal is half of the former.",
        "",
        "| bundle | requests/s | empty route | ratio | empty, in the loop | ratio | CPU ms a request | goal |",
        "|---|---|---|---|---|---|---|---|",
        *(ceiling(record) for record in records if "ratio" in record),
        "",
        "## Index and memory",
        "",
        "| bundle | index | recall@100 | resident MiB | of it allocated |",
        "|---|---|---|---|---|",
        *(memory(record) for record in records if record["cell"] == "ceiling"),
        "",
        stamp(records),
        "",
    ]
    return "\n".join(lines)


def rows(record: dict[str, Any]) -> list[str]:
    """One a kind of request."""
    case = record["case"]
    first = f"| {case['name']} | {case['rate']:g}"
    return [
        f"{first} | {kind} | {one['requests']:,} | {one['p50']:.2f} | {one['p95']:.2f} | {one['p99']:.2f} "
        f"| {one['p99.9']:.2f} | {one['errors']} | {record['late']:.2f} | {verdict(one['p99'], case, kind, record)} |"
        for kind in KINDS
        if (one := record["kinds"].get(kind)) and not (kind == "all" and len(record["kinds"]) == 2)
    ]


def verdict(p99: float, case: dict[str, Any], kind: str, record: dict[str, Any]) -> str:
    """Of what the goal is about."""
    if kind != "all" and record["cell"] == "mixed":
        return ""
    return f"p99 < {case['most']:g}: {'met' if p99 < case['most'] else 'missed'}"


def ceiling(record: dict[str, Any]) -> str:
    """One bundle beside the empty routes."""
    met = "met" if record["ratio"] >= 0.5 else "missed"
    return (
        f"| {record['case']['name']} | {record['ours']:,.0f} | {record['empty']:,.0f} | {record['ratio']:.2f} "
        f"| {record['empty_loop']:,.0f} | {record['ratio_loop']:.2f} "
        f"| {record['cpu_milliseconds']:.2f} | >= 0.5: {met} |"
    )


def memory(record: dict[str, Any]) -> str:
    """What the process holds after all of it."""
    index = record["index"]
    return (
        f"| {record['case']['name']} | {index['kind']} | {index['recall']:.4f} | {record['resident']:,.0f} "
        f"| {record['own']:,.0f} |"
    )


def stamp(records: Sequence[dict[str, Any]]) -> str:
    """When, where, and how quiet it was."""
    dates, commits = (", ".join(sorted({record[name] for record in records})) for name in ("date", "commit"))
    loads = [record["load"] for record in records]
    return (
        f"{dates}, commit {commits}; {platform.machine()}, {os.cpu_count()} cores, no accelerator; load average before "
        f"the cells {min(loads):.1f} to {max(loads):.1f}."
    )
