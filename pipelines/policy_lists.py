"""What a model would have shown: lists for the histories that a service logged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.loading import run_scorer
from recsys.catalog import PADDING, Catalog
from recsys.contracts import CatalogScorer
from recsys.errors import ConfigError
from recsys.evaluation import allowed_scores_of_cases
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer, top_k
from recsys.runs import Run, open_run
from recsys.sequences import SequenceStore
from recsys.steps import read_manifest

BUNDLE_CARD = "model.json"
Lister = Callable[[pl.Series, int], pl.Series]
"""From histories of item ids and a length to lists of item ids."""


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

    def lists(self, histories: pl.Series, k: int) -> pl.Series:
        """The k best item ids for each history of item ids, best first; fewer where fewer are allowed."""
        catalog = self.prepared.catalog
        store, cases = _stored(histories, catalog)
        best = np.zeros((len(histories), min(k, catalog.num_rows)), dtype=np.int64)
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


def _stored(histories: pl.Series, catalog: Catalog) -> tuple[SequenceStore, pl.DataFrame]:
    """What the catalogue knows of the histories as a store, and of each the case that follows its last event.

    Windows are cut from some event even where no history has any, so one of padding stands at the end.
    """
    rows = pl.DataFrame({"item_id": catalog.item_ids}).with_row_index("row", offset=1)
    events = pl.DataFrame({"item_id": histories.cast(pl.List(pl.String))}).with_row_index("case").explode("item_id")
    known = events.join(rows, on="item_id", maintain_order="left")
    lengths = np.bincount(known["case"].to_numpy(), minlength=len(histories)).astype(np.int64)
    store = SequenceStore(
        offsets=np.r_[0, lengths.cumsum()].astype(np.int64),
        item_idx=np.append(known["row"].to_numpy().astype(np.int32), np.int32(PADDING)),
        timestamp=np.zeros(len(known) + 1, dtype=np.int64),
        user_ids=pl.Series("user_id", np.arange(len(histories))).cast(pl.String),
    )
    return store, pl.DataFrame({"user_idx": np.arange(len(histories)), "position": lengths})
