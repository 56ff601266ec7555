"""Where each way of searching among allowed items is the fastest: `python -m benchmarks.filters`, on a quiet machine.

Random vectors of width 64 and random allowed items, one query at a time, one thread; every way is timed in turn, so
that a slow moment hits all, and the median is kept. Writes docs/serving-filters.md, where the planner's choice is bold.
"""

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from recsys.allowed import Allowed
from recsys.index import FEW, FEW_ROWS, MOST_FETCHED, ItemIndex, Plan, use_one_thread
from recsys.steps import git_commit, write_text

SIZES, WIDTH, SEED = (4_000, 100_000, 1_000_000), 64, 0
SHARES = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.9)
LENGTHS = (10, 500)
PLANS: tuple[Plan, ...] = ("few", "most", "selected")
QUERIES = 15
SLOWEST = 200_000
"""More is not fetched: it takes seconds."""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving-filters.md"
NONE = np.empty(0, dtype=np.int64)
HEAD = f"""# Filters: which search is the fastest

Written by `python -m benchmarks.filters`; do not edit. Random vectors of width {WIDTH}, random allowed items, one
query, one thread; medians in milliseconds. *few*: allowed vectors are compared one by one. *most*: more than k are
fetched of all items, and those that are not allowed are dropped. *selected*: FAISS asks of each item whether it is
allowed. All three give the same answer (tested).

In bold what the service does: *few* up to {FEW:.0%} of the items or {FEW_ROWS:,} of them; *most* beyond, as long as no
more than {MOST_FETCHED:.0%} of the items must be fetched; else *selected*, and also where what was fetched holds too
few.
"""


def main() -> None:
    """Measures, writes and prints."""
    use_one_thread()
    rng = np.random.default_rng(SEED)
    tables = [table(rng, num_items, k) for num_items in SIZES for k in LENGTHS]
    page = "\n".join([HEAD, *tables, stamp(), ""])
    write_text(PAGE, page)
    print(page)


def stamp() -> str:
    """When, where, and of which code."""
    made = f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_commit() or 'unknown')[:12]}, faiss {version('faiss-cpu')}"
    return f"{made}, {platform.machine()}, {os.cpu_count()} cores."


def table(rng: np.random.Generator, num_items: int, k: int) -> str:
    """One catalogue and one length of list."""
    index = ItemIndex.build(rng.normal(size=(num_items + 1, WIDTH)).astype(np.float32))
    queries = rng.normal(size=(QUERIES, 1, WIDTH)).astype(np.float32)
    whole = milliseconds([lambda query: index.search(query, k)], queries)[0]
    lines = [f"## {num_items:,} items, {k} wanted\n", f"Without a filter: {whole:.2f}.\n"]
    lines += ["| allowed | share | few | most | selected |", "|---|---|---|---|---|"]
    for share in SHARES:
        mask = rng.random(num_items + 1) < share
        mask[0] = False
        if mask.sum() >= k or share == max(SHARES):
            lines.append(row(index, Allowed(mask), k, queries, share))
    return "\n".join([*lines, ""])


def row(index: ItemIndex, allowed: Allowed, k: int, queries: np.ndarray, share: float) -> str:
    """The three plans; `most` where it is possible."""
    plans = [plan for plan in PLANS if plan != "most" or k / share < SLOWEST]
    taken = dict(zip(plans, milliseconds([searching(index, allowed, k, plan) for plan in plans], queries), strict=True))
    shown = [cell(taken.get(plan), plan == index.plan(allowed, k)) for plan in PLANS]
    return f"| {allowed.count:,} | {share:g} | {' | '.join(shown)} |"


def searching(index: ItemIndex, allowed: Allowed, k: int, plan: Plan) -> Callable[[np.ndarray], Any]:
    """One way to search."""
    return lambda query: index.search_within(query, k, allowed, NONE, plan)


def milliseconds(searches: list[Callable[[np.ndarray], Any]], queries: np.ndarray) -> list[float]:
    """Medians over the queries, the first one aside."""
    times = np.empty((len(queries), len(searches)))
    for number, query in enumerate(queries):
        for place, search in enumerate(searches):
            began = time.perf_counter()
            search(query)
            times[number, place] = time.perf_counter() - began
    return (np.median(times[1:], axis=0) * 1e3).tolist()


def cell(taken: float | None, chosen: bool) -> str:
    """As the table shows it."""
    text = "" if taken is None else f"{taken:.3f}"
    return f"**{text}**" if chosen else text


if __name__ == "__main__":
    main()
