"""A variant beside its base: paired differences over all seeds at hand, and what each reasoning step is worth.

Kept as benchmarks/records/EXPERIMENT/contrast-VARIANT.json, made anew whenever a run is added. Users are resampled,
each with its cases of all seeds, so a seed more makes the interval narrower only by what seeds add as noise.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.records import RECORDS, Experiment, Judged
from models.rearec import ReaRec
from pipelines.evaluate import CASES
from pipelines.loading import no_history, run_model
from recsys.batches import Histories
from recsys.comparison import PairedCases
from recsys.contracts import Reasoner
from recsys.evaluation import rank_cases, segment_rows
from recsys.metrics import IntArray, case_metrics
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.runs import Run
from recsys.steps import write_json

METRIC, CUTOFF, DRAWS = "ndcg@10", 10, 2_000
FEW_EVENTS = 10
RARE_ITEMS = f"item: fewer than {FEW_EVENTS} events"
"""A segment besides those of `recsys.evaluation.segments`: targets by their training events, a number and no share."""
SEED_STRIDE = 1_000_000
"""Added to a case's position, seed by seed, so that each seed's case stays one of its own."""


@dataclass(frozen=True)
class AfterSteps:
    """A model that reasons, stopped after so many steps."""

    model: Reasoner
    steps: int

    @property
    def max_len(self) -> int:
        """Events of a history that are read."""
        return self.model.max_len

    def encode(self, batch: Histories) -> Float[Tensor, "B D"]:
        """The answer after the steps."""
        return self.model.answers(batch)[self.steps]

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The model's."""
        return self.model.item_vectors()


def contrast_file(experiment: Experiment, variant: str) -> Path:
    """Where a variant's contrast is kept."""
    return RECORDS / experiment.name / f"contrast-{variant}.json"


def write_contrast(experiment: Experiment, variant: str, pairs: dict[int, tuple[Judged, Judged]]) -> None:
    """Keeps what the runs of base and variant, seed by seed, say of the two."""
    base = experiment.models[variant]["against"]
    known = read_contrast(experiment, variant)
    if known is not None and not set(known["seeds"]) <= set(pairs):
        return  # made on a machine that had more of the runs
    base_cases, cases = (pooled({seed: runs[side] for seed, runs in pairs.items()}) for side in (0, 1))
    paired = PairedCases.of(base_cases, cases, (CUTOFF,), DRAWS, seed=0)
    differences = paired.differences("all")
    for segment, rows in segment_rows(paired.cases):
        differences += paired.differences(segment, rows)
    rare = rows_of_rare_items(paired.cases, next(iter(pairs.values()))[0].run.prepared())
    if len(rare):
        differences += paired.differences(RARE_ITEMS, rare)
    kept = ("cases", "users", "mean_a", "mean_b", "difference", "low", "high", "p_value")
    steps = [by_steps(runs[1].run) for runs in pairs.values()]
    write_json(
        contrast_file(experiment, variant),
        {
            "settings": [experiment.settings_hash(base), experiment.settings_hash(variant)],
            "base": base,
            "seeds": sorted(pairs),
            "segments": {
                entry.segment: {name: getattr(entry, name) for name in kept}
                for entry in differences
                if entry.metric == METRIC
            },
            "steps": [mean_of(same) for same in zip(*steps, strict=True)],
        },
    )


def rows_of_rare_items(cases: pl.DataFrame, prepared: Prepared) -> IntArray:
    """Cases that ask for an item with few training events, or none."""
    return np.flatnonzero(prepared.training_events().item_counts()[cases["target"].to_numpy()] < FEW_EVENTS)


def mean_of(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: float(np.mean([entry[key] for entry in figures])) for key in figures[0]}


def read_contrast(experiment: Experiment, variant: str) -> dict[str, Any] | None:
    """The contrast, None where there is none of today's settings."""
    path = contrast_file(experiment, variant)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    wanted = [experiment.settings_hash(name) for name in (experiment.models[variant]["against"], variant)]
    return record if record["settings"] == wanted else None


def pooled(runs: dict[int, Judged]) -> pl.DataFrame:
    """The test cases of all seeds, one below the other."""
    return pl.concat([
        pl.read_parquet(judged.evaluation / CASES).with_columns(
            position=pl.col("position").cast(pl.Int64) + SEED_STRIDE * seed
        )
        for seed, judged in sorted(runs.items())
    ])


@torch.no_grad()
def by_steps(run: Run) -> list[dict[str, float]]:
    """Test figures after 0 to K steps; empty for a model that does not reason.

    ERL's answer after some steps is the mean of the states so far. `best so far` is that of an oracle which picks, case
    by case, the best of these answers: it knows the target, and gains by chance alone too. `similarity` is the mean
    cosine of a state with the one before it.
    """
    prepared = run.prepared()
    _, model = run_model(run, prepared)
    if not isinstance(model, ReaRec):
        return []
    fallback = no_history(prepared, run.fit_on).scores
    cases = pl.read_parquet(run.evaluation("test") / CASES).drop("rank")
    figures, best = [], np.zeros(len(cases))
    similarities = similarity(model, list(histories(run, cases)))
    for steps in range(model.most_steps + 1):
        scorer = RetrieverScorer(AfterSteps(model, steps), fallback)
        ranked = rank_cases(scorer, prepared.store, cases, prepared.catalog.num_rows, prepared.seen, (CUTOFF,))
        values = case_metrics(ranked.cases["rank"].to_numpy().astype(np.int64), (CUTOFF,))
        best = np.maximum(best, values[METRIC])
        figures.append({
            METRIC: float(values[METRIC].mean()),
            "hit_rate@10": float(values["hit_rate@10"].mean()),
            "best so far": float(best.mean()),
            "similarity": similarities[steps],
        })
    return figures


def histories(run: Run, cases: pl.DataFrame, size: int = 512) -> Iterator[Histories]:
    """Those of the cases that have one."""
    prepared = run.prepared()
    known = cases.filter(pl.col("history_length") > 0).sort("position")
    for part in known.iter_slices(size):
        users, positions = (part[name].to_numpy().astype(np.int64) for name in ("user_idx", "position"))
        longest = run.config["model"]["max_len"]
        yield Histories.from_windows(prepared.store.windows(users, positions, longest))


def similarity(model: ReaRec, batches: Sequence[Histories]) -> list[float]:
    """Mean cosine of each state with the one before it; 1 for the first."""
    sums, count = np.zeros(model.most_steps + 1), 0
    for batch in batches:
        states = torch.nn.functional.normalize(model.reason(batch), dim=2)
        sums[1:] += (states[1:] * states[:-1]).sum(dim=(1, 2)).numpy()
        sums[0] += len(batch.lengths)
        count += len(batch.lengths)
    return [float(value) for value in sums / count]
