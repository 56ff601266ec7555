"""One opened bundle with its state and the items that came since: all that the routes share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from recsys.bundle import Bundle, open_bundle
from recsys.index import FloatArray, RowArray
from serving.encoder import Encoder
from serving.items import ItemTable
from serving.messages import Item, ItemDetails, ScoredItem
from serving.new_items import ItemStore, NewItem
from serving.recommender import Query, Recommender
from serving.sentences import Sentences
from serving.settings import Settings
from serving.state import SqliteState, UserState


@dataclass(frozen=True, kw_only=True)
class Service:
    """Loaded and checked; `close` when done."""

    bundle: Bundle
    recommender: Recommender
    items: ItemTable
    state: UserState
    encoder: Encoder
    sentences: Sentences | None
    store: ItemStore
    adding: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> "Service":
        """Verifies the bundle, loads it, answers a first history; a `RecsysError` where anything is amiss."""
        bundle = open_bundle(folder)
        sentences = None
        if bundle.card.sentences is not None and bundle.sentences is not None:
            sentences = Sentences(bundle, bundle.card.sentences, bundle.sentences)
        encoder = Encoder(bundle.encoder, bundle.step, sentences)
        state = SqliteState(settings.state, settings.history_limit)
        try:
            store = ItemStore(settings.state)
            recommender = Recommender(
                bundle, encoder, state, settings.encoding_cache_bytes, settings.encoding_cache_seconds
            )
            recommender.recommend(Query(history=[bundle.catalog.item_ids[0]]))
        except BaseException:
            state.close()
            raise
        service = cls(
            bundle=bundle,
            recommender=recommender,
            items=ItemTable(bundle.items, bundle.no_history),
            state=state,
            encoder=encoder,
            sentences=sentences,
            store=store,
        )
        if sentences is not None:
            for item in store.all():
                if item.item_id not in bundle.catalog.rows:  # a later bundle knows it itself
                    service._admit(item, sentences)
        return service

    def close(self) -> None:
        """Closes the state."""
        self.store.close()
        self.state.close()

    def add_items(self, items: Sequence[NewItem]) -> int:
        """Stores items and makes them recommendable; how many were written anew. Only where the model reads texts."""
        assert self.sentences is not None
        with self.adding:
            again = sum(self.row(item.item_id) is not None for item in items)
            self.store.put(items)
            for item in items:
                self._admit(item, self.sentences)
        return again

    def _admit(self, item: NewItem, sentences: Sentences) -> None:
        """First what is known of it, then the way to find it."""
        known = self.row(item.item_id)
        row = self.recommender.num_rows if known is None else known
        sentences.write(row, item.attributes)
        self.items.write(row, item)
        vector = self.encoder.encode(np.array([row], dtype=np.int64)).vector()[0]
        self.recommender.admit(item.item_id, row, sentences.item_vector(vector))

    def row(self, item_id: str) -> int | None:
        """The item's row, or None where neither the catalogue nor a client has named it."""
        return self.recommender.row(item_id)

    def item(self, row: int) -> Item:
        """What is shown of it."""
        return Item(
            item_id=self.items.item_id(row), title=self.items.title(row), categories=self.items.categories[row - 1]
        )

    def details(self, row: int) -> ItemDetails:
        """All that is known of it."""
        item = self.item(row)
        retired = item.item_id in self.bundle.catalog.retired
        return ItemDetails(**item.model_dump(), retired=retired, fields=self.items.fields(row))

    def ranking(self, rows: RowArray, scores: FloatArray) -> list[ScoredItem]:
        """Rows and scores as answers show them."""
        return [
            ScoredItem(
                item_id=self.items.item_id(row),
                title=self.items.title(row),
                categories=self.items.categories[row - 1],
                score=score,
            )
            for row, score in zip(rows.tolist(), np.asarray(scores).tolist(), strict=True)
        ]
