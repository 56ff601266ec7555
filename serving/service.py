"""One opened bundle with its state: all that the routes share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.bundle import Bundle, open_bundle
from recsys.index import FloatArray, RowArray
from serving.encoder import Encoder
from serving.items import ItemTable
from serving.messages import Item, ItemDetails, ScoredItem
from serving.recommender import Query, Recommender
from serving.settings import Settings
from serving.state import SqliteState, UserState


@dataclass(frozen=True, kw_only=True)
class Service:
    """Loaded and checked; `close` when done."""

    bundle: Bundle
    recommender: Recommender
    items: ItemTable
    state: UserState

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> "Service":
        """Verifies the bundle, loads it, answers a first history; a `RecsysError` where anything is amiss."""
        bundle = open_bundle(folder)
        encoder = Encoder(bundle.encoder, bundle.step)
        state = SqliteState(settings.state, settings.history_limit)
        try:
            recommender = Recommender(
                bundle, encoder, state, settings.encoding_cache_bytes, settings.encoding_cache_seconds
            )
            recommender.recommend(Query(history=[bundle.catalog.item_ids[0]]))
        except BaseException:
            state.close()
            raise
        return cls(
            bundle=bundle, recommender=recommender, items=ItemTable(bundle.items, bundle.no_history), state=state
        )

    def close(self) -> None:
        """Closes the state."""
        self.state.close()

    def row(self, item_id: str) -> int | None:
        """The item's row, or None where the catalogue does not know it."""
        return self.bundle.catalog.rows.get(item_id)

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
