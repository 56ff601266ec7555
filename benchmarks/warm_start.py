"""What a warm start wins when items are new: `python -m benchmarks.warm_start DATASET [--out PAGE]`.

DATASET: output of `recsys ingest`, with texts. A tenth of the items, drawn at random, is new: their events are left out
of the log that the first run learns from. The whole log is then prepared with `--extend`, and these stand beside each
other on its test part, for targets that are new and for the others:

    before       the first run itself, which has no row for new items (it never names one)
    mean row     begins with it, no training; new items have the mean of its rows
    text row     the same, rows by their texts
    warm         trained on from there (rows by texts, or the mean)
    cold         trained from scratch on the whole log

What is there is not trained again.
"""

import argparse
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.evaluate import CASES, EvaluateConfig, evaluate
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.prepared import Prepared, open_prepared
from recsys.runs import Run, open_run
from recsys.schema import open_dataset
from recsys.steps import writing_step

NEW_SHARE = 0.1
PAGE = Path("docs/warm-start.md")
CUTOFF = 10


def main() -> None:
    """Trains what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="output of `recsys ingest`, with texts")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/warm-start"), help="where data and runs are kept")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    arguments = parser.parse_args()
    figures = pl.DataFrame([
        row for seed in arguments.seeds for row in of_seed(arguments, arguments.work / str(seed), seed)
    ])
    arguments.out.write_text(page(arguments, figures), encoding="utf-8")


def of_seed(arguments: argparse.Namespace, folder: Path, seed: int) -> Iterator[dict[str, float | str | int]]:
    """A row of figures for each contestant."""
    new = drawn_items(arguments.dataset, seed)
    before = prepared(without(arguments.dataset, folder / "first", new), folder / "before")
    after = prepared(arguments.dataset, folder / "after", extend=before.folder)
    bare = prepared(untitled(arguments.dataset, folder / "bare"), folder / "after-bare", extend=before.folder)
    first = run(arguments, before, folder / "run-before", seed)
    yield {"name": "before", "seed": seed, **figures_of(first, before, new)}
    for name, data, init, untrained in (
        ("mean row", bare, first, True),
        ("text row", after, first, True),
        ("warm, mean row", bare, first, False),
        ("warm, text row", after, first, False),
        ("cold", after, None, False),
    ):
        made = run(arguments, data, folder / f"run-{name.replace(', ', '-').replace(' ', '-')}", seed, init, untrained)
        yield {"name": name, "seed": seed, **figures_of(made, data, new)}


def drawn_items(dataset: Path, seed: int) -> set[str]:
    """The new ones, among all that have events."""
    items = open_dataset(dataset).events()["item_id"].unique().sort().to_numpy()
    return set(np.random.default_rng(seed).choice(items, round(NEW_SHARE * len(items)), replace=False))


def without(dataset: Path, folder: Path, items: set[str]) -> Path:
    """The dataset as it was before these items came."""
    whole = open_dataset(dataset)
    kept = ~pl.col("item_id").is_in(list(items))
    return written(folder, whole.time, whole.events().filter(kept), whole.items().filter(kept))


def untitled(dataset: Path, folder: Path) -> Path:
    """The dataset without texts."""
    whole = open_dataset(dataset)
    return written(folder, whole.time, whole.events(), whole.items().select("item_id"))


def written(folder: Path, time: str, events: pl.DataFrame, items: pl.DataFrame) -> Path:
    """As `recsys ingest` would leave it, once."""
    if not folder.exists():
        with writing_step("ingest", folder, config={}) as step:
            (step.folder / "events").mkdir()
            events.write_parquet(step.folder / "events" / "part-00000.parquet")
            items.write_parquet(step.folder / "items.parquet")
            step.counts["time"] = time
    return folder


def prepared(dataset: Path, folder: Path, extend: Path | None = None) -> Prepared:
    """Leave-one-out."""
    if folder.exists():
        return open_prepared(folder)
    return prepare(PrepareConfig(dataset=dataset, out=folder, split="last-item", extend=extend))


def run(
    arguments: argparse.Namespace,
    data: Prepared,
    folder: Path,
    seed: int,
    init: Run | None = None,
    untrained: bool = False,
) -> Run:
    """Trained and evaluated once."""
    if not folder.exists():
        train(
            TrainConfig(
                data=data.folder,
                model=arguments.model,
                preset=arguments.preset,
                out=folder,
                init=None if init is None else init.folder,
                settings=("training.epochs=0",) if untrained else (),
                seed=seed,
                tracking=False,
            ),
            Reporter(),
        )
    made = open_run(folder)
    if not (made.evaluation("test") / CASES).exists():
        evaluate(EvaluateConfig(runs=(folder,)), Reporter())
    return made


def figures_of(made: Run, data: Prepared, new: set[str]) -> dict[str, float | int]:
    """NDCG@10 of targets that are new and of the others, and what the training took."""
    cases = pl.read_parquet(made.evaluation("test") / CASES)
    names = data.catalog.item_ids.gather(cases["target"] - 1)
    is_new = names.is_in(list(new)).to_numpy()
    ranks = cases["rank"].to_numpy()
    gains = np.where(ranks <= CUTOFF, 1 / np.log2(1 + ranks), 0.0)
    counts = made.manifest["counts"]
    return {
        "new": float(gains[is_new].mean()) if is_new.any() else math.nan,
        "others": float(gains[~is_new].mean()),
        "all": float(gains.mean()),
        "new_cases": int(is_new.sum()),
        "epochs": int(counts["best_epoch"]),
        "seconds": float(counts["training_seconds"]) * counts["best_epoch"] / max(1, counts["epochs"]),
    }


def page(arguments: argparse.Namespace, figures: pl.DataFrame) -> str:
    """The table, means and standard deviations over seeds."""
    names = figures["name"].unique(maintain_order=True)
    lines = ["| | new targets | other targets | all | best epoch | seconds to it |", "|---|---|---|---|---|---|"]
    for name in names:
        rows = figures.filter(pl.col("name") == name)
        cells = [spread(rows[column]) for column in ("new", "others", "all")]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {rows['epochs'].to_numpy().mean():.0f} | "
            f"{rows['seconds'].to_numpy().mean():.0f} |"
        )
    seeds, day = ", ".join(map(str, arguments.seeds)), datetime.now(UTC).date().isoformat()
    cases = int(figures["new_cases"].to_numpy().max())
    return "\n".join([
        "# Warm starts with new items",
        "",
        "Written by `python -m benchmarks.warm_start`; do not edit. NDCG@10 by full ranking, leave-one-out, mean over "
        f"seeds {seeds} ± standard deviation. A tenth of the items (other ones for each seed) is left out of the log "
        "that the first run learns from; it then begins a run on the whole log (`recsys prepare --extend`, `recsys "
        f"train --warm-start`). Some {cases} test cases have a new target. {arguments.model}, preset "
        f"{arguments.preset}, {arguments.dataset.parent.name}; {day}, 2 cores, no accelerator, beside other work: "
        "seconds are to be compared with each other alone. `before` is judged on the log it knows, of the same users.",
        "",
        *lines,
        "",
    ])


def spread(column: pl.Series) -> str:
    """Mean and standard deviation; a dash where there is none."""
    values = column.to_numpy()
    if np.isnan(values).any():
        return "-"
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
