"""One opened bundle with its state and the items that came since: all that the routes share."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from recsys.bundle import Bundle, open_bundle
from recsys.index import FloatArray, RowArray
from serving.breaker import GuardedState
from serving.encoder import Encoder
from serving.items import ItemTable
from serving.messages import Item, ItemDetails, NearItem, RecommendedItem, ScoredItem
from serving.new_items import ItemStore, NewItem
from serving.queries import Answer, Query
from serving.recommender import Recommender
from serving.sentences import Reader, item_inputs, open_reader
from serving.settings import Settings
from serving.state import StateError
from serving.stores import item_file, open_state

LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, kw_only=True)
class Service:
    """Loaded and checked; `close` when done."""

    bundle: Bundle
    recommender: Recommender
    items: ItemTable
    state: GuardedState
    encoder: Encoder
    reader: Reader | None
    store: ItemStore
    adding: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> "Service":
        """Verifies the bundle, loads it, answers a first history; a `RecsysError` where anything is amiss."""
        bundle = open_bundle(folder)
        encoder = Encoder(bundle.encoder, bundle.step, item_inputs(bundle))
        with ExitStack() as opened:
            state = open_state(settings)
            opened.callback(state.close)
            store = ItemStore(item_file(settings))
            opened.callback(store.close)
            recommender = Recommender(
                bundle,
                encoder,
                state,
                settings.encoding_cache_bytes,
                settings.encoding_cache_seconds,
                settings.key_cache_bytes,
                settings.filter_cache_bytes,
            )
            recommender.recommend(Query(history=[bundle.catalog.item_ids[0]]))
            service = cls(
                bundle=bundle,
                recommender=recommender,
                items=ItemTable(bundle.items, bundle.no_history),
                state=state,
                encoder=encoder,
                reader=open_reader(bundle, encoder),
                store=store,
            )
            service._admit_stored()
            service._retire_deleted()
            opened.pop_all()
        return service

    def close(self) -> None:
        """Closes the state."""
        self.store.close()
        self.state.close()

    def state_answers(self) -> bool:
        """Whether it does so now."""
        try:
            self.state.check()
        except StateError:
            return False
        return True

    def forget(self, user_id: str) -> int:
        """Deletes all that is known of a user, from the store and from what is kept; how many events there were."""
        deleted = self.state.delete(user_id)
        self.recommender.drop_kept()
        return deleted

    def add_items(self, items: Sequence[NewItem], restored: Sequence[int] = ()) -> int:
        """Stores items and makes them recommendable, and so `restored` rows again, all or none; how many items were
        written anew.

        Items only where there is a `reader`, and it reads something of each. Of two with the same id the later counts.
        """
        newest = {item.item_id: item for item in items}
        with self.adding:
            again = [row for item_id in newest if (row := self.row(item_id)) is not None]
            ids = [self.items.item_id(row) for row in restored]
            self._admit(list(newest.values()), lambda admitted: self.store.put(admitted, ids))
            self.recommender.restore([*again, *restored])
        return len(again)

    def delete_item(self, row: int) -> None:
        """No answer holds the item from now on, until it is restored."""
        with self.adding:
            self.store.delete(self.items.item_id(row))
            self.recommender.retire([row])

    def is_deleted(self, row: int) -> bool:
        """Whether a client took the item out, and may bring it back; one retired by the bundle stays retired."""
        return self.recommender.is_retired(row) and self.items.item_id(row) not in self.bundle.catalog.retired

    def _retire_deleted(self) -> None:
        """What was deleted in earlier runs, but for items that this bundle does not know."""
        rows, _ = self.recommender.known(self.store.deleted())
        self.recommender.retire(rows.tolist())

    def _admit_stored(self) -> None:
        """Items of earlier runs, but for those that this bundle holds itself or cannot read."""
        if self.reader is None:
            return
        stored = [item for item in self.store.all() if item.item_id not in self.bundle.catalog.rows]
        readable = [item for item in stored if self.reader.read(item.attributes)]
        if len(readable) < len(stored):
            LOG.warning("%d stored items have no text that this bundle reads", len(stored) - len(readable))
        self._admit(readable, lambda _: None)

    def _admit(self, items: list[NewItem], keep: Callable[[list[NewItem]], None]) -> None:
        """All that can fail comes first, then `keep`; then what others see, and at the end the way to find an item."""
        if not items:
            keep(items)
            return
        assert self.reader is not None
        rows, free = {}, self.recommender.num_rows
        for item in items:
            known = self.row(item.item_id)
            rows[item.item_id] = free if known is None else known
            free += known is None
        read = [self.reader.read(item.attributes) for item in items]
        tables, vectors = self.reader.write(list(rows.values()), read)
        keep(items)
        for item in items:
            self.items.write(rows[item.item_id], item)
        self.recommender.fields.write(self.items.later)
        self.encoder.tables = tables
        self.recommender.admit(rows, vectors)

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
        retired = self.recommender.is_retired(row)
        return ItemDetails(**item.model_dump(), retired=retired, fields=self.items.fields(row))

    def ranking(self, rows: RowArray, scores: FloatArray) -> list[ScoredItem]:
        """Rows and scores as answers show them."""
        return [
            ScoredItem(**vars(self.item(row)), score=score)
            for row, score in zip(rows.tolist(), np.asarray(scores).tolist(), strict=True)
        ]

    def recommended(self, answer: Answer, fields: Sequence[str]) -> list[RecommendedItem]:
        """The same with these fields of each item, and the items of the history that it is near to."""
        shown = self.items.values(answer.rows.tolist(), fields) if fields else [None] * len(answer.rows)
        ranking = self.ranking(answer.rows, answer.scores)
        return [
            RecommendedItem(**vars(item), fields=values, why=[self._near(*event) for event in why])
            for item, values, why in zip(ranking, shown, answer.why, strict=True)
        ]

    def _near(self, row: int, cosine: float) -> NearItem:
        return NearItem(**vars(self.item(row)), cosine=cosine)
