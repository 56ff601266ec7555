"""What rankers of long histories attend to: `python -m benchmarks.attention_analysis PREPARED RUN... --out docs`.

The analyses of DARE's paper for runs of `dare` on PREPARED, alike but for `method` and seed:

    information         mutual information of a click with the category at each position, from training events
    attention           each run's attention by category and position, and its rank correlation with the information
    search              NDCG@20 of what each stage 1 finds; gains are the information, or a file of planted relevance
    gradients           how often attention and representation pull TWIN's table in opposite directions
    discriminability    how much clusters of what the click network reads tell about the click

Writes NAME.json, NAME.md and NAME-*.png.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch

from benchmarks import attention_page, discriminability, gradient_probe
from benchmarks.mutual_information import CategoryCounts
from benchmarks.search_quality import (
    RULES,
    Searches,
    attention_map,
    count_categories,
    map_correlation,
    planted,
    summary,
    training_clicks,
    without_items,
)
from models.dare import DARE
from pipelines.click_evaluation import part_clicks
from pipelines.loading import run_ranker
from pipelines.reporter import Reporter
from recsys.clicks import ClickCases
from recsys.errors import DataError
from recsys.item_categories import item_categories
from recsys.prepared import Prepared, open_prepared
from recsys.runs import open_run
from recsys.sequences import IntArray
from recsys.steps import git_commit, write_json, write_text

TRAINING_CLICKS, TEST_CASES = 200_000, 6_040
PROBE_BATCHES, PROBE_STEPS = 100, 600


@dataclass(frozen=True)
class Subject:
    """A run's model and what tells it from the others."""

    method: str
    seed: int
    model: DARE


@dataclass(frozen=True)
class Material:
    """What all runs are judged by."""

    prepared: Prepared
    category_of: IntArray
    names: list[str]
    counts: CategoryCounts
    searches: Searches
    gains: dict[str, np.ndarray]


def main() -> None:
    """Analyses and writes."""
    arguments = parse_arguments()
    reporter, began = Reporter(), time.perf_counter()
    prepared = open_prepared(arguments.prepared)
    subjects = read_subjects(arguments.runs, prepared)
    reporter.say("attention: counts of categories")
    material = gather(prepared, subjects[0].model, arguments.clicks, arguments.cases, arguments.truth)
    figures: dict[str, Any] = {
        "title": arguments.title or arguments.prepared.parent.name,
        "information": describe(material),
        "attention": attention(material, subjects),
        "search": search(material, subjects, reporter),
        "gradients": gradients(material, subjects, arguments.steps, reporter),
        "discriminability": representation(material, subjects, reporter),
        "runs": {f"{each.method}, seed {each.seed}": each.model.config.max_len for each in subjects},
    }
    figures |= {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    maps = {each.method: scores for each in first_seeds(subjects) if (scores := attention_map(each.model)) is not None}
    attention_page.draw(arguments.out / arguments.name, figures, material.counts, maps, material.names)
    write_json(arguments.out / f"{arguments.name}.json", figures)
    write_text(arguments.out / f"{arguments.name}.md", attention_page.page(arguments.name, figures))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="an existing folder")
    parser.add_argument("--name", default="attention", help="of the files")
    parser.add_argument("--title", help="of the data (default: its folder's name)")
    parser.add_argument("--truth", type=Path, help="planted relevance, as benchmarks.generated_histories writes it")
    parser.add_argument("--clicks", type=int, default=TRAINING_CLICKS, help="training events that are counted")
    parser.add_argument("--cases", type=int, default=TEST_CASES, help="test cases, at most")
    parser.add_argument("--steps", type=int, default=PROBE_STEPS, help="of the TWIN whose gradients are watched")
    return parser.parse_args()


def read_subjects(folders: list[Path], prepared: Prepared) -> list[Subject]:
    """Models by method and seed, DARE's first."""
    found = []
    for folder in folders:
        run = open_run(folder)
        if run.config["data"] != prepared.fingerprint:
            raise DataError(f"{folder}: was trained on other data than {prepared.folder}; name runs on it alone.")
        model = cast("DARE", run_ranker(run, prepared))
        found.append(Subject(model.config.method, run.config["seed"], model))
    lengths = {each.model.max_len for each in found}
    if len(lengths) > 1:
        raise DataError(f"attention: runs read {sorted(lengths)} events; compare runs of one model.max_len.")
    order = {"dare": 0, "twin": 1}
    return sorted(found, key=lambda each: (order.get(each.method, 2), each.method, each.seed))


def first_seeds(subjects: list[Subject]) -> list[Subject]:
    """One of each method."""
    return [each for number, each in enumerate(subjects) if each.method not in {it.method for it in subjects[:number]}]


def gather(prepared: Prepared, model: DARE, most: int, cases: int, truth: Path | None) -> Material:
    """Counts of training events, and the test rows."""
    category_of = item_categories(prepared.items, model.config.category)
    counts = count_categories(prepared, training_clicks(prepared, most), category_of, model.max_len)
    searches = Searches.of(prepared, some(part_clicks(prepared, "test"), cases), category_of, model.max_len, counts)
    gains = {"information": counts.information()}
    if truth is not None:
        gains["planted"] = planted(pl.read_parquet(truth), prepared.items, category_of, model.max_len)
    values = prepared.items[model.config.category]
    of_item = values.list.first() if isinstance(values.dtype, pl.List) else values.cast(pl.String)
    names = ["none", *of_item.drop_nulls().unique().sort().to_list()]
    return Material(prepared, category_of, names, counts, searches, gains)


def some(clicks: ClickCases, most: int) -> ClickCases:
    """At most so many cases, drawn once."""
    if len(clicks.users) <= most:
        return clicks
    chosen = np.sort(np.random.default_rng(0).choice(len(clicks.users), most, replace=False))
    return ClickCases(clicks.users[chosen], clicks.positions[chosen], clicks.items[chosen])


def describe(material: Material) -> dict[str, Any]:
    """How much information there is, and how much chance alone gives."""
    counts, information = material.counts, material.counts.information()
    rows = counts.clicks + counts.others
    own = np.arange(len(rows))
    positions = [place for place in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if place <= information.shape[2]]
    others = information.sum(axis=1) - information[own, own]
    weights = rows / rows.sum()
    return {
        "rows": int(rows.sum()),
        "positions": positions,
        "same_category": [float(weights @ information[own, own, place - 1]) for place in positions],
        "another_category": [float(weights @ others[:, place - 1]) / (len(rows) - 1) for place in positions],
        "by_chance": float(weights @ (1 / (2 * np.maximum(rows, 1) * np.log(2)))),
        "test_rows": int(material.searches.counted.sum()),
    }


def attention(material: Material, subjects: list[Subject]) -> dict[str, Any]:
    """Rank correlation of each method's map with the information."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for each in subjects:
        if (scores := attention_map(each.model)) is not None:
            found[each.method][each.seed] = map_correlation(scores, material.counts)
    return {method: summary(values) for method, values in found.items()}


def search(material: Material, subjects: list[Subject], reporter: Reporter) -> dict[str, Any]:
    """NDCG@20 by gains: of each method as it searches, of its categories and positions alone, and of plain rules."""
    searches = material.searches
    found: dict[str, dict[str, dict[int, float]]] = {
        f"{gains}, {form}": defaultdict(dict)
        for gains in material.gains
        for form in ("as it searches", "items left out")
    }
    for each in subjects:
        with reporter.task(f"search of {each.method}, seed {each.seed}", 2 * len(searches.clicks.users)) as advance:
            for form, model in (("as it searches", each.model), ("items left out", without_items(each.model))):
                priorities = searches.by_model(model, material.prepared, advance)
                for name, gains in material.gains.items():
                    found[f"{name}, {form}"][each.method][each.seed] = searches.quality(gains, priorities)
    tables: dict[str, Any] = {
        name: {method: summary(seeds) for method, seeds in methods.items()} for name, methods in found.items()
    }
    tables["rules"] = {
        name: {rule: searches.quality(gains, searches.by_rule(rule)) for rule in RULES}
        for name, gains in material.gains.items()
    }
    return tables


def gradients(material: Material, subjects: list[Subject], steps: int, reporter: Reporter) -> dict[str, Any]:
    """Of a TWIN in training, and of trained TWIN and DARE."""
    found: dict[str, Any] = {}
    batch_size, rate = 32, 0.003
    if steps:
        reporter.say(f"attention: gradients of {steps} training steps")
        config = subjects[0].model.config
        watched = gradient_probe.probe_training(
            config, material.category_of, material.prepared, batch_size, steps, rate
        )
        found["twin in training"] = gradient_probe.figures(watched)
        found["cosines"] = {field: [each[field].cosine for each in watched] for field in watched[0]}
    for method in ("twin", "dare"):
        for each in (each for each in first_seeds(subjects) if steps and each.method == method):
            reporter.say(f"attention: gradients of {method}, trained")
            watched = gradient_probe.probe(each.model, material.prepared, batch_size, min(steps, PROBE_BATCHES))
            found[f"{method}, trained"] = gradient_probe.figures(watched)
    return found


def representation(material: Material, subjects: list[Subject], reporter: Reporter) -> dict[str, Any]:
    """Normalised information of clusters and labels, of each method's first seed."""
    clicks = material.searches.clicks
    labels = clicks.flat(np.zeros(clicks.items.shape))[1]
    found: dict[str, Any] = {"clusters": list(discriminability.CLUSTERS)}
    for each in first_seeds(subjects):
        reporter.say(f"attention: clusters of {each.method}")
        inputs = discriminability.network_inputs(each.model, material.prepared, clicks)
        found[each.method] = {name: discriminability.discriminability(rows, labels) for name, rows in inputs.items()}
    return found


if __name__ == "__main__":
    main()
