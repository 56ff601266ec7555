"""One period of a backtest: what each policy learns before it, and the rank of each of its events."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pipelines.loading import fit_floor, no_history, run_model
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, iso, prepare
from pipelines.replay import FIRST, PREPARED, Replay
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.catalog import Catalog
from recsys.contracts import CatalogScorer
from recsys.evaluation import rank_cases
from recsys.metrics import IntArray
from recsys.partitions import write_events
from recsys.periods import Period
from recsys.prepared import Prepared, SeenRule, open_prepared
from recsys.ranking import NOT_RETURNED, RetrieverScorer
from recsys.runs import Run, open_run
from recsys.sequences import SequenceStore
from recsys.steps import writing_step

CASES = "cases.parquet"
CUTOFF = 10
TRAINING_SHARE = 0.9
"""Of what is known before a period, in the training part; validation has the rest, and both are learned from."""


@dataclass(frozen=True)
class Contestant:
    """What answers throughout a period: its scorer, the items it was taught, and the seconds it took to learn."""

    name: str
    scorer: CatalogScorer
    catalog: Catalog
    seconds: float


@dataclass(frozen=True)
class Told:
    """What a model that was taught a catalogue is told of a log: histories of these items, and cases whose target is
    one of them; `places` of the cases among all events of the period, in the log's order."""

    store: SequenceStore
    cases: pl.DataFrame
    places: IntArray

    @classmethod
    def of(cls, events: pl.DataFrame, start: int, catalog: Catalog) -> "Told":
        """From all events until the end of the period that begins at `start`."""
        late = pl.col("timestamp") >= start
        numbered = events.with_columns(place=pl.when(late).then(late.cum_sum().cast(pl.Int64) - 1))
        known = numbered.filter(pl.col("item_id").is_in(catalog.item_ids.implode()))
        store, chosen = SequenceStore.from_events(known, catalog), known["place"].is_not_null().to_numpy()
        cases = pl.DataFrame({
            "user_idx": store.event_users()[chosen].astype(np.int32),
            "position": store.event_positions()[chosen].astype(np.int32),
            "target": store.item_idx[chosen],
        })
        return cls(store, cases, known["place"].drop_nulls().to_numpy())

    def ranks(self, scorer: CatalogScorer, num_rows: int, seen: SeenRule) -> IntArray:
        """Of every case."""
        ranked = rank_cases(scorer, self.store, self.cases, num_rows, seen, (CUTOFF,))
        return ranked.cases["rank"].to_numpy().astype(np.int64)


def play(replay: Replay, period: Period, reporter: Reporter) -> None:
    """Learns what is to be learned before a period, ranks its events and writes both down."""
    events = replay.events.filter(pl.col("timestamp") < period.stop)
    cases = period_cases(events, period.start)
    names = (*replay.config.followed, *replay.floors)
    seconds, new_items = dict.fromkeys(names, 0.0), dict.fromkeys(names, len(cases))
    ranks = {name: np.full(len(cases), NOT_RETURNED, dtype=np.int64) for name in names}
    for contestant in contestants(replay, period, events, reporter):
        name, told = contestant.name, Told.of(events, period.start, contestant.catalog)
        if len(told.cases):
            ranks[name][told.places] = told.ranks(contestant.scorer, contestant.catalog.num_rows, replay.seen)
        seconds[name], new_items[name] = contestant.seconds, len(cases) - len(told.cases)
    with writing_step("backtest", replay.folder(period), config=asdict(period)) as step:
        cases.with_columns(**ranks).write_parquet(step.folder / CASES)
        step.counts.update(
            start=iso(period.start),
            cases=len(cases),
            learned_events=len(events) - len(cases),
            training_seconds=seconds,
            new_items=new_items,
        )


def period_cases(events: pl.DataFrame, start: int) -> pl.DataFrame:
    """The events of the period that begins at `start`, in the log's order; `position` in the user's history."""
    place = pl.int_range(pl.len()).over("user_id").cast(pl.Int64)
    numbered = events.select("user_id", "item_id", "timestamp", position=place)
    return numbered.filter(pl.col("timestamp") >= start)


def contestants(replay: Replay, period: Period, events: pl.DataFrame, reporter: Reporter) -> Iterator[Contestant]:
    """Policies and floors, none where nothing is known of what the period holds."""
    before = pl.col("timestamp") < period.start
    known = events.filter(before)["item_id"].unique()
    told = events.filter(before | pl.col("item_id").is_in(known.implode()))
    if told["timestamp"].max() < period.start:  # type: ignore[operator]
        return
    prepared = prepare_period(replay, period, told)
    for policy, (run, data) in learned(replay, period, prepared, reporter).items():
        fresh = data.folder == prepared.folder
        yield Contestant(policy, scorer(run, data), data.catalog, seconds_of(run) if fresh else 0.0)
    for name in replay.floors:
        began = time.perf_counter()
        floor = fit_floor(name, prepared, "test")
        yield Contestant(name, floor, prepared.catalog, time.perf_counter() - began)


def prepare_period(replay: Replay, period: Period, told: pl.DataFrame) -> Prepared:
    """Data whose test part is the period; frees what no later period needs."""
    folder, earlier = replay.work(period), replay.earlier_work(period)
    for unneeded in earlier[1:-1]:
        shutil.rmtree(unneeded)
    if (folder / PREPARED).is_dir():
        return open_prepared(folder / PREPARED)
    with writing_step("ingest", folder / "dataset", config={}, inputs=[replay.config.dataset], overwrite=True) as step:
        write_events(told, step.folder / "events")
        described = pl.col("item_id").is_in(told["item_id"].implode())
        replay.dataset.items().filter(described).write_parquet(step.folder / "items.parquet")
        step.counts["time"] = replay.dataset.time
    known = told.filter(pl.col("timestamp") < period.start)["timestamp"].sort()
    return prepare(
        PrepareConfig(
            dataset=folder / "dataset",
            out=folder / PREPARED,
            validation_from=iso(known[int(TRAINING_SHARE * len(known))]),
            test_from=iso(period.start),
            seen=replay.seen,
            extend=earlier[-1] / PREPARED if earlier else None,
        )
    )


def learned(replay: Replay, period: Period, prepared: Prepared, reporter: Reporter) -> dict[str, tuple[Run, Prepared]]:
    """The run in charge by each policy, and the data that it knows; before the first period all are one."""
    folder, earlier, config = replay.work(period), replay.earlier_work(period), replay.config
    if not earlier:
        return dict.fromkeys(config.followed, (learn(replay, folder / FIRST, prepared, reporter), prepared))
    found: dict[str, tuple[Run, Prepared]] = {}
    for policy in config.followed:
        if policy == "never":
            found[policy] = open_run(earlier[0] / FIRST), open_prepared(earlier[0] / PREPARED)
        else:
            start = last_warm(earlier) if policy == "warm" else None
            found[policy] = learn(replay, folder / policy, prepared, reporter, start), prepared
    return found


def last_warm(earlier: list[Path]) -> Path:
    """The run whose weights go on."""
    return earlier[-1] / ("warm" if len(earlier) > 1 else FIRST)


def learn(replay: Replay, out: Path, prepared: Prepared, reporter: Reporter, start: Path | None = None) -> Run:
    """A run on everything before the period, from scratch or the weights of another; an interrupted one goes on."""
    config = replay.config
    if not out.is_dir():
        train(
            TrainConfig(
                data=prepared.folder,
                model=config.model,
                out=out,
                init=start,
                preset=config.preset,
                config_file=config.config_file,
                settings=(*config.settings, *(config.warm_settings if start else ())),
                fit_on="train+validation",
                seed=config.seed,
                tracking=False,
            ),
            reporter,
        )
    return open_run(out)


def scorer(run: Run, prepared: Prepared) -> CatalogScorer:
    """As the service would answer with the run; users without history get the popularity of its own day."""
    _, model = run_model(run, prepared)
    if isinstance(model, torch.nn.Module):
        return RetrieverScorer(model, no_history(prepared, run.fit_on).scores)  # type: ignore[arg-type]
    counted: CatalogScorer = model
    return counted


def seconds_of(run: Run) -> float:
    """Of a training, interruptions apart."""
    return float(run.manifest["counts"].get("training_seconds", run.manifest["seconds"]))
