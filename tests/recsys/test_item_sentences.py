"""Item sentences: attribute order, token budget, kinds, word starts, and what cannot be read."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, DataError
from recsys.item_sentences import KEY, NO_TOKEN, VALUE, attribute_names, cleaned, item_attributes, item_sentences
from recsys.pretrained import Pretrained

ITEMS = pl.DataFrame({
    "item_id": ["a", "b", "c"],
    "description": ["long", None, "  "],
    "categories": [["Tools", "Saws &amp; Blades"], [], None],
    "price": [1.0, 2.0, 3.0],
    "title": ["Red  saw", "Glove", None],
    "image": ["a.png", None, None],
    "brand": ["Acme", None, None],
})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Pretrained().plain_tokenizer


def test_attributes_come_in_the_released_order_and_empty_ones_are_left_out() -> None:
    names = attribute_names(ITEMS)
    assert names == ["title", "brand", "categories", "description"]
    assert item_attributes(ITEMS, names) == [
        [("title", "Red saw"), ("brand", "Acme"), ("category", "Tools Saws & Blades")],
        [("title", "Glove")],
        [],
    ]
    assert item_attributes(ITEMS, names, most=9)[0][3] == ("description", "long")


def test_attributes_can_be_chosen() -> None:
    assert item_attributes(ITEMS, attribute_names(ITEMS, ("brand", "title")), most=1) == [
        [("brand", "Acme")],
        [("title", "Glove")],
        [],
    ]
    with pytest.raises(ConfigError, match=r"model\.attributes='price' is no text column .* it has description, cat"):
        attribute_names(ITEMS, ("price",))


def test_a_sentence_is_its_keys_and_values_tokenised_apart(tokenizer: Any) -> None:
    sentences = item_sentences(item_attributes(ITEMS, attribute_names(ITEMS)), tokenizer)
    pieces = [
        (tokenizer.encode(text, add_special_tokens=False).ids, kind)
        for text, kind in (
            ("title", KEY),
            ("Red saw", VALUE),
            ("brand", KEY),
            ("Acme", VALUE),
            ("category", KEY),
            ("Tools Saws & Blades", VALUE),
        )
    ]
    expected = [token for tokens, _ in pieces for token in tokens]
    assert sentences.ids[1, : len(expected)].tolist() == expected
    assert sentences.kinds[1, : len(expected)].tolist() == [kind for tokens, kind in pieces for _ in tokens]
    assert sentences.lengths.tolist() == [0, len(expected), 1 + 1, 0]
    assert Pretrained().special_tokens == (101, 0, 103)


def test_three_long_attributes_are_96_tokens_and_keys_count_among_them(tokenizer: Any) -> None:
    long = " ".join(["saw"] * 200)
    sentences = item_sentences([[("title", long), ("brand", long), ("category", long)]], tokenizer)
    assert sentences.lengths.tolist() == [0, 96]
    assert sentences.kinds[1].tolist() == 3 * ([KEY] + 31 * [VALUE])


def test_a_cut_may_leave_a_key_alone(tokenizer: Any) -> None:
    sentences = item_sentences([[("title", "saw"), ("brand", "acme")]], tokenizer, attribute_tokens=1)
    assert sentences.kinds.tolist() == [[NO_TOKEN, NO_TOKEN], [KEY, KEY]]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=5))
def test_words_begin_where_the_tokeniser_says(tokenizer: Any, values: list[str]) -> None:
    """Second way: a piece of BERT's vocabulary that goes on begins with ##."""
    sentences = item_sentences([[("title", cleaned(value))] for value in values], tokenizer, attribute_tokens=99)
    for row in range(len(values) + 1):
        length = int(sentences.lengths[row])
        pieces = [tokenizer.id_to_token(token) for token in sentences.ids[row, :length].tolist()]
        goes_on = [piece.startswith("##") for piece in pieces]
        assert [not start for start in sentences.starts[row, :length].tolist()] == goes_on
        assert not sentences.starts[row, length:].any()


def test_no_text_at_all_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="none has a text to make a sentence of; ingest an item table with --items"):
        item_sentences([[], []], tokenizer)


def test_a_tokeniser_without_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = Pretrained()
    monkeypatch.setattr(pretrained, "tokenizer", SimpleNamespace(cls_token_id=1, pad_token_id=0, mask_token_id=None))
    with pytest.raises(ConfigError, match=r"its tokenizer lacks a first token, padding or a mask"):
        _ = pretrained.special_tokens


def test_rows_can_be_as_wide_as_others(tokenizer: Any) -> None:
    items = [[("title", "saw")]]
    narrow, wide = item_sentences(items, tokenizer), item_sentences(items, tokenizer, width=40)
    assert (narrow.ids.shape, wide.ids.shape) == ((2, 2), (2, 40))
    np.testing.assert_array_equal(wide.ids[:, :2], narrow.ids)
    assert not wide.kinds[:, 2:].any()


def test_rows_stay_in_catalogue_order(tokenizer: Any) -> None:
    texts = [f"number {place}" for place in range(50)]
    sentences = item_sentences([[("title", text)] for text in texts], tokenizer)
    for row in (1, 17, 50):
        length = int(sentences.lengths[row])
        assert tokenizer.decode(sentences.ids[row, :length].tolist()) == f"title {texts[row - 1]}"
    assert not sentences.ids[0].any()
