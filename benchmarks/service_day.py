"""A day of the service itself: `python -m benchmarks.service_day [--folder DIR] [--guests N] [--out PAGE]`.

The shop and its people are those of `benchmarks.closed_loop`. The app runs in this process with two bundles, a split
and its exposure log; guests come by HTTP, get lists, click, and their clicks become events:

    events -> state -> lists -> clicks -> events ...  -> exposure log -> `experiment`, `estimate`, `ingest`

What the commands say stands beside the truth: what both models would have earned, list by list.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from fastapi.testclient import TestClient

from benchmarks.closed_loop import PLACES, Shop
from benchmarks.user_model import read_chances
from pipelines.estimate import EstimateConfig, PolicyEstimate, estimate_policy
from pipelines.experiment import Experiment, ExperimentConfig, run_experiment
from pipelines.export import ExportConfig, export
from pipelines.ingest import IngestConfig, ingest
from pipelines.policy_lists import Policy
from pipelines.reporter import Reporter
from recsys.experiment import Plan
from recsys.exposures import Attribution, read_exposures
from recsys.metrics import FloatArray
from serving.app import create_app
from serving.settings import Settings

PAGE = Path("docs/service-day.md")
SHARES = {"control": 0.5, "new": 0.5}
RUNS = {"control": "old", "new": "new"}
VISITS = 2
SECOND = 1_000_000
WATCHED = 5 * SECOND
"""A guest's visits follow each other at once; the log goes on for longer than this and the window."""
DAY_AGO = 86_400 * SECOND


@dataclass(frozen=True)
class Day:
    """What the guests were and did: the log, persons by user id, and how many events were sent."""

    log: Path
    persons: Mapping[str, int]
    events: int


def serve_day(shop: Shop, folder: Path, guests: int, weights: Mapping[str, float], rng: np.random.Generator) -> Day:
    """The app from its start to its end; every answer is asked for, and every click sent, by HTTP."""
    settings = Settings(
        state=str(folder / "state.sqlite"),
        variants={"new": str(shop.folder / "bundle-new")},
        weights=dict(weights),
        exposures=folder / "log",
        watch_seconds=0,
    )
    known = histories(shop)
    names = rng.choice(sorted(known), guests)
    persons = {f"guest{number:05}": int(name) - 1 for number, name in enumerate(names)}
    sent = 0
    with TestClient(create_app(shop.folder / "bundle-old", settings)) as client:
        for user, name in zip(persons, names, strict=True):
            past = known[name][: rng.integers(1, len(known[name]) + 1)][-40:]
            began = time.time_ns() // 1_000 - DAY_AGO
            sent += send(client, user, past, [began + place * SECOND for place in range(len(past))])
            for _ in range(VISITS):
                sent += visit(client, shop, user, persons[user], rng)
        time.sleep(3 * WATCHED / SECOND)
        client.post("/v1/recommend", json={"history": []}).raise_for_status()
    return Day(folder / "log", persons, sent)


def send(
    client: TestClient, user: str, items: Sequence[str], times: Sequence[int | None], request_id: str | None = None
) -> int:
    """Events of one user; how many."""
    named = {} if request_id is None else {"request_id": request_id}
    events = [
        {"user_id": user, "item_id": item, **({} if moment is None else {"timestamp": moment}), **named}
        for item, moment in zip(items, times, strict=True)
    ]
    if events:
        client.post("/v1/events", json=events).raise_for_status()
    return len(events)


def visit(client: TestClient, shop: Shop, user: str, person: int, rng: np.random.Generator) -> int:
    """One list, and the clicks on it; how many."""
    answer = client.post("/v1/recommend", json={"user_id": user, "k": PLACES}).raise_for_status().json()
    items = [item["item_id"] for item in answer["items"]]
    chances = click_chances(shop, person, items)
    clicked = [item for item, clicks in zip(items, rng.random(len(items)) < chances, strict=True) if clicks]
    return send(client, user, clicked, [None] * len(clicked), answer["request_id"])


def click_chances(shop: Shop, person: int, items: Sequence[str]) -> FloatArray:
    """Of each item of a list."""
    return shop.people.clicks[person, np.array(items, dtype=np.int64) - 1] * read_chances(len(items))


def histories(shop: Shop) -> dict[str, list[str]]:
    """What the shop's log has of each person, in order."""
    events = pl.read_parquet(shop.folder / "dataset" / "events").sort("user_id", "timestamp", maintain_order=True)
    return dict(events.group_by("user_id").agg("item_id").rows())


def expected(shop: Shop, day: Day, lists: Sequence[Sequence[str]], users: Sequence[str]) -> float:
    """Clicks that these lists earn on average."""
    return float(
        np.mean([click_chances(shop, day.persons[user], items).sum() for user, items in zip(users, lists, strict=True)])
    )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the commands said of a day, and what is true."""

    experiment: Experiment
    estimates: Mapping[str, PolicyEstimate]
    earned: Mapping[str, float]
    difference: float
    events: int
    ingested: int


def judged(shop: Shop, day: Day, folder: Path, difference: float) -> Findings:
    """`experiment`, `estimate` of both models by the split, and `ingest`, on one log."""
    attribution = Attribution(window=WATCHED)
    experiment = run_experiment(
        ExperimentConfig(
            logs=(day.log,), base="control", attribution=attribution, horizon=WATCHED, plan=Plan(once=True)
        )
    )
    shown_by = {variant: shop.folder / run for variant, run in RUNS.items()}
    estimates = {
        run: estimate_policy(
            EstimateConfig(logs=(day.log,), policy=shop.folder / run, shown_by=shown_by, attribution=attribution),
            Reporter(quiet=True),
        )
        for run in ("old", "new", "popularity")
    }
    answers = read_exposures(day.log).filter(pl.col("user_id").is_not_null())
    users = answers["user_id"].to_list()
    dataset = ingest(
        IngestConfig(sources=(day.log / "outcomes",), out=folder / "again", format="parquet"), Reporter(quiet=True)
    )
    return Findings(
        experiment=experiment,
        estimates=estimates,
        earned={
            run: expected(shop, day, Policy.open(shop.folder / run).lists(answers["history"], PLACES).to_list(), users)
            for run in estimates
        },
        difference=difference,
        events=day.events,
        ingested=dataset.manifest["counts"]["accepted"],
    )


def counterfactual(shop: Shop, folder: Path, guests: int) -> float:
    """Clicks a user that the new model earns more than the old, each given to all of so many guests."""
    earned = {}
    for name in SHARES:
        place = folder / f"all-{name}"
        day = serve_day(shop, place, guests, {name: 1.0}, np.random.default_rng(1))
        answers = read_exposures(day.log).filter(pl.col("user_id").is_not_null())
        earned[name] = expected(shop, day, answers["item_ids"].to_list(), answers["user_id"].to_list())
    return VISITS * (earned["new"] - earned["control"])


def page(found: Findings, guests: int) -> str:
    """What was said, beside the truth."""
    entry = found.experiment.effects["new"][0]
    rows = [
        f"| {run} | {found.earned[run]:.4f} | {result.overlap.mean_weight:.2f} | {result.verdict} | {each} | "
        f"{result.of(each).value:.4f} | {result.of(each).interval[0]:.4f} to {result.of(each).interval[1]:.4f} |"
        for run, result in found.estimates.items()
        for each in ("ips", "snips", "dr")
    ]
    return "\n".join([
        "# A day of the service",
        "",
        "Written by `python -m benchmarks.service_day`; do not edit. The app with two bundles (half of the users "
        f"each), state, and exposure log, asked by HTTP; {guests:,} guests of {VISITS} visits; people and models of "
        f"[closed-loop.md](closed-loop.md); seed 0; {datetime.now(UTC).date().isoformat()}, 2 cores, no accelerator.",
        "",
        f"`recsys experiment`: {found.experiment.split.sentence()} {entry.sentence()} In truth the difference is "
        f"{found.difference:+.4f} (each model given to all); CUPED saved {entry.saved:.0%} of the variance.",
        "",
        f"`recsys ingest` reads {found.ingested:,} events back from the log; {found.events:,} were sent.",
        "",
        "`recsys estimate`, by the split:",
        "",
        "| model | truth | covered | verdict against what was shown | estimator | value | 95 % interval |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ])


def main() -> None:
    """Makes what is not there yet, serves the days, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/closed-loop"))
    parser.add_argument("--guests", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    shop, folder = Shop.open(arguments.folder, Reporter()), arguments.folder / "day"
    for run in RUNS.values():
        if not (shop.folder / f"bundle-{run}").exists():
            export(ExportConfig(run=shop.folder / run, out=shop.folder / f"bundle-{run}"))
    shutil.rmtree(folder, ignore_errors=True)
    difference = counterfactual(shop, folder, arguments.guests)
    day = serve_day(shop, folder / "split", arguments.guests, SHARES, np.random.default_rng(0))
    arguments.out.write_text(page(judged(shop, day, folder, difference), arguments.guests), encoding="utf-8")


if __name__ == "__main__":
    main()
