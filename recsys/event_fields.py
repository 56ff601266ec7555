"""Fields of events and candidates for rankers of long histories: item, category, position and age, each a table.

An event's vector has a semantic part (item, category: what it is) and a time part (position counted back from the
candidate, and where times are known the logarithm of its age). A candidate has position and age 0.
Dimensions: B histories, C candidates, L events, K kept events, E width of a field, S semantic width, R table rows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.time_buckets import MICROSECONDS, log_buckets

INIT_STD = 0.01


@dataclass(frozen=True)
class FieldRows:
    """Rows of each field's table; 0 where data has no such field."""

    items: int
    categories: int
    positions: int
    ages: int


class FieldTables(nn.Module):
    """One table a field, all of one width."""

    def __init__(self, rows: FieldRows, width: int) -> None:
        super().__init__()
        self.items = _table(rows.items, width)
        self.categories = _table(rows.categories, width) if rows.categories else None
        self.positions = _table(rows.positions, width)
        self.ages = _table(rows.ages, width) if rows.ages else None
        self.semantic_width = width * (1 + (self.categories is not None))
        self.time_width = width * (1 + (self.ages is not None))

    def semantic(
        self, items: Int[Tensor, "B N"], categories: Int[Tensor, "B N"], maps: "FieldMaps | None" = None
    ) -> Float[Tensor, "B N S"]:
        """Item and category vectors side by side."""
        return torch.cat(self.fields(items, categories, maps), dim=-1)

    def fields(
        self, items: Int[Tensor, "B N"], categories: Int[Tensor, "B N"], maps: "FieldMaps | None" = None
    ) -> list[Float[Tensor, "B N E"]]:
        """The same, one by one."""
        parts = [_mapped(self.items(items), maps, "items")]
        if self.categories is not None:
            parts.append(_mapped(self.categories(categories), maps, "categories"))
        return parts

    def times(self, maps: "FieldMaps | None" = None) -> list[Float[Tensor, "_ E"]]:
        """Whole tables of the time fields, that of positions first: they are small, and few of their rows differ."""
        tables = [_mapped(self.positions.weight, maps, "positions")]
        if self.ages is not None:
            tables.append(_mapped(self.ages.weight, maps, "ages"))
        return tables


class FieldMaps(nn.Module):
    """A square matrix for each field of some tables."""

    def __init__(self, tables: FieldTables) -> None:
        super().__init__()
        self.items = _square(tables.items)
        self.categories = None if tables.categories is None else _square(tables.categories)
        self.positions = _square(tables.positions)
        self.ages = None if tables.ages is None else _square(tables.ages)


@dataclass(frozen=True)
class Role:
    """One use of some tables: as query or key of attention, as value of an event or of the candidate."""

    tables: FieldTables
    maps: FieldMaps | None = None

    def semantic(self, items: Int[Tensor, "B N"], categories: Int[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        """Semantic parts of events or candidates."""
        return self.tables.semantic(items, categories, self.maps)

    def fields(self, items: Int[Tensor, "B N"], categories: Int[Tensor, "B N"]) -> list[Float[Tensor, "B N E"]]:
        """The same, field by field."""
        return self.tables.fields(items, categories, self.maps)

    def times(self) -> list[Float[Tensor, "_ E"]]:
        """Tables of the time parts."""
        return self.tables.times(self.maps)

    def candidates(self, items: Int[Tensor, "B C"], categories: Int[Tensor, "B C"]) -> Float[Tensor, "B C V"]:
        """Whole vectors of candidates: their time is row 0."""
        now = torch.cat([table[0] for table in self.times()])
        return torch.cat([self.semantic(items, categories), now.expand(*items.shape, -1)], dim=-1)


@dataclass(frozen=True)
class Seen:
    """Which events each candidate sees, and how far back they lie: position 1 is the newest, 0 stands for unseen.

    One column may stand for all candidates of a history.
    """

    visible: Bool[Tensor, "B _ L"]
    positions: Int[Tensor, "B _ L"]
    ages: Int[Tensor, "B _ L"]

    @classmethod
    def before(
        cls, stops: Int[Tensor, "B C"], timestamps: Int[Tensor, "B L"], max_len: int, time_buckets: int
    ) -> "Seen":
        """Events before place `stops` of the history, the latest `max_len` of them.

        Ages count from the newest event that is seen, for histories do not say when they are asked; bucket 1 is its
        own, and the last bucket takes all that is older.
        """
        positions = stops[:, :, None] - torch.arange(timestamps.shape[1], device=stops.device)
        visible = (positions > 0) & (positions <= max_len)
        if not time_buckets:
            return cls(visible, positions * visible, torch.zeros_like(positions))
        newest = timestamps.gather(1, (stops.long() - 1).clamp(min=0))[:, :, None]
        seconds = (newest - timestamps[:, None]).clamp(min=0) // MICROSECONDS
        return cls(visible, positions * visible, log_buckets(seconds, time_buckets) * visible)

    def times(self) -> list[Int[Tensor, "B _ L"]]:
        """Rows of the time fields, in the order of `FieldTables.times`."""
        return [self.positions, self.ages]


@dataclass(frozen=True)
class Attended:
    """Events and their weights for each candidate: those at `places`, or all."""

    weights: Float[Tensor, "B C K"]
    places: Int[Tensor, "B C K"] | None = None

    def pooled(self, semantic: Float[Tensor, "B L S"], times: list[Tensor], seen: Seen) -> Float[Tensor, "B C V"]:
        """Weighted sum of the events' vectors."""
        sums = [self._pooled_rows(semantic)]
        sums += [self._pooled_times(table, rows) for table, rows in zip(times, seen.times(), strict=False)]
        return torch.cat(sums, dim=-1)

    def _pooled_rows(self, rows: Float[Tensor, "B L S"]) -> Float[Tensor, "B C S"]:
        if self.places is None:
            return self.weights @ rows
        first = torch.arange(len(rows), device=rows.device) * rows.shape[1]
        picked = F.embedding(self.places + first[:, None, None], rows.flatten(0, 1))
        return (self.weights[:, :, None] @ picked).squeeze(2)

    def _pooled_times(self, table: Float[Tensor, "R E"], rows: Int[Tensor, "B _ L"]) -> Float[Tensor, "B C E"]:
        """Weights summed by row of a time table; of a table longer than what is looked up, the vectors of its rows."""
        if self.places is None:
            if rows.shape[1] == 1 and rows.shape[2] <= len(table):
                return self.weights @ F.embedding(rows[:, 0], table)
            return self._by_row(rows.expand(-1, self.weights.shape[1], -1), len(table)) @ table
        rows = rows.expand(-1, self.weights.shape[1], -1).gather(2, self.places)
        if len(table) > rows.shape[2] * table.shape[1]:
            return (self.weights[:, :, None] @ F.embedding(rows, table)).squeeze(2)
        return self._by_row(rows, len(table)) @ table

    def _by_row(self, rows: Int[Tensor, "B C K"], num_rows: int) -> Float[Tensor, "B C R"]:
        return self.weights.new_zeros(*self.weights.shape[:2], num_rows).scatter_add(2, rows, self.weights)


def masked_softmax(scores: Float[Tensor, "B C K"], valid: Bool[Tensor, "B _ K"]) -> Float[Tensor, "B C K"]:
    """Weights of the valid ones; where nothing is valid all are zero, and so are the gradients."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0)


def _table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=INIT_STD)
    return table


def _square(table: nn.Embedding) -> nn.Linear:
    return nn.Linear(table.embedding_dim, table.embedding_dim, bias=False)


def _mapped(vectors: Tensor, maps: FieldMaps | None, field: str) -> Tensor:
    return vectors if maps is None else getattr(maps, field)(vectors)
