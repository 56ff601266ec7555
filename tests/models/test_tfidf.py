"""TF-IDF against scikit-learn's definition, written out by hand."""

import math
import re
from collections import Counter

import polars as pl
import pytest
import torch
from contract import CountingModelContract, table
from hypothesis import given
from hypothesis import strategies as st
from tiny import events_of, histories_of

from models.tfidf import Tfidf, TfidfConfig
from recsys.errors import DataError
from recsys.item_text import item_texts
from recsys.splits import TrainingEvents

TITLES = st.lists(st.text("ab cd", max_size=9), min_size=7, max_size=7)


class TestTfidf(CountingModelContract):
    """The contract."""

    def make(self, events: TrainingEvents) -> Tfidf:
        return Tfidf.fit(TfidfConfig(), events, table())


def fit(items: pl.DataFrame) -> Tfidf:
    """From the item table; events do not matter."""
    return Tfidf.fit(TfidfConfig(), events_of([[1, 2]], len(items) + 1), items)


def titled(titles: list[str | None]) -> pl.DataFrame:
    """Items with these titles."""
    return pl.DataFrame({"item_id": [f"i{row}" for row in range(1, len(titles) + 1)], "title": titles})


def vectors_by_hand(texts: list[str]) -> list[dict[str, float]]:
    """Unit vectors of tf * (ln((1 + N) / (1 + df)) + 1)."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    documents = Counter(word for words in counts for word in words)
    weights = [
        {word: times * (math.log((1 + len(texts)) / (1 + documents[word])) + 1) for word, times in words.items()}
        for words in counts
    ]
    norms = [math.sqrt(sum(weight**2 for weight in words.values())) or 1.0 for words in weights]
    return [{word: weight / norm for word, weight in words.items()} for words, norm in zip(weights, norms, strict=True)]


@given(TITLES.filter(lambda titles: any(title.strip() for title in titles)))
def test_score_is_the_cosine_with_the_last_items_text(titles: list[str]) -> None:
    vectors = vectors_by_hand(["", *titles])
    for last in (1, 4, 7):
        expected = [sum(weight * other.get(word, 0.0) for word, weight in vectors[last].items()) for other in vectors]
        scores = fit(titled(titles)).scores(histories_of([[2, last]]))[0]
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_all_text_columns_join_and_other_columns_do_not() -> None:
    items = pl.DataFrame({
        "item_id": ["x", "y", "z"],
        "title": ["Red shoe", None, None],
        "price": [1.0, 2.0, 3.0],
        "categories": [["Shoes", "Sale"], ["Hats"], None],
    })
    assert item_texts(items) == ["Red shoe Shoes Sale", "Hats", ""]


@pytest.mark.parametrize(
    "items",
    [titled([None, None]), titled(["", ""]), titled(["!?", "..."]), pl.DataFrame({"item_id": ["x", "y"]})],
    ids=["null", "empty", "no word", "no column"],
)
def test_items_without_words_are_refused(items: pl.DataFrame) -> None:
    with pytest.raises(DataError, match="the item table has no text; ingest an item table with --items"):
        fit(items)
