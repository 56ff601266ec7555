"""`recsys demo`: the whole path on MovieLens-100K, from its log to a registered bundle."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import typer
from rich.console import Console

from pipelines.compare import CompareConfig, compare
from pipelines.evaluate import EvaluateConfig, Evaluation, evaluate
from pipelines.export import ExportConfig, export
from pipelines.ingest import IngestConfig, ingest
from pipelines.loading import run_scorer
from pipelines.movielens import movielens_100k
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.tables import evaluation_table
from pipelines.train import train
from recsys.batches import Histories
from recsys.evaluation import seen_mask
from recsys.prepared import Prepared
from recsys.ranking import FullRanking
from recsys.registry import register_bundle
from recsys.runs import Run, open_run

MODELS = ("sasrec", "bert4rec")
REGISTERED_NAME = "recsys-demo"
HEADLINE = "ndcg@10"
SHOWN = 10
WHY_A_FLOOR_WINS = (
    "Why a floor can win here: item-KNN weighs recent events, its settings were chosen on validation, and floors know "
    "the validation events, which only the refits do as well; docs/experiments.md has what was tried."
)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ShownUser:
    """One user's history and what the champion recommends, by title."""

    user_id: str
    history: list[str]
    recommendations: list[str]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo made and measured."""

    evaluation: Evaluation
    comparison: str
    champion: str
    bundle: Path
    registered: str
    user: ShownUser
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: per model its metrics, seconds per stage, the bundle's path."""
        reports = {**self.evaluation.runs, **self.evaluation.floors}
        return {
            "metrics": {name: report["metrics"] for name, report in reports.items()},
            "cases": next(iter(reports.values()))["cases"],
            "verdicts": self.evaluation.verdicts(),
            "comparison": self.comparison,
            "champion": self.champion,
            "bundle": str(self.bundle),
            "registered": self.registered,
            "user": vars(self.user),
            "seconds": self.seconds,
        }


class Stopwatch:
    """Runs stages and notes how long each took."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of `work`."""
        self.reporter.say(f"{stage} ...")
        began = time.perf_counter()
        result = work()
        self.seconds[stage] = round(time.perf_counter() - began, 2)
        return result


def demo(out: Path, seed: int, reporter: Reporter) -> Demo:
    """Ingests, prepares, trains, evaluates, compares, exports and registers below `out`."""
    stage = Stopwatch(reporter)
    log = stage("download", lambda: movielens_100k(out / "log"))
    stage("ingest", lambda: ingest(IngestConfig(sources=(log,), out=out / "dataset", overwrite=True)))
    prepared = stage(
        "prepare",
        lambda: prepare(PrepareConfig(dataset=out / "dataset", out=out / "prepared", overwrite=True)),
    )
    for name in MODELS:
        stage(f"train {name}", partial(train, selection(name, out, seed), reporter))
        stage(f"refit {name}", partial(train, refit(name, out), reporter))
    selected = [out / "runs" / name for name in MODELS]
    refits = [out / "runs" / f"{name}-refit" for name in MODELS]
    evaluation = stage("evaluate", lambda: evaluate(EvaluateConfig(runs=(*selected, *refits)), reporter))
    [comparison] = stage("compare", lambda: compare(CompareConfig(base=refits[0], runs=(refits[1],))))
    champion = best_on_validation([open_run(run) for run in refits])
    bundle = stage("export", lambda: export(ExportConfig(run=champion.folder, out=out / "bundle", overwrite=True)))
    registered = stage("register", lambda: register_bundle(bundle, REGISTERED_NAME, "champion"))
    return Demo(
        evaluation=evaluation,
        comparison=comparison.sentence(),
        champion=champion.name,
        bundle=bundle.folder,
        registered=f"models:/{registered.name}@{registered.alias}",
        user=show_user(champion, prepared),
        seconds=stage.seconds,
    )


def selection(name: str, out: Path, seed: int) -> TrainConfig:
    """Learns from the training part, and finds the number of epochs on validation."""
    return TrainConfig(
        data=out / "prepared",
        model=name,
        out=out / "runs" / name,
        preset="demo",
        seed=seed,
        overwrite=True,
        restart=True,
    )


def refit(name: str, out: Path) -> TrainConfig:
    """The same once more on everything before the test part: what ships."""
    return TrainConfig(
        data=out / "prepared",
        model=name,
        out=out / "runs" / f"{name}-refit",
        refit=out / "runs" / name,
        overwrite=True,
        restart=True,
    )


def best_on_validation(runs: list[Run]) -> Run:
    """The test part decides nothing."""
    return max(runs, key=lambda run: run.manifest["counts"][f"best_validation_{HEADLINE}"])


def show_user(run: Run, prepared: Prepared) -> ShownUser:
    """The user of the test part whose history is of median length, and their recommendations now."""
    store = prepared.store
    tested = np.flatnonzero(prepared.split.validation_stop < store.lengths)
    user = tested[np.argsort(store.lengths[tested], kind="stable")[len(tested) // 2]][None]
    stop = store.lengths[user]
    scorer = run_scorer(run, prepared)
    histories = Histories.from_windows(store.windows(user, stop, scorer.max_len))
    seen = seen_mask(store, user, stop, prepared.catalog.num_rows)
    best = FullRanking(scorer).recommend(histories, SHOWN, seen).items[0].tolist()
    titles = prepared.items["title"].fill_null("?").to_list()
    history = store.windows(user, stop, SHOWN).items[0].tolist()
    return ShownUser(
        user_id=store.user_ids[int(user[0])],
        history=[titles[row - 1] for row in history],
        recommendations=[titles[row - 1] for row in best],
    )


def print_demo(result: Demo, console: Console) -> None:
    """The table, one user's list by title, and what to do next."""
    console.print(evaluation_table(result.evaluation))
    for sentence in (*result.evaluation.verdicts(), result.comparison):
        typer.echo(sentence)
    if result.evaluation.losers():
        typer.echo(WHY_A_FLOOR_WINS)
    typer.echo(f"\nUser {result.user.user_id} watched last:")
    for title in result.user.history:
        typer.echo(f"    {title}")
    typer.echo(f"{result.champion} recommends:")
    for place, title in enumerate(result.user.recommendations, start=1):
        typer.echo(f"{place:>3} {title}")
    total = sum(result.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    typer.echo(f"\n{total:.0f} s in all ({stages})")
    typer.echo(f"The champion is {result.registered}, its bundle {result.bundle}. Open the service with\n")
    typer.echo(f"    make serve    (or: recsys serve {result.bundle})\n\nand look at http://127.0.0.1:8000/")
