"""Text similarity against its formula, with an encoder whose vectors are known."""

import numpy as np
import polars as pl
import pytest
import torch
from contract import CountingModelContract, table
from tiny import events_of, histories_of

import models.text_similarity as module
from models.text_similarity import TextSimilarity, TextSimilarityConfig
from recsys.errors import ConfigError, DataError
from recsys.item_text import item_texts
from recsys.splits import TrainingEvents

WIDTH = 5


def vectors_of(texts: list[str]) -> np.ndarray:
    """Unit vectors that depend on the text alone; of no text zeros."""
    drawn = [np.random.default_rng(list(text.encode())).normal(size=WIDTH) for text in texts]
    rows = [row / np.linalg.norm(row) if text else 0 * row for text, row in zip(texts, drawn, strict=True)]
    return np.array(rows, dtype=np.float32)


@pytest.fixture(autouse=True)
def known_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "text_vectors", lambda texts, _encoder, _store: vectors_of(texts))


class TestTextSimilarity(CountingModelContract):
    """The contract."""

    def make(self, events: TrainingEvents) -> TextSimilarity:
        return TextSimilarity.fit(TextSimilarityConfig(), events, table())


@pytest.mark.parametrize(("max_len", "decay"), [(1, 0.5), (3, 1.0), (3, 0.25)])
def test_scores_are_weighted_cosines_with_the_newest_items(max_len: int, decay: float) -> None:
    items = table()
    vectors = vectors_of(["", *item_texts(items)])
    config = TextSimilarityConfig(max_len=max_len, decay=decay)
    model = TextSimilarity.fit(config, events_of([[1, 2]], len(items) + 1), items)
    histories = [[4], [2, 5], [1, 6, 3]]
    found = model.scores(histories_of([history[-max_len:] for history in histories]))
    sums = [
        sum(decay**age * vectors[item] for age, item in enumerate(history[::-1][:max_len])) for history in histories
    ]
    expected = [[total @ other for other in vectors] for total in sums]
    np.testing.assert_allclose(found.numpy(), np.array(expected), atol=1e-6)


def test_a_table_without_texts_is_refused() -> None:
    with pytest.raises(DataError, match="text-similarity: the item table has no text; ingest an item table with"):
        TextSimilarity.fit(TextSimilarityConfig(), events_of([[1, 2]], 3), pl.DataFrame({"item_id": ["x", "y"]}))


@pytest.mark.parametrize(("values", "message"), [
    ({"max_len": 0}, "max_len=0 must be at least 1"),
    ({"decay": 0.0}, r"decay=0.0 must lie in \(0, 1\]"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextSimilarityConfig(**values)  # type: ignore[arg-type]


def test_kept_and_read_again_it_scores_the_same() -> None:
    model = TextSimilarity.fit(TextSimilarityConfig(), events_of([[1, 2]], len(table()) + 1), table())
    again = TextSimilarity.from_arrays(model.config, model.arrays())
    batch = histories_of([[1, 2], [3]])
    torch.testing.assert_close(again.scores(batch), model.scores(batch), rtol=0, atol=0)
