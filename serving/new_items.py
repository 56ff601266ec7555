"""Items that came after the bundle was made: kept in SQLite, and searched beside the bundle's index."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from recsys.allowed import Mask
from recsys.errors import ConfigError
from recsys.index import FloatArray, RowArray, of_length_one
from serving.state import answering, connect

SCHEMA = """
CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY, item_id TEXT UNIQUE NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deleted_items (item_id TEXT PRIMARY KEY);
"""
UPSERT = """
INSERT INTO items (item_id, content) VALUES (?, ?) ON CONFLICT (item_id) DO UPDATE SET content = excluded.content
"""
RESTORE = "DELETE FROM deleted_items WHERE item_id = ?"


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """What a client says of an item; `fields` are further attributes by name."""

    item_id: str
    title: str | None = None
    categories: Sequence[str] = ()
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, str | Sequence[str] | None]:
        """All in one, as an item table would have them."""
        return {**self.fields, "title": self.title, "categories": self.categories}


class ItemStore:
    """One SQLite file; an answered `put` survives the death of the process; other processes see it when they start."""

    def __init__(self, path: Path) -> None:
        self._lock = Lock()
        try:
            self._connection = connect(path)
            with self._connection:
                self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot keep new items there ({error}); set RECSYS_NEW_ITEMS.") from None

    def put(self, items: Sequence[NewItem], restored: Sequence[str] = ()) -> None:
        """Stores all or none, one that is there anew; takes their tombstones away, and those of `restored`."""
        rows = [
            (
                item.item_id,
                json.dumps({"title": item.title, "categories": list(item.categories), "fields": item.fields}),
            )
            for item in items
        ]
        with self._lock, answering(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(UPSERT, rows)
            without = [*(item.item_id for item in items), *restored]
            self._connection.executemany(RESTORE, [(item_id,) for item_id in without])

    def delete(self, item_id: str) -> None:
        """A tombstone; what is stored of the item stays."""
        with self._lock, answering(), self._connection:
            self._connection.execute("INSERT INTO deleted_items VALUES (?) ON CONFLICT DO NOTHING", (item_id,))

    def deleted(self) -> set[str]:
        """Ids with a tombstone."""
        with self._lock, answering():
            return {item_id for (item_id,) in self._connection.execute("SELECT item_id FROM deleted_items")}

    def all(self) -> list[NewItem]:
        """In order of their first arrival."""
        with self._lock, answering():
            rows = self._connection.execute("SELECT item_id, content FROM items ORDER BY number").fetchall()
        return [NewItem(item_id=item_id, **json.loads(content)) for item_id, content in rows]

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


@dataclass(frozen=True)
class NewVectors:
    """Vectors [N, D] of rows `first`, `first` + 1, ...: few enough to be compared with one by one."""

    first: int
    vectors: FloatArray

    def written(self, rows: Sequence[int], vectors: FloatArray) -> "NewVectors":
        """A copy with these vectors in `rows`, which may lie behind the last."""
        count = max(len(self.vectors), max(rows) + 1 - self.first)
        copy = np.zeros((count, self.vectors.shape[1]), dtype=np.float32)
        copy[: len(self.vectors)] = self.vectors
        copy[np.array(rows) - self.first] = vectors
        return NewVectors(self.first, copy)

    def of_length_one(self) -> "NewVectors":
        """For cosines."""
        return NewVectors(self.first, of_length_one(self.vectors))

    def merged(
        self,
        query: FloatArray,
        found: RowArray,
        scores: FloatArray,
        k: int,
        excluded: RowArray,
        passing: Mask | None = None,
    ) -> tuple[RowArray, FloatArray]:
        """The `k` best of `found` and of these but for `excluded` and those that do not pass.

        `query` [1, D], the others of one dimension; `passing` is of these and perhaps of some that are not here yet.
        """
        if not len(self.vectors):
            return found, scores
        rows = np.arange(self.first, self.first + len(self.vectors))
        allowed = ~np.isin(rows, excluded)
        if passing is not None:
            allowed &= passing[: len(rows)]
        both = np.concatenate([scores, (self.vectors[allowed] @ query[0]).astype(np.float32)])
        best = np.argsort(-both, kind="stable")[:k]
        return np.concatenate([found, rows[allowed]])[best], both[best]
