"""What is asked of the recommender, what it answers, and what it knows in between."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from recsys.index import FloatArray, RowArray
from serving.boosts import Boost
from serving.diversity import Diversity
from serving.encodings import Origin
from serving.filters import Filter
from serving.keys import KeyOrigin
from serving.ranking import Unranked
from serving.retrieval import Shelf, Wanted

Source = Literal["model", "no_history"]
Stage = Literal["state", "encode", "search", "rank"]
Stored = Literal["read", "unavailable"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, kw_only=True)
class Query:
    """Whose next items are asked for: the stored events of `user_id`, then `history`, oldest first.

    `reasoning_steps`: None for as many as the model was trained with. `rank`: whether the bundle's ranker, if it has
    one, orders what was found. `shown`: marks of what pages before have shown (`serving.paging`). `why`: how many items
    of the history each item is explained by. `fields`: which ones the answer will show.
    """

    history: Sequence[str] = ()
    user_id: str | None = None
    k: int = 10
    exclude_seen: bool | None = None
    exclude: Sequence[str] = ()
    reasoning_steps: int | None = None
    rank: bool = True
    filter: Filter = field(default_factory=dict)
    boosts: Sequence[Boost] = ()
    diversity: Diversity | None = None
    shown: Sequence[bytes] = ()
    why: int = 0
    fields: Sequence[str] = ()

    @property
    def depth(self) -> int:
        """How many items are asked for, those of the pages before included."""
        return self.k + len(self.shown)

    def within(self, most_steps: int) -> "Query":
        """As a bundle can answer it whose model reasons no further: it was asked of another one."""
        steps = self.reasoning_steps
        return self if steps is None else replace(self, reasoning_steps=min(steps, most_steps))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Best first; `history` is all that was read, `history_length` the known events in it.

    `encoding`: how the model's vector came about, None where there was nothing to encode. `rank_keys` and
    `rank_events`: how the keys came about by which a ranker ordered the items, and of how many events, None and 0 where
    none did; `unranked` is the reason, None for a bundle without a ranker. `why`: for each item the rows of the history
    whose vectors point the most in its direction, and the cosines. `more`: whether further items may be left. `stored`:
    whether the user's events could be read, None where none were asked for.
    """

    rows: RowArray
    scores: FloatArray
    why: list[list[tuple[int, float]]]
    more: bool
    source: Source
    encoding: Origin | None
    rank_keys: KeyOrigin | None
    rank_events: int
    unranked: Unranked | None
    stored: Stored | None
    history: Sequence[str]
    history_length: int
    history_used: int
    unknown_items: list[str]
    seconds: dict[Stage, float]

    @property
    def stages(self) -> list[Stage]:
        """Those that ran, in order."""
        return [stage for stage, seconds in self.seconds.items() if seconds]


@dataclass(frozen=True)
class Found:
    """Items, best first, and how they came to be so; see `Answer`."""

    rows: RowArray
    scores: FloatArray
    rank_keys: KeyOrigin | None = None
    rank_events: int = 0
    unranked: Unranked | None = None


@dataclass(frozen=True)
class Stages:
    """Seconds spent in each stage; 0 where one was not needed."""

    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def measured(self, stage: Stage) -> Iterator[None]:
        """Adds the time inside the block to `stage`."""
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A query, and what is known of it before anything is computed: the known events, and what may be answered."""

    query: Query
    stored: Stored | None
    history: Sequence[str]
    rows: RowArray
    unknown: list[str]
    window: RowArray
    shelf: Shelf
    wanted: Wanted
    stages: Stages
