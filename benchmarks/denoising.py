"""What finds injected noise, and what correcting it is worth: `python -m benchmarks.denoising [--seeds 0 1] [--out …]`.

On the 10 %-noise log of amazon-movies-llm4dsr (`benchmarks.denoising_data`). Detection: AUC over all history positions
of the test windows, and how often the highest of a window with one noisy event is that event; detectors learn from
the noisy training events alone and know no label. Training: the same settings on the clean log, the noisy one and
views of it; NDCG@10 by full ranking of the last events of the test windows, histories noisy or clean. An arm recovers
(NDCG of the arm - noisy) / (clean - noisy). Everything is kept below --work: a command that was stopped goes on.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.denoising_data import TEST_FROM, VALIDATION_FROM, noisy_events, read_windows, write_logs
from benchmarks.denoising_page import page
from models.noise_critic import NoiseCriticConfig
from models.tfidf import tfidf_vectors
from pipelines.denoise import CORRECTIONS, DenoiseConfig, denoise, material_of, stages
from pipelines.loading import fit_floor, run_scorer
from pipelines.noise_cascade import CalibrationConfig, calibrated
from pipelines.noise_detectors import Material, fitted_critic
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, make_split, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.catalog import Catalog
from recsys.click_metrics import auc
from recsys.contracts import CatalogScorer
from recsys.evaluation import rank_cases
from recsys.metrics import ndcg_at_k
from recsys.noise import Judged, NoiseWindows, OutlierDetector, coded
from recsys.prepared import Prepared, open_prepared
from recsys.relations import beside_others, other_pairs
from recsys.runs import open_run
from recsys.schema import open_dataset
from recsys.sequences import IntArray, SequenceStore
from recsys.splits import TrainingEvents
from recsys.steps import write_json

HISTORY = 10
STRATA = 3
DETECTION_SEEDS = (0, 1, 2)
PRECISION = 0.4
"""What corrections are expected to reach; the usual 0.7 is out of reach of the detectors here."""
ARMS: dict[str, dict[str, Any]] = {
    "clean": {},
    "noisy": {},
    "replace": {"action": "replace"},
    "drop": {"action": "drop"},
    "weight": {"action": "weight"},
}
COMMON = (
    "model.embedding_dim=64",
    "training.learning_rate=0.003",
    "training.schedule=cosine",
    "training.warmup_steps=30",
    "training.validation_cases=500",
    "training.precision=bf16",
)
MODELS = {
    "sasrec": ("model.max_len=10", "model.dropout=0.3", "training.epochs=14", "training.patience=14"),
    "bert4rec": (
        "model.max_len=11",
        "model.mask_share=0.4",
        "training.epochs=40",
        "training.patience=40",
    ),
}
FLOORS = ("popularity", "markov", "item-knn", "tfidf")
Scores = Mapping[str, np.ndarray]


def main() -> None:
    """Measures what is missing; writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/amazon-movies-llm4dsr"))
    parser.add_argument("--work", type=Path, default=Path("build/denoising"), help="where everything is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("docs/denoising.json"), help="figures; the page lies beside")
    arguments = parser.parse_args()
    if not (arguments.work / "noisy").exists():
        write_logs(arguments.source, arguments.work)
    reporter = Reporter()
    views = {arm: view(arm, arguments.source, arguments.work, reporter) for arm in ARMS}
    runs: dict[str, Any] = {}
    for seed in arguments.seeds:
        for model in arguments.models:
            for arm in ARMS:
                figures = trained(arm, model, seed, arguments.work, reporter)
                runs.setdefault(model, {}).setdefault(arm, {})[str(seed)] = figures
    floors = {arm: floor_figures(arm, arguments.work) for arm in ("clean", "noisy", "replace", "drop")}
    found = detection(arguments.source, arguments.work, reporter)
    figures = {"detection": found, "views": views, "models": runs, "floors": floors, "precision": PRECISION}
    write_json(arguments.out, figures)
    arguments.out.with_suffix(".md").write_text(page(figures), encoding="utf-8")


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a file, made where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class Bench:
    """The noisy log as detectors see it, and the test windows [N, L] with their labels."""

    config: DenoiseConfig
    material: Material
    windows: Judged
    labels: IntArray

    @classmethod
    def load(cls, source: Path, work: Path, seed: int, reporter: Reporter) -> "Bench":
        """With the detectors' `seed`."""
        config = denoising("replace", work, seed=seed)
        dataset = open_dataset(work / "noisy")
        events, items = dataset.events(), dataset.items()
        catalog = Catalog.from_ids(items["item_id"])
        store = SequenceStore.from_events(events, catalog)
        split, _ = make_split(store, dataset, config.splitting)
        material = material_of(
            config, TrainingEvents(store, split.train_stop, catalog.num_rows), catalog, items, reporter
        )
        test = read_windows(source, "test")
        rows = np.array([[catalog.rows[str(item)] for item in window.noisy] for window in test])
        lengths = np.full(len(rows), rows.shape[1])
        block = np.full(len(rows), material.relations.last_block)
        return cls(config, material, Judged(rows, lengths, block), np.array([window.mask for window in test]))


def denoising(arm: str, work: Path, seed: int = 0) -> DenoiseConfig:
    """Settings of the view of an arm."""
    return DenoiseConfig(
        dataset=work / "noisy",
        out=work / arm,
        precision=PRECISION,
        validation_from=VALIDATION_FROM,
        test_from=TEST_FROM,
        seed=seed,
        **ARMS[arm],
    )


def detection(source: Path, work: Path, reporter: Reporter) -> dict[str, Any]:
    """Figures of every detector by seed."""
    found: dict[str, Any] = {}
    for seed in DETECTION_SEEDS:
        one = kept(work / "figures" / f"detection-{seed}.json", partial(seed_figures, source, work, seed, reporter))
        for name, figures in one.items():
            found.setdefault(name, {})[str(seed)] = figures
    return found


def seed_figures(source: Path, work: Path, seed: int, reporter: Reporter) -> dict[str, Any]:
    """Figures of every detector; cascades, whose networks are those of the views, for the first seed alone."""
    bench = Bench.load(source, work, seed, reporter)
    counts = bench.material.events.item_counts()
    found = {name: detection_figures(scores, bench, counts) for name, scores in detectors(bench, reporter)}
    if seed == DETECTION_SEEDS[0]:
        found |= {name: detection_figures(scores, bench, counts) for name, scores in cascades(bench, reporter)}
    return found


def detectors(bench: Bench, reporter: Reporter) -> Iterator[tuple[str, np.ndarray]]:
    """Name and scores [N, L]; higher is more likely noise."""
    windows, material = bench.windows, bench.material
    rows, lengths = coded(windows, material.relations.num_rows)
    pairs = other_pairs(rows, lengths)
    by_occurrence, by_text = material.relations.similarities(rows)
    words = tfidf_vectors(material.titles).toarray()[windows.items]
    likeness = np.einsum("nid,njd->nij", words, words) * pairs.numpy()
    yield "random", np.random.default_rng(material.seed).random(windows.items.shape)
    yield "low popularity", -material.events.item_counts()[windows.items].astype(np.float64)
    yield "PPMI-SVD", -beside_others(by_occurrence, pairs)[2].numpy()
    yield "TF-IDF", -likeness.mean(axis=2)
    yield "MiniLM", -beside_others(by_text, pairs)[2].numpy()
    yield "outlier (PPMI-SVD and MiniLM)", OutlierDetector(material.relations).naming(windows)
    for alpha in (0.5,) if material.seed else (0.5, 0.0, 1.0):
        config = NoiseCriticConfig(num_items=material.events.num_rows - 1, alpha=alpha)
        critic = fitted_critic(material, config, material.events, material.key("all", alpha), reporter)
        yield f"critic, alpha {alpha:g}", critic.naming(windows)


def cascades(bench: Bench, reporter: Reporter) -> Iterator[tuple[str, np.ndarray]]:
    """Outliers first, the critic for a share of the windows or for all."""
    windows, material = bench.windows, bench.material
    training = NoiseWindows.cut(material.events.stops, bench.config.window).load(material.events.store, material.folds)
    for share in (0.2, 0.5, 1.0):
        both = stages(replace(bench.config, doubtful=share), material, reporter)
        settings = CalibrationConfig(noise_rate=0.1, precision=PRECISION, doubtful=share, seed=material.seed)
        cascade = calibrated(both, material, training, settings, reporter)
        yield (
            f"cascade, calibrated: critic for {share:.0%} of the windows",
            cascade.judge(material, windows, reporter, "test")[0],
        )


def detection_figures(scores: np.ndarray, bench: Bench, counts: IntArray) -> dict[str, Any]:
    """AUC over history positions, in popularity's thirds too, and hits in windows with one noisy event."""
    labels, told = bench.labels[:, :HISTORY], scores[:, :HISTORY].astype(np.float64)
    popularity = counts[bench.windows.items[:, :HISTORY]]
    stratum = np.searchsorted(np.quantile(popularity, np.arange(1, STRATA) / STRATA), popularity, side="left")
    one = labels.sum(axis=1) == 1
    return {
        "auc": auc(labels.ravel(), told.ravel()),
        "top1": float((told[one].argmax(axis=1) == labels[one].argmax(axis=1)).mean()),
        "strata": [auc(labels[stratum == part], told[stratum == part]) for part in range(STRATA)],
    }


def view(arm: str, source: Path, work: Path, reporter: Reporter) -> dict[str, Any]:
    """The arm's dataset, prepared; of a view what was corrected, beside the truth."""
    if not (work / arm).exists():
        denoise(denoising(arm, work), reporter)
    if not (work / f"{arm}-prepared").exists():
        prepare(
            PrepareConfig(
                dataset=work / arm,
                out=work / f"{arm}-prepared",
                validation_from=VALIDATION_FROM,
                test_from=TEST_FROM,
            )
        )
    if not ARMS[arm]:
        return {}
    counts = open_dataset(work / arm).manifest["counts"]
    truth = training_labels(source, work)
    keys = ["user_id", "timestamp"]
    changed = pl.read_parquet(work / arm / CORRECTIONS).join(truth, on=keys)
    noisy, probability = changed["noisy"].to_numpy(), changed["probability"].to_numpy()
    return {
        **{name: counts[name] for name in ("corrected", "precision", "recall", "false_corrections", "threshold")},
        "true_precision": float(noisy.mean()),
        "true_recall": float(noisy.sum() / truth["noisy"].to_numpy().sum()),
        "mean_probability_of_noise": float(probability[noisy == 1].mean()),
        "mean_probability_of_others": float(probability[noisy == 0].mean()),
    }


def training_labels(source: Path, work: Path) -> pl.DataFrame:
    """`user_id`, `timestamp` and whether the event was replaced, of all training events."""
    events = open_dataset(work / "noisy").events().select("user_id", "timestamp")
    training = events.filter(~pl.col("user_id").str.contains("-"))
    return training.with_columns(noisy=pl.Series(noisy_events(source)))


def trained(arm: str, model: str, seed: int, work: Path, reporter: Reporter) -> dict[str, Any]:
    """A run on the arm's data and its figures."""
    out = work / "runs" / f"{arm}-{model}-{seed}"
    if not out.exists():
        settings = (*COMMON, *MODELS[model])
        data = work / f"{arm}-prepared"
        train(TrainConfig(data=data, model=model, out=out, seed=seed, settings=settings, tracking=False), reporter)
    run = open_run(out)
    prepared = open_prepared(work / f"{arm}-prepared")
    return kept(work / "figures" / f"{out.name}.json", lambda: test_figures(run_scorer(run, prepared), prepared))


def floor_figures(arm: str, work: Path) -> dict[str, Any]:
    """Of models that count, on the arm's training and validation events."""
    prepared = open_prepared(work / f"{arm}-prepared")
    return {
        name: kept(
            work / "figures" / f"{arm}-{name}.json",
            partial(lambda name: test_figures(fit_floor(name, prepared, "test"), prepared), name),
        )
        for name in FLOORS
    }


def test_figures(scorer: CatalogScorer, prepared: Prepared) -> dict[str, Any]:
    """NDCG@10 of the last events of the test windows, by kind of history."""
    users = prepared.store.user_ids
    cases = prepared.cases("test").filter(pl.col("position") == HISTORY)
    ranked = rank_cases(scorer, prepared.store, cases, prepared.catalog.num_rows, "keep", (10,)).cases
    kinds = users.gather(ranked["user_idx"]).str.extract("test-([a-z]+)-").to_numpy()
    values = ndcg_at_k(ranked["rank"].to_numpy(), 10)
    return {kind: float(values[kinds == kind].mean()) for kind in ("clean", "noisy")}


if __name__ == "__main__":
    main()
