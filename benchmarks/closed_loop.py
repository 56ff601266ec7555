"""The loop closed on real ratings: `python -m benchmarks.closed_loop [--worlds N] [--folder DIR] [--out PAGE]`.

MovieLens-100K's ratings are dealt in two halves. One is the shop's log, from which two SASRec and the floors learn. The
other makes people (`benchmarks.user_model`), whom no recommender ever sees; what each list earns is known from them.

    shop's half -> dataset -> prepared -> models -> lists -> split -> what people click -> exposure log
         exposure log -> `recsys experiment`: which variant is better?      against the truth
         exposure log -> `recsys estimate`: what would each model earn?     against the truth
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from benchmarks.user_model import People, explained_ratings, read_chances
from pipelines.estimate import EstimateConfig, estimate_lists
from pipelines.experiment import ExperimentConfig, run_experiment
from pipelines.ingest import IngestConfig, ingest
from pipelines.movielens import movielens_100k
from pipelines.plan import TrainConfig
from pipelines.policy_lists import Lister, Policy
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.experiment import Plan
from recsys.exposures import Attribution, Exposures, Outcomes
from recsys.metrics import FloatArray, IntArray
from recsys.off_policy import LOGGED

PAGE = Path("docs/closed-loop.md")
PLACES, POOL, GUESTS = 10, 20, 3_000
SHARES = {"old": 0.5, "new": 0.5}
SMALL = ("model.embedding_dim=32", "model.ffn_dim=64", "model.num_blocks=1", "model.max_len=50")
EPOCHS = {"old": 3, "new": 8}
"""Both are SASRec; the old one has learned less."""
MODELS = ("old", "new", "popularity", "markov", "item-knn")
SECOND, HOUR = 1_000_000, 3_600_000_000
START = 1_700_000_000_000_000


@dataclass(frozen=True)
class Shop:
    """Runs below a folder, people whom they never saw, and how well ratings that the people do not rest on are told."""

    folder: Path
    people: People
    error: float
    spread: float

    @classmethod
    def open(cls, folder: Path, reporter: Reporter) -> "Shop":
        """Deals the ratings, prepares the shop's half and trains on it what is not there yet."""
        log = pl.read_csv(movielens_100k(folder / "log"), separator="\t").rename(lambda name: name.split(":")[0])
        theirs = np.random.default_rng(0).random(len(log)) < 0.5
        if not (folder / "prepared").exists():
            folder.mkdir(parents=True, exist_ok=True)
            log.filter(pl.Series(~theirs)).write_csv(folder / "shop.csv")
            ingest(IngestConfig(sources=(folder / "shop.csv",), out=folder / "dataset", overwrite=True), reporter)
            prepare(PrepareConfig(dataset=folder / "dataset", out=folder / "prepared"))
        for name in MODELS:
            if not (folder / name).exists():
                train(_training(folder, name), reporter)
        user, item = (log[name].to_numpy().astype(np.int64) - 1 for name in ("user_id", "item_id"))
        ratings, shape = log["rating"].to_numpy().astype(np.float64), (int(user.max()) + 1, int(item.max()) + 1)
        told = explained_ratings(user[theirs], item[theirs], ratings[theirs], shape)[user[~theirs], item[~theirs]]
        return cls(
            folder,
            People.fit(user[theirs], item[theirs], ratings[theirs], shape),
            float(np.sqrt(((told - ratings[~theirs]) ** 2).mean())),
            float(ratings[~theirs].std()),
        )


def _training(folder: Path, name: str) -> TrainConfig:
    if name not in EPOCHS:
        return TrainConfig(data=folder / "prepared", model=name, out=folder / name, tracking=False)
    settings = (*SMALL, f"training.epochs={EPOCHS[name]}", "training.learning_rate=0.002")
    return TrainConfig(data=folder / "prepared", model="sasrec", out=folder / name, settings=settings, tracking=False)


@dataclass(frozen=True)
class Guests:
    """Visitors: which person each is [G], the history the shop knows, and what every model would show: ids, and what
    its list earns [G]."""

    person: IntArray
    histories: list[list[str]]
    lists: Mapping[str, list[list[str]]]
    earns: Mapping[str, FloatArray]

    @classmethod
    def of(cls, shop: Shop, rng: np.random.Generator) -> "Guests":
        """Random people, each at a random moment of what the shop's log has of them."""
        events = pl.read_parquet(shop.folder / "dataset" / "events").sort("user_id", "timestamp", maintain_order=True)
        known = dict(events.group_by("user_id").agg("item_id").rows())
        names = rng.choice(sorted(known), GUESTS)
        histories = [known[name][: rng.integers(1, len(known[name]) + 1)] for name in names]
        person = names.astype(np.int64) - 1
        lists = {name: shown_lists(shop, name, histories, PLACES).to_list() for name in MODELS}
        return cls(person, histories, lists, {name: _earned(shop, person, shown) for name, shown in lists.items()})

    def lister(self, name: str) -> Lister:
        """The model's lists, looked up."""
        by_history = dict(zip(map(tuple, self.histories), self.lists[name], strict=True))
        return lambda histories, k: pl.Series([by_history[tuple(history)][:k] for history in histories.to_list()])


def shown_lists(shop: Shop, name: str, histories: list[list[str]], k: int) -> pl.Series:
    """What one of the shop's models would show."""
    return Policy.open(shop.folder / name).lists(pl.Series(histories, dtype=pl.List(pl.String)), k)


def _earned(shop: Shop, person: IntArray, lists: Sequence[Sequence[str]]) -> FloatArray:
    """[G], clicks that each list earns on average."""
    items = np.array(lists).astype(np.int64) - 1
    return (shop.people.clicks[person[:, None], items] * read_chances(PLACES)).sum(axis=1)


def write_day(
    folder: Path,
    shop: Shop,
    guests: Guests,
    variants: Sequence[str],
    lists: Sequence[Sequence[str]],
    propensities: Sequence[Sequence[float]] | None,
    rng: np.random.Generator,
) -> Path:
    """The log of one day on which each guest came once, got a list of a variant and clicked what was to be clicked; an
    empty answer a day later says that the log goes on."""
    count, items = len(lists), np.array(lists).astype(np.int64) - 1
    clicked = rng.random(items.shape) < shop.people.clicks[guests.person[:, None], items] * read_chances(PLACES)
    times = START + np.arange(count) * SECOND
    answers = pl.DataFrame(
        {
            "request_id": [f"r{number}" for number in range(count)],
            "timestamp": times,
            "user_id": [f"g{number}" for number in range(count)],
            "session_id": None,
            "variant": list(variants),
            "propensity": [SHARES.get(name, 1.0) for name in variants],
            "model_version": "simulated",
            "source": "model",
            "position": 1,
            "item_ids": [list(shown) for shown in lists],
            "scores": [[0.0] * PLACES] * count,
            "propensities": propensities,
            "history": guests.histories[:count],
            "wishes": None,
        },
        schema=Exposures.create_empty().schema,
    )
    rows, places = np.nonzero(clicked)
    outcomes = pl.DataFrame(
        {
            "user_id": [f"g{row}" for row in rows],
            "item_id": [lists[row][place] for row, place in zip(rows.tolist(), places.tolist(), strict=True)],
            "timestamp": times[rows] + (1 + places) * SECOND,
            "event_type": "click",
            "value": None,
            "event_id": None,
            "request_id": None,
        },
        schema=Outcomes.create_empty().schema,
    )
    end = answers.head(1).with_columns(
        request_id=pl.lit("end"),
        user_id=pl.lit(None, pl.String),
        timestamp=pl.lit(int(times[-1]) + 3 * HOUR, pl.Int64),
        item_ids=pl.lit([], pl.List(pl.String)),
    )
    for kind, table in (("answers", pl.concat([answers, end])), ("outcomes", outcomes)):
        (folder / kind).mkdir(parents=True)
        table.write_parquet(folder / kind / "part-0.parquet")
    return folder


@dataclass(frozen=True)
class Verdicts:
    """Of many days: declared winners, and whether intervals held the truth."""

    winners: list[list[str]]
    held: list[bool]

    def share(self, name: str) -> float:
        """Of days on which this variant won."""
        return float(np.mean([name in won for won in self.winners]))


def experiments(shop: Shop, guests: Guests, pair: tuple[str, str], days: int, rng: np.random.Generator) -> Verdicts:
    """Splits between two models under the names old and new, and what `recsys experiment` says of each."""
    truth = float((guests.earns[pair[1]] - guests.earns[pair[0]]).mean())
    found = Verdicts([], [])
    for _ in range(days):
        second = rng.random(len(guests.person)) < SHARES["new"]
        lists = [guests.lists[pair[int(side)]][number] for number, side in enumerate(second)]
        variants = np.where(second, "new", "old").tolist()
        with TemporaryDirectory() as folder:
            log = write_day(Path(folder) / "log", shop, guests, variants, lists, None, rng)
            result = run_experiment(
                ExperimentConfig(
                    logs=(log,),
                    base="old",
                    attribution=Attribution(window=HOUR),
                    horizon=HOUR,
                    plan=Plan(once=True),
                )
            )
        entry = result.effects["new"][0]
        found.winners.append((["new"] if entry.difference > 0 else ["old"]) if entry.decided else [])
        found.held.append(entry.interval[0] <= truth <= entry.interval[1])
    return found


@dataclass(frozen=True)
class Told:
    """What `recsys estimate` said of one model over many days, beside the truth; by estimator."""

    truth: float
    values: Mapping[str, FloatArray]
    held: Mapping[str, float]
    enough: float
    coverage: float


Days = Callable[[np.random.Generator, Path], tuple[Path, Mapping[str, Lister]]]


def split_day(shop: Shop, guests: Guests) -> Days:
    """Guests are split between the old and the new model."""

    def write(rng: np.random.Generator, folder: Path) -> tuple[Path, Mapping[str, Lister]]:
        names = np.where(rng.random(len(guests.person)) < SHARES["new"], "new", "old").tolist()
        lists = [guests.lists[name][number] for number, name in enumerate(names)]
        log = write_day(folder, shop, guests, names, lists, None, rng)
        return log, {name: guests.lister(name) for name in SHARES}

    return write


def exploring_day(shop: Shop, guests: Guests) -> Days:
    """Everybody gets ten of the new model's best twenty, in any order."""
    pools = shown_lists(shop, "new", guests.histories, POOL).to_list()

    def write(rng: np.random.Generator, folder: Path) -> tuple[Path, Mapping[str, Lister]]:
        lists = [rng.permutation(pool)[:PLACES].tolist() for pool in pools]
        chances = [[1 / POOL] * PLACES] * len(pools)
        return write_day(folder, shop, guests, ["explore"] * len(pools), lists, chances, rng), {}

    return write


def told(guests: Guests, name: str, write: Days, days: int, rng: np.random.Generator) -> Told:
    """Estimates of one model from many days."""
    truth, found = float(guests.earns[name].mean()), []
    for number in range(days):
        with TemporaryDirectory() as folder:
            log, shown_by = write(rng, Path(folder) / "log")
            config = EstimateConfig(
                logs=(log,), policy=Path(name), attribution=Attribution(window=HOUR), draws=400, seed=number
            )
            found.append(estimate_lists(config, name, guests.lister(name), shown_by))
    names = [entry.estimator for entry in found[0].estimates if entry.estimator != LOGGED]
    return Told(
        truth,
        {each: np.array([result.of(each).value for result in found]) for each in names},
        {
            each: float(
                np.mean([result.of(each).interval[0] <= truth <= result.of(each).interval[1] for result in found])
            )
            for each in names
        },
        float(np.mean([result.overlap.enough for result in found])),
        float(np.mean([result.overlap.mean_weight for result in found])),
    )


def told_rows(source: str, name: str, result: Told) -> list[str]:
    """One row an estimator that matters."""
    rows = []
    for each in ("ips", "snips", "dr"):
        values = result.values[each]
        off = (values.mean() - result.truth) / (values.std(ddof=1) / np.sqrt(len(values)))
        rows.append(
            f"| {source} | {name} | {result.truth:.4f} | {result.coverage:.2f} | {result.enough:.0%} | {each} | "
            f"{values.mean():.4f} | {off:+.1f} | {values.std(ddof=1):.4f} | {result.held[each]:.0%} |"
        )
    return rows


def page(shop: Shop, days: int, rng: np.random.Generator) -> str:
    """The figures beside the truth."""
    guests = Guests.of(shop, rng)
    equal, better = (experiments(shop, guests, pair, days, rng) for pair in (("new", "new"), ("old", "new")))
    split, explored = split_day(shop, guests), exploring_day(shop, guests)
    rows = [
        row
        for source, write, names in (
            ("split", split, ("old", "new", "popularity")),
            ("explored", explored, ("new", "old")),
        )
        for name in names
        for row in told_rows(source, name, told(guests, name, write, days, rng))
    ]
    truths = ", ".join(f"{name} {earned.mean():.4f}" for name, earned in guests.earns.items())
    return "\n".join([
        "# The loop, closed",
        "",
        "Written by `python -m benchmarks.closed_loop`; do not edit. MovieLens-100K in two halves: one is the shop's "
        "log, the other makes people, whom no model sees (their model tells the shop's ratings to "
        f"{shop.error:.3f} RMSE; the mean alone to {shop.spread:.3f}). {GUESTS:,} guests a day, {days} days a "
        f"row; seed 0; {datetime.now(UTC).date().isoformat()}, 2 cores, no accelerator.",
        "",
        f"What a list earns in truth (clicks): {truths}.",
        "",
        "## Experiments: `recsys experiment`, one look",
        "",
        "| split | old wins | new wins | 95 % intervals that hold the truth |",
        "|---|---|---|---|",
        f"| new against itself | {equal.share('old'):.1%} | {equal.share('new'):.1%} | {np.mean(equal.held):.1%} |",
        f"| old against new | {better.share('old'):.1%} | {better.share('new'):.1%} | {np.mean(better.held):.1%} |",
        "",
        "## Estimates: `recsys estimate`",
        "",
        "*split*: old and new answer half of the guests each, without chance; *explored*: ten of new's best twenty in "
        "any order. *covered*: mean weight; *trusted*: days on which the command said that the log can judge it.",
        "",
        "| log | model | truth | covered | trusted | estimator | mean | error, standard errors | spread | intervals "
        "that hold the truth |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ])


def main() -> None:
    """Makes the shop where it is not there yet, runs the days, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200, help="days of each kind")
    parser.add_argument("--folder", type=Path, default=Path("build/closed-loop"))
    parser.add_argument("--fresh", action="store_true", help="make the shop anew")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if arguments.fresh:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    shop = Shop.open(arguments.folder, Reporter())
    arguments.out.write_text(page(shop, arguments.worlds, np.random.default_rng(0)), encoding="utf-8")


if __name__ == "__main__":
    main()
