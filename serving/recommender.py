"""History to ranked items: bundle, encoder and state become one answer. Numpy only."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from recsys.bundle import Bundle
from recsys.index import FloatArray, RowArray
from serving import paging
from serving.boosts import Boosted
from serving.diversity import diverse
from serving.encoder import Encoder, Encoding
from serving.encodings import CacheSize, Encodings, Origin
from serving.fields import FieldError, Fields
from serving.filters import Filter, Filters, Passing
from serving.fitting import check_fit
from serving.new_items import NewVectors
from serving.queries import Answer, Asked, Found, Query, Stages, Stored
from serving.ranking import SecondStage
from serving.retrieval import Popular, Shelf, Wanted, cosine_index
from serving.state import StateError, UserState

CANDIDATES = 500
"""Among so many of the best items a diverse list is chosen."""
RECENT = 32
"""Queries that are kept, for the next bundle to be tried with."""


class Recommender:
    """Answers queries from one bundle; safe to share between threads."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: Encoder,
        state: UserState,
        cache_bytes: int = 0,
        cache_seconds: float = 3600,
        key_cache_bytes: int = 0,
        filter_cache_bytes: int = 0,
    ) -> None:
        check_fit(bundle, encoder)
        self._bundle = bundle
        self._state = state
        self._heeded = state.deletions
        self._encodings = Encodings(encoder, cache_bytes, cache_seconds)
        self._second = None if bundle.ranker is None else SecondStage(bundle.ranker, key_cache_bytes, cache_seconds)
        self.most_steps = encoder.most_steps
        self.fields = Fields(bundle.items)
        self._filters = Filters(self.fields, filter_cache_bytes)
        self._item_rows = dict(bundle.catalog.rows)
        self._new = NewVectors(bundle.catalog.num_rows, np.zeros((0, bundle.index.width), dtype=np.float32))
        self._retired = bundle.catalog.retired_rows
        self._popular = Popular(bundle.no_history)
        self._cosine = cosine_index(bundle.index)
        self._recent: deque[Query] = deque(maxlen=RECENT)

    def cache_size(self) -> CacheSize:
        """Of the encodings that are kept."""
        return self._encodings.size()

    def key_cache_size(self) -> CacheSize:
        """Of the keys that are kept for the ranker."""
        return CacheSize(0, 0) if self._second is None else self._second.cache_size()

    @property
    def ranks(self) -> bool:
        """Whether there is a second stage."""
        return self._second is not None

    def recommend(self, query: Query) -> Answer:
        """The `k` best allowed items (fewer where fewer are left); never a retired one.

        A `FieldError` where the query asks for fields that items do not have.
        """
        with self.heeding_deletions():
            return self._answers([self._asked(query)])[0]

    def recommend_all(self, queries: Sequence[Query]) -> list[Answer]:
        """The same of each query; histories that must be encoded are encoded at once."""
        with self.heeding_deletions():
            asked = []
            for number, query in enumerate(queries):
                try:
                    asked.append(self._asked(query))
                except FieldError as error:
                    raise error.within("requests", number) from None
            return self._answers(asked)

    def kept_events(self, user_id: str) -> int:
        """How many of a user's events have keys that are kept."""
        return 0 if self._second is None else self._second.kept_events(user_id)

    def drop_kept(self) -> None:
        """Encodings, keys and recent queries: somebody was deleted, and they do not say whose they are."""
        self._encodings.clear()
        self._recent.clear()
        if self._second is not None:
            self._second.drop_kept()

    def rest(self) -> None:
        """Drops all that only makes answers faster: others answer from now on."""
        self.drop_kept()
        self._filters.clear()

    def admit(self, rows: Mapping[str, int], vectors: FloatArray) -> None:
        """From now on these items can be found by their vectors [N, D]: the next new rows, or some written anew.

        Their fields were written before: a request that finds an item also knows what it is.
        """
        self._new = self._new.written(list(rows.values()), vectors)
        if not rows.keys().isdisjoint(self._item_rows):
            self._encodings.clear()
        self._item_rows |= rows

    def retire(self, rows: RowArray) -> None:
        """From now on these items are in no answer, nor those that the bundle retired, and all others may be."""
        self._retired = np.union1d(self._bundle.catalog.retired_rows, rows)

    def recent(self) -> list[Query]:
        """What was asked last about histories that hold known items; with the events that were read, and of nobody."""
        return list(self._recent)

    def is_retired(self, row: int) -> bool:
        """Whether the item is in no answer."""
        return row in self._retired

    @property
    def num_rows(self) -> int:
        """Rows of the bundle and of new items."""
        return self._new.first + len(self._new.vectors)

    def row(self, item_id: str) -> int | None:
        """The item's row, None where nobody has said what it is."""
        return self._item_rows.get(item_id)

    def similar(self, row: int, k: int) -> tuple[RowArray, FloatArray]:
        """The `k` items of largest cosine with item `row`, and the cosines; neither itself nor retired ones."""
        shelf = Shelf(self._cosine, self._new.of_length_one())
        return shelf.nearest(shelf.vectors(np.array([row])), k, Wanted(np.append(self._retired, row)))

    def popular(self, k: int) -> RowArray:
        """The `k` best items for a user without history."""
        return self._popular.best(k, Wanted(self._retired))[0]

    def known(self, item_ids: Iterable[str]) -> tuple[RowArray, list[str]]:
        """Rows of the ids that the catalogue knows, in order, and the ids that it does not."""
        asked = [(item_id, self._item_rows.get(item_id)) for item_id in item_ids]
        rows = [row for _, row in asked if row is not None]
        return np.array(rows, dtype=np.int64), [item_id for item_id, row in asked if row is None]

    @contextmanager
    def heeding_deletions(self) -> Iterator[None]:
        """Drops what is kept if a user was deleted, by any process, perhaps after a history was read in the block."""
        before = self._heeded
        try:
            yield
        finally:
            self._heeded = self._state.deletions  # others read the state too, and would hide a change since
            if self._heeded != before:
                self.drop_kept()

    def _asked(self, query: Query) -> Asked:
        """Rows are looked up before the shelf is read, and fields after it: an item may come in between."""
        stages = Stages()
        history, stored = self._whole_history(query, stages)
        if stored == "unavailable":
            query = replace(query, user_id=None)  # what is kept of the user belongs to another history
        rows, unknown = self.known(history)
        barred, unknown_barred = self.known(query.exclude)
        shelf = Shelf(self._bundle.index, self._new)
        with stages.measured("search"):
            wanted = self._wanted(query, np.concatenate([barred, rows if self._hides_seen(query) else []]))
        return Asked(
            query=query,
            stored=stored,
            history=history,
            rows=rows,
            unknown=list(dict.fromkeys(unknown + unknown_barred)),
            window=rows[-self._bundle.card.max_len :],
            shelf=shelf,
            wanted=wanted,
            stages=stages,
        )

    def _whole_history(self, query: Query, stages: Stages) -> tuple[Sequence[str], Stored | None]:
        """The stored events, then those that came along; the latter alone where the state does not answer."""
        if query.user_id is None:
            return query.history, None
        with stages.measured("state"):
            try:
                return [*self._state.history(query.user_id), *query.history], "read"
            except StateError:
                return query.history, "unavailable"

    def _hides_seen(self, query: Query) -> bool:
        return self._bundle.card.seen == "exclude" if query.exclude_seen is None else query.exclude_seen

    def _wanted(self, query: Query, barred: RowArray) -> Wanted:
        if query.diversity is not None and query.diversity.quota is not None:
            self._check_field(query.diversity.quota.field, "diversity", "quota", "field")
        for number, name in enumerate(query.fields):
            self._check_field(name, "fields", number)
        boosted = [self._passing(boost.filter, "boosts", number) for number, boost in enumerate(query.boosts)]
        return Wanted(
            excluded=np.concatenate([self._retired, barred]).astype(np.int64),
            passing=self._passing(query.filter) if query.filter else None,
            boosted=Boosted(query.boosts, boosted),
        )

    def _check_field(self, name: str, *place: str | int) -> None:
        try:
            self.fields.check(name)
        except FieldError as error:
            raise error.within(*place) from None

    def _passing(self, asked: Filter, *place: str | int) -> Passing:
        try:
            return self._filters.passing(asked)
        except FieldError as error:
            raise error.within(*place, "filter") from None

    def _answers(self, asked: Sequence[Asked]) -> list[Answer]:
        encoded = iter(self._encoded([one for one in asked if len(one.window)]))
        return [self._answer(one, next(encoded) if len(one.window) else None) for one in asked]

    def _encoded(self, asked: Sequence[Asked]) -> list[tuple[Encoding, Origin]]:
        """Of each window; the time is shared."""
        started = time.perf_counter()
        encoded = self._encodings.of_all([one.window for one in asked])
        for one in asked:
            one.stages.seconds["encode"] += (time.perf_counter() - started) / len(asked)
        return encoded

    def _answer(self, asked: Asked, encoded: tuple[Encoding, Origin] | None) -> Answer:
        found = self._found(asked, None if encoded is None else encoded[0])
        if encoded is not None:
            self._recent.append(replace(asked.query, history=asked.history, user_id=None))
        with asked.stages.measured("search"):
            rows, scores = self._arranged(asked, found)
            page, query = self._page(asked.query, rows), asked.query
            why = self._why(asked, rows[page]) if query.why else [[] for _ in page]
        return Answer(
            rows=rows[page],
            scores=scores[page],
            why=why,
            more=len(rows) == query.depth,
            source="no_history" if encoded is None else "model",
            encoding=None if encoded is None else encoded[1],
            rank_keys=found.rank_keys,
            rank_events=found.rank_events,
            unranked=found.unranked,
            stored=asked.stored,
            history=asked.history,
            history_length=len(asked.rows),
            history_used=len(asked.window),
            unknown_items=asked.unknown,
            seconds=asked.stages.seconds,
        )

    def _found(self, asked: Asked, encoding: Encoding | None) -> Found:
        """What the stages make of the known events of the whole history, before boosts."""
        query, depth = asked.query, asked.query.depth
        if query.diversity is not None:
            depth = max(depth, CANDIDATES)
        if self._second is None:
            return self._retrieved(asked, encoding, depth)
        events = self._second.read(asked.rows)
        if not query.rank or events is None:
            found = self._retrieved(asked, encoding, depth)
            return replace(found, unranked="short history" if query.rank else "not asked")
        found = self._retrieved(asked, encoding, max(depth, self._second.candidates))
        if not len(found.rows):
            return found
        with asked.stages.measured("rank"):
            ranked = self._second.ranked(query.user_id, events, found.rows, found.scores)
        if ranked is None:
            return replace(found, unranked="only new items")
        return Found(ranked.rows, ranked.scores, ranked.keys, ranked.events)

    def _retrieved(self, asked: Asked, encoding: Encoding | None, k: int) -> Found:
        """The first stage: the `k` best by inner product, or by popularity where nothing is known."""
        with asked.stages.measured("search"):
            if encoding is None:
                return Found(*self._popular.best(k, asked.wanted))
            return Found(*asked.shelf.nearest(encoding.vector(asked.query.reasoning_steps), k, asked.wanted))

    def _arranged(self, asked: Asked, found: Found) -> tuple[RowArray, FloatArray]:
        """The list that pages are cut from: by boosted scores, then made diverse."""
        query, rows, scores = asked.query, found.rows, found.scores
        if query.boosts:
            rows, scores = asked.wanted.boosted.ranked(rows, scores)
        if query.diversity is not None:
            field = query.diversity.quota.field if query.diversity.quota else None
            values = [self.fields.names(field, row) if field else [] for row in rows.tolist()]
            places = diverse(scores, query.depth, query.diversity, asked.shelf.directions(rows), values)
            rows, scores = rows[places], scores[places]
        return rows[: query.depth], scores[: query.depth]

    def _page(self, query: Query, rows: RowArray) -> list[int]:
        """Places of what pages before have not shown."""
        shown = set(query.shown)
        if not shown:
            return list(range(len(rows)))
        marks = [paging.mark(self.fields.item_id(row)) for row in rows.tolist()]
        return [place for place, mark in enumerate(marks) if mark not in shown][: query.k]

    def _why(self, asked: Asked, rows: RowArray) -> list[list[tuple[int, float]]]:
        events = np.unique(asked.window)
        cosines = asked.shelf.directions(rows) @ asked.shelf.directions(events).T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : asked.query.why]
        return [
            [(int(events[place]), float(own[place])) for place in places]
            for own, places in zip(cosines, nearest, strict=True)
        ]
