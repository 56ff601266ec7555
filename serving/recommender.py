"""History to ranked items: bundle, encoder and state become one answer. Numpy only."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from recsys.bundle import Bundle
from recsys.catalog import PADDING
from recsys.errors import BundleError
from recsys.index import FloatArray, ItemIndex, RowArray, use_one_thread
from serving.encoder import Encoder
from serving.encodings import CacheSize, Encodings, Origin
from serving.keys import KeyOrigin
from serving.new_items import NewVectors
from serving.ranking import SecondStage, Unranked
from serving.state import StateError, UserState

Source = Literal["model", "no_history"]
Stage = Literal["state", "encode", "search", "rank"]
Stored = Literal["read", "unavailable"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, kw_only=True)
class Query:
    """Whose next items are asked for: the stored events of `user_id`, then `history`, oldest first.

    `reasoning_steps`: None for as many as the model was trained with. `rank`: whether the bundle's ranker, if it has
    one, orders what was found.
    """

    history: Sequence[str] = ()
    user_id: str | None = None
    k: int = 10
    exclude_seen: bool | None = None
    exclude: Sequence[str] = ()
    reasoning_steps: int | None = None
    rank: bool = True


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Best first; `history` is all that was read, `history_length` the known events in it.

    `encoding`: how the model's vector came about, None where there was nothing to encode. `rank_keys` and
    `rank_events`: how the keys came about by which a ranker ordered the items, and of how many events, None and 0 where
    none did; `unranked` is the reason, None for a bundle without a ranker. `stored`: whether the user's events could be
    read, None where none were asked for.
    """

    rows: RowArray
    scores: FloatArray
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
    encoding: Origin | None = None
    rank_keys: KeyOrigin | None = None
    rank_events: int = 0
    unranked: Unranked | None = None

    def best(self, k: int) -> "Found":
        """The first `k`."""
        return replace(self, rows=self.rows[:k], scores=self.scores[:k])


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
    ) -> None:
        _check_fit(bundle, encoder)
        self._bundle = bundle
        self._state = state
        self._encodings = Encodings(encoder, cache_bytes, cache_seconds)
        self._second = None if bundle.ranker is None else SecondStage(bundle.ranker, key_cache_bytes, cache_seconds)
        self.most_steps = encoder.most_steps
        self._item_rows = dict(bundle.catalog.rows)
        self._new = NewVectors(bundle.catalog.num_rows, np.zeros((0, bundle.index.width), dtype=np.float32))
        self._popular = _ranked(bundle.no_history)
        self._cosine = _cosine_index(bundle.index)

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
        """The `k` best allowed items (fewer where fewer are left); never a retired one."""
        stages, deletions = Stages(), self._state.deletions
        history, stored = self._whole_history(query, stages)
        if stored == "unavailable":
            query = replace(query, user_id=None)  # what is kept of the user belongs to another history
        rows, unknown = self.known(history)
        barred, unknown_barred = self.known(query.exclude)
        excluded = np.concatenate([self._bundle.catalog.retired_rows, barred, rows if self._hides_seen(query) else []])
        window = rows[-self._bundle.card.max_len :]
        found = self._found(rows, query, excluded.astype(np.int64), stages)
        if self._state.deletions != deletions:
            self.drop_kept()  # by any process, perhaps after the history was read and before something was kept of it
        return Answer(
            rows=found.rows,
            scores=found.scores,
            source="model" if len(window) else "no_history",
            encoding=found.encoding,
            rank_keys=found.rank_keys,
            rank_events=found.rank_events,
            unranked=found.unranked,
            stored=stored,
            history=history,
            history_length=len(rows),
            history_used=len(window),
            unknown_items=list(dict.fromkeys(unknown + unknown_barred)),
            seconds=stages.seconds,
        )

    def kept_events(self, user_id: str) -> int:
        """How many of a user's events have keys that are kept."""
        return 0 if self._second is None else self._second.kept_events(user_id)

    def drop_kept(self) -> None:
        """Encodings and keys: somebody was deleted, and encodings do not say whose they are."""
        self._encodings.clear()
        if self._second is not None:
            self._second.drop_kept()

    def admit(self, rows: Mapping[str, int], vectors: FloatArray) -> None:
        """From now on these items can be found by their vectors [N, D]: the next new rows, or some written anew."""
        self._new = self._new.written(list(rows.values()), vectors)
        if not rows.keys().isdisjoint(self._item_rows):
            self._encodings.clear()
        self._item_rows |= rows

    @property
    def num_rows(self) -> int:
        """Rows of the bundle and of new items."""
        return self._new.first + len(self._new.vectors)

    def row(self, item_id: str) -> int | None:
        """The item's row, None where nobody has said what it is."""
        return self._item_rows.get(item_id)

    def similar(self, row: int, k: int) -> tuple[RowArray, FloatArray]:
        """The `k` items of largest cosine with item `row`, and the cosines; neither itself nor retired ones."""
        use_one_thread()
        excluded, new = np.append(self._bundle.catalog.retired_rows, row), self._new.of_length_one()
        known = row < new.first
        vector = self._cosine.vectors(np.array([row])) if known else new.vectors[row - new.first][None]
        return _search(self._cosine, new, vector, k, excluded)

    def popular(self, k: int, excluded: RowArray | None = None) -> RowArray:
        """The `k` best items for a user without history, not in `excluded` and not retired."""
        barred = self._bundle.catalog.retired_rows if excluded is None else excluded
        candidates = self._popular[: k + len(barred)]
        return candidates[~np.isin(candidates, barred)][:k]

    def known(self, item_ids: Iterable[str]) -> tuple[RowArray, list[str]]:
        """Rows of the ids that the catalogue knows, in order, and the ids that it does not."""
        asked = [(item_id, self._item_rows.get(item_id)) for item_id in item_ids]
        rows = [row for _, row in asked if row is not None]
        return np.array(rows, dtype=np.int64), [item_id for item_id, row in asked if row is None]

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

    def _found(self, history: RowArray, query: Query, excluded: RowArray, stages: Stages) -> Found:
        """What the stages make of the known events of the whole history."""
        if self._second is None:
            return self._retrieved(history, query, query.k, excluded, stages)
        events = self._second.read(history)
        if not query.rank or events is None:
            found = self._retrieved(history, query, query.k, excluded, stages)
            return replace(found, unranked="short history" if query.rank else "not asked")
        found = self._retrieved(history, query, max(query.k, self._second.candidates), excluded, stages)
        if not len(found.rows):
            return found
        with stages.measured("rank"):
            ranked = self._second.ranked(query.user_id, events, found.rows, found.scores)
        if ranked is None:
            return replace(found, unranked="only new items").best(query.k)
        return Found(ranked.rows, ranked.scores, found.encoding, ranked.keys, ranked.events).best(query.k)

    def _retrieved(self, history: RowArray, query: Query, k: int, excluded: RowArray, stages: Stages) -> Found:
        """The first stage: the `k` best by inner product, or by popularity where nothing is known."""
        window = history[-self._bundle.card.max_len :]
        if not len(window):
            with stages.measured("search"):
                rows = self.popular(k, excluded)
                return Found(rows, self._bundle.no_history[rows])
        with stages.measured("encode"):
            encoding, origin = self._encodings.of(window)
        with stages.measured("search"):
            use_one_thread()
            vector = encoding.vector(query.reasoning_steps)
            return Found(*_search(self._bundle.index, self._new, vector, k, excluded), origin)


def _search(
    index: ItemIndex, new: NewVectors, vector: FloatArray, k: int, excluded: RowArray
) -> tuple[RowArray, FloatArray]:
    """Rows and scores of the `k` best, the bundle's and new ones."""
    found, scores = index.search(vector, k, excluded[excluded < new.first])
    return new.merged(vector, found[0], scores[0], k, excluded)


def _ranked(scores: FloatArray) -> RowArray:
    """Item rows by falling score; equal scores in row order."""
    order = np.argsort(-scores, kind="stable")
    return order[order != PADDING]


def _cosine_index(index: ItemIndex) -> ItemIndex:
    """The same items, scaled to length 1."""
    vectors = index.vectors(np.arange(1, index.num_items + 1))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return ItemIndex.build(np.concatenate([np.zeros_like(unit[:1]), unit]))


def _check_fit(bundle: Bundle, encoder: Encoder) -> None:
    """A `BundleError` where the parts of a bundle, each unaltered, do not belong together."""
    vector = encoder.encode(np.array([1])).vector()
    num_items = bundle.catalog.num_items
    complaints = {
        f"index.faiss holds {bundle.index.num_items} items": bundle.index.num_items != num_items,
        f"items.parquet has {len(bundle.items)} rows": len(bundle.items) != num_items,
        "items.parquet is not in catalogue order": not bundle.items["item_id"].equals(bundle.catalog.item_ids),
        f"no_history.npy has shape {bundle.no_history.shape}": bundle.no_history.shape != (num_items + 1,),
        f"encoder.onnx gives vectors of shape {vector.shape}": vector.shape != (1, bundle.index.width),
        "step.onnx does not go on from encoder.onnx": encoder.goes_on and not encoder.steps_agree(),
        "sentences.npz has other rows than the catalogue": bundle.sentences is not None
        and len(bundle.sentences.ids) != num_items + 1,
        "features.npy has other rows than the catalogue": bundle.features is not None
        and len(bundle.features) != num_items + 1,
        "ranker.npz has other rows than the catalogue": bundle.ranker is not None
        and bundle.ranker.num_rows != num_items + 1,
        "encoder.onnx gives vectors that are not finite": not np.isfinite(vector).all(),
    }
    if found := [complaint for complaint, holds in complaints.items() if holds]:
        raise BundleError(
            f"{bundle.folder}: {', '.join(found)}, with {num_items} items of width {bundle.index.width} expected; "
            "export the run again."
        )
