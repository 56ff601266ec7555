"""One opened bundle with the items that came since: all that an answer is made of."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.bundle import Bundle, open_bundle
from recsys.index import FloatArray, RowArray
from serving.encoder import Encoder, ItemInputs
from serving.items import ItemTable
from serving.messages import Item, ItemDetails, NearItem, RecommendedItem, ScoredItem
from serving.new_items import NewItem
from serving.queries import Answer, Query
from serving.recommender import Recommender
from serving.sentences import Reader, item_inputs, open_reader
from serving.settings import Settings
from serving.stores import Stores

LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, kw_only=True)
class Admission:
    """New items as a bundle reads them: rows, the encoder's inputs with them, and vectors [N, D] to find them by."""

    items: Sequence[NewItem]
    rows: Mapping[str, int]
    tables: ItemInputs
    vectors: FloatArray


@dataclass(frozen=True, kw_only=True)
class Service:
    """Loaded and checked; whoever changes it holds `stores.writing`."""

    bundle: Bundle
    recommender: Recommender
    items: ItemTable
    encoder: Encoder
    reader: Reader | None
    stores: Stores

    @classmethod
    def open(cls, folder: Path, settings: Settings, stores: Stores) -> "Service":
        """Verifies the bundle, loads it, answers a first history; a `RecsysError` where anything is amiss."""
        bundle = open_bundle(folder)
        encoder = Encoder(bundle.encoder, bundle.step, item_inputs(bundle))
        recommender = Recommender(
            bundle,
            encoder,
            stores.state,
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
            encoder=encoder,
            reader=open_reader(bundle, encoder),
            stores=stores,
        )
        service.catch_up()
        return service

    def catch_up(self) -> None:
        """Items that clients added, changed, deleted or brought back since this bundle last looked."""
        stored = self.stores.items.all()
        readable = [item for item in stored if self.takes(item)]
        known = {item.item_id: item for item in self.items.later}
        self.admit(self.read([item for item in readable if known.get(item.item_id) != item]))
        self.heed_deletions()
        own = self.bundle.catalog.rows
        if self.reader is not None and (unread := sum(item.item_id not in own for item in stored) - len(readable)):
            LOG.warning("bundle %s: %d stored items have no text that it reads", self.bundle.version, unread)

    def takes(self, item: NewItem) -> bool:
        """Whether it is news to this bundle, and has a text that its model reads."""
        return (
            self.reader is not None
            and item.item_id not in self.bundle.catalog.rows
            and bool(self.reader.read(item.attributes))
        )

    def read(self, items: Sequence[NewItem]) -> Admission | None:
        """Items that it takes, ready to be admitted; nothing has changed yet, and all that can fail is over."""
        if not items:
            return None
        assert self.reader is not None
        rows, free = {}, self.recommender.num_rows
        for item in items:
            known = self.row(item.item_id)
            rows[item.item_id] = free if known is None else known
            free += known is None
        tables, vectors = self.reader.write(list(rows.values()), [self.reader.read(item.attributes) for item in items])
        return Admission(items=items, rows=rows, tables=tables, vectors=vectors)

    def admit(self, admission: Admission | None) -> None:
        """First what others see of the items, and at the end the way to find them."""
        if admission is None:
            return
        for item in admission.items:
            self.items.write(admission.rows[item.item_id], item)
        self.recommender.fields.write(self.items.later)
        self.encoder.tables = admission.tables
        self.recommender.admit(admission.rows, admission.vectors)

    def heed_deletions(self) -> None:
        """Items with a tombstone are in no answer, but for those that this bundle does not know; all others may be."""
        rows, _ = self.recommender.known(self.stores.items.deleted())
        self.recommender.retire(rows)

    def is_deleted(self, item_id: str) -> bool:
        """Whether a client took the item out, and may bring it back; one retired by the bundle stays retired."""
        row = self.row(item_id)
        return row is not None and self.recommender.is_retired(row) and item_id not in self.bundle.catalog.retired

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
