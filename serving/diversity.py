"""A list less alike than the best items are: a quota by a field's value, and maximal marginal relevance.

MMR takes the next item by lambda x relevance - (1 - lambda) x its largest cosine with an item taken before
(Carbonell & Goldstein, 1998); relevance is the score, scaled to 0..1 over the candidates.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.index import FloatArray

Counted = Literal["each", "first", "last"]
"""Which of an item's values count against a quota."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """At most `most` items of one value of `field`; items without a value are not limited."""

    field: str
    most: int
    of: Counted = "each"

    def counted(self, values: Sequence[str]) -> list[str]:
        """The values that count, each once."""
        return list(dict.fromkeys({"each": values, "first": values[:1], "last": values[-1:]}[self.of]))


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Either, or both; `mmr` is lambda: 1 keeps the order of the scores."""

    quota: Quota | None = None
    mmr: float = 1.0


def diverse(
    scores: FloatArray, k: int, diversity: Diversity, unit: FloatArray, values: Sequence[Sequence[str]]
) -> list[int]:
    """Places of up to `k` of C candidates in the order they are taken.

    `scores` [C] fall, `unit` [C, D] are the items' vectors of length 1, `values` what the quota's field says of each.
    """
    relevance = diversity.mmr * _scaled(scores)
    nearest, free = np.zeros(len(scores)), np.ones(len(scores), dtype=np.bool_)
    taken: Counter[str] = Counter()
    places: list[int] = []
    while len(places) < k and free.any():
        place = int(np.argmax(np.where(free, relevance - (1 - diversity.mmr) * nearest, -np.inf)))
        free[place] = False
        counted = diversity.quota.counted(values[place]) if diversity.quota else []
        if diversity.quota and any(taken[value] >= diversity.quota.most for value in counted):
            continue
        taken.update(counted)
        cosines = unit @ unit[place]
        nearest = np.maximum(nearest, cosines) if places else cosines
        places.append(place)
    return places


def _scaled(scores: FloatArray) -> FloatArray:
    """To 0..1; zeros where all are equal."""
    if not len(scores):
        return scores
    least, most = scores.min(), scores.max()
    return (scores - least) / (most - least) if most > least else np.zeros_like(scores)
