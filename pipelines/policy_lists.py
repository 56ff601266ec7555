"""What a model would have shown: lists for the histories that a service logged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.loading import run_scorer
from recsys.catalog import PADDING
from recsys.contracts import CatalogScorer
from recsys.errors import ConfigError
from recsys.evaluation import allowed_scores_of_cases
from recsys.metrics import IntArray
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer, top_k
from recsys.runs import Run, open_run
from recsys.sequences import SequenceStore
from recsys.steps import read_manifest

BUNDLE_CARD = "model.json"
Lister = Callable[[Sequence[Sequence[str]], int], pl.Series]
"""From histories and a length to lists of item ids."""


@dataclass(frozen=True)
class Policy:
    """A model that shows its best items, without chance and without those seen where its data said so."""

    name: str
    scorer: CatalogScorer
    prepared: Prepared

    @classmethod
    def open(cls, folder: Path) -> "Policy":
        """From a run, or from a bundle: the run that it was exported from."""
        run = _run_of(folder)
        prepared = run.prepared()
        scorer = run_scorer(run, prepared)
        if isinstance(scorer, RetrieverScorer) and scorer.model.reads_times:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{folder}: model {run.model!r} reads the times of events, and exposures log none; name another run."
            )
        return cls(folder.name, scorer, prepared)

    def lists(self, histories: Sequence[Sequence[str]], k: int) -> pl.Series:
        """The k best item ids for each history of item ids, best first; fewer where fewer are allowed."""
        catalog = self.prepared.catalog
        rows = [[catalog.rows[item] for item in history if item in catalog.rows] for history in histories]
        store, cases = _stored(rows)
        best = np.zeros((len(rows), min(k, catalog.num_rows)), dtype=np.int64)
        scored = allowed_scores_of_cases(
            self.scorer, store, cases, catalog.num_rows, self.prepared.seen, retired=catalog.retired_rows
        )
        for chosen, _, scores in scored:
            best[chosen] = top_k(scores, k).items.numpy()
        names = catalog.item_ids.to_list()
        return pl.Series([[names[row - 1] for row in rows if row] for rows in best.tolist()], dtype=pl.List(pl.String))


def _run_of(folder: Path) -> Run:
    if not (folder / BUNDLE_CARD).is_file():
        return open_run(folder)
    inputs = read_manifest(folder, "export")["inputs"]
    if len(inputs) > 1:
        raise ConfigError(
            f"{folder}: has a second stage, whose lists cannot be made without the service; name its retriever's run "
            "to judge that alone."
        )
    return open_run(Path(inputs[0]["path"]))


def _stored(rows: Sequence[IntArray | list[int]]) -> tuple[SequenceStore, pl.DataFrame]:
    """Histories as a store, and of each the case that follows its last event. Windows are cut from some event even
    where no history has any, so one of padding stands at the end."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    store = SequenceStore(
        offsets=np.r_[0, lengths.cumsum()].astype(np.int64),
        item_idx=np.array([*(item for row in rows for item in row), PADDING], dtype=np.int32),
        timestamp=np.zeros(lengths.sum() + 1, dtype=np.int64),
        user_ids=pl.Series("user_id", [str(number) for number in range(len(rows))], dtype=pl.String),
    )
    cases = pl.DataFrame({"user_idx": np.arange(len(rows)), "position": lengths})
    return store, cases
