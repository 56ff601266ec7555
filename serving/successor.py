"""Whether a bundle that was loaded may take another's place: it answers what was asked of that one last."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.errors import BundleError
from serving.fields import FieldError
from serving.queries import Answer, Query
from serving.service import Service
from serving.settings import Settings

TRIED = 8
"""Items whose histories are tried where nothing was asked yet."""


@dataclass(frozen=True)
class Trial:
    """What was seen of a bundle that may follow: answers it gave, and the share of their items that are as before."""

    answers: int
    overlap: float

    def __str__(self) -> str:
        return f"{self.answers} requests answered, {self.overlap:.0%} of their items as before"


def check_successor(new: Service, old: Service, settings: Settings) -> Trial:
    """A `BundleError` where `new` must not follow `old`. Answering also warms it up."""
    _check_recall(new, settings.least_recall)
    _check_catalogue(new, old, settings.least_shared_items)
    # of a user who is deleted meanwhile, neither keeps what was asked
    with new.recommender.heeding_deletions(), old.recommender.heeding_deletions():
        queries = [Query(), *(old.recommender.recent() or _first_queries(old))]
        overlaps = [
            _overlap(query, _answer(query, new), old.recommender.recommend(query), new, old) for query in queries
        ]
    return Trial(len(queries), float(np.mean(overlaps)))


def _check_recall(new: Service, least: float) -> None:
    recall = new.bundle.manifest["counts"].get("index", {}).get("recall", 1.0)
    if not recall >= least:
        raise BundleError(
            f"{new.bundle.folder}: its index finds {recall:.3f} of the best items, and {least:g} are needed; export it "
            "again with --index flat, or lower RECSYS_LEAST_RECALL."
        )


def _check_catalogue(new: Service, old: Service, least: float) -> None:
    """Most histories would otherwise be unknown items."""
    sold = [item_id for item_id in old.bundle.catalog.rows if item_id not in old.bundle.catalog.retired]
    share = sum(item_id in new.bundle.catalog.rows for item_id in sold) / max(len(sold), 1)
    if share < least:
        raise BundleError(
            f"{new.bundle.folder}: knows {share:.1%} of the items of bundle {old.bundle.version}, and {least:.0%} are "
            "needed: is it of other data? Lower RECSYS_LEAST_SHARED_ITEMS if it should follow all the same."
        )


def _first_queries(old: Service) -> Sequence[Query]:
    ids = old.bundle.catalog.item_ids
    return [Query(history=[ids[place]]) for place in np.linspace(0, len(ids) - 1, TRIED).astype(int).tolist()]


def _answer(query: Query, new: Service) -> Answer:
    try:
        answer = new.recommender.recommend(query.within(new.recommender.most_steps))
    except FieldError as error:
        place = ".".join(map(str, error.place))
        raise BundleError(
            f"{new.bundle.folder}: cannot answer what is asked now ({place}: {error.message}); export it over "
            "data with these fields."
        ) from None
    if not np.isfinite(answer.scores).all():
        raise BundleError(f"{new.bundle.folder}: gives scores that are no numbers; train and export again.")
    return answer


def _overlap(query: Query, answer: Answer, before: Answer, new: Service, old: Service) -> float:
    """Share of the items before that are there again."""
    if not len(before.rows):
        return 1.0
    if not len(answer.rows) and not query.filter:
        raise BundleError(f"{new.bundle.folder}: finds no item where bundle {old.bundle.version} found some.")
    shown = {new.items.item_id(row) for row in answer.rows.tolist()}
    return sum(old.items.item_id(row) in shown for row in before.rows.tolist()) / len(before.rows)
