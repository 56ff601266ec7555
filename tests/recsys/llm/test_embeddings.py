"""Vectors of a server: in order, of length 1, counted and checked; found again by trainings without a server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_jobs import FakeTime
from llm_server import Reply, Server, embedding, letters, serving

from recsys.errors import ConfigError, DataError, EndpointError
from recsys.llm.embeddings import EndpointEncoder
from recsys.llm.endpoint import Endpoint, EndpointConfig
from recsys.llm.stored_texts import EndpointTexts, StoredTexts
from recsys.text_vectors import SentenceEncoder, TextEncoder, named_encoder, text_vectors

TEXTS = ["Red shoe", "", "Blå sko", "Red shoe", "a"]


@contextmanager
def encoding(
    handler: Callable[[str, dict[str, Any], int], Reply] = embedding, **texts: Any
) -> Iterator[tuple[EndpointEncoder, Server]]:
    """An encoder at a server."""
    with serving(handler) as server:
        endpoint = Endpoint(EndpointConfig(url=server.url), FakeTime().clock)
        try:
            yield EndpointEncoder(endpoint, EndpointTexts(model="bge", **texts)), server
        finally:
            endpoint.close()


def unit(vector: list[float]) -> np.ndarray:
    """Of length 1."""
    return np.array(vector) / np.sqrt(np.square(vector).sum())


def test_vectors_come_in_order_and_have_length_one(tmp_path: Path) -> None:
    with encoding() as (encoder, server):
        vectors = text_vectors(TEXTS, encoder, tmp_path / "store.sqlite")
        assert isinstance(encoder, TextEncoder)
        assert sorted(server.requests[0]["input"]) == ["Blå sko", "Red shoe", "a"]
        assert (len(server.requests), encoder.width) == (1, 5)
    assert vectors.dtype == np.float32
    for vector, text in zip(vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, unit(letters(text)) if text else np.zeros(5), atol=1e-6)


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with encoding() as (encoder, _):
        first = text_vectors(TEXTS, encoder, tmp_path / "store.sqlite")
    with encoding() as (encoder, server):
        np.testing.assert_array_equal(text_vectors(TEXTS, encoder, tmp_path / "store.sqlite"), first)
        assert server.requests == []


def test_faults_are_survived(tmp_path: Path) -> None:
    def faulty(path: str, body: dict[str, Any], before: int) -> Reply:
        faults = [Reply({}, status=500), Reply(None), Reply(raw=b'{"data": [{"ind'), Reply({"data": 3})]
        return faults[before] if before < len(faults) else embedding(path, body, before)

    with encoding(faulty) as (encoder, server):
        vectors = text_vectors(TEXTS, encoder, tmp_path / "store.sqlite")
        assert len(server.requests) == 5
    np.testing.assert_allclose(vectors[4], unit(letters("a")), atol=1e-6)


def test_fewer_dimensions_are_asked_for_and_checked() -> None:
    with encoding(dimensions=3) as (encoder, server):
        assert encoder.encode(["a"]).shape == (1, 3)
        assert server.requests[0]["dimensions"] == encoder.width == 3
        assert len(server.requests) == 1
    with (
        encoding(lambda p, b, n: embedding(p, {**b, "dimensions": 5}, n), dimensions=3) as (encoder, _),
        pytest.raises(EndpointError, match="vectors of 5 numbers, where 3 were expected"),
    ):
        encoder.encode(["a"])


def rows(*vectors: list[Any], index: list[int] | None = None) -> Reply:
    """A reply of these."""
    places = index or range(len(vectors))
    return Reply({
        "data": [{"index": place, "embedding": vector} for place, vector in zip(places, vectors, strict=True)]
    })


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (rows([1.0, 2.0]), "1 vectors for 2 texts"),
        (rows([1.0], [1.0], [1.0]), "3 vectors for 2 texts"),
        (rows([1.0], [1.0], index=[1, 1]), "2 vectors for 2 texts"),
        (rows([1.0, 2.0], [1.0]), "vectors of 1 and 2 numbers in one reply"),
        (rows([], []), "vectors of 0 numbers in one reply"),
        (
            Reply(raw=b'{"data": [{"index": 0, "embedding": [1, NaN]}, {"index": 1, "embedding": [1, 2]}]}'),
            "not finite",
        ),
        (rows([0.0, 0.0], [1.0, 0.0]), "a vector that is zero or not finite"),
        (Reply({"error": "too long"}, status=400), "refuses 2 texts .*too long"),
    ],
)
def test_bad_answers_are_explained_at_once(reply: Reply, message: str) -> None:
    with encoding(lambda *_: reply) as (encoder, server):
        with pytest.raises(EndpointError, match=message):
            encoder.encode(["a", "b"])
        assert len(server.requests) == 1


def test_a_width_that_changes_is_not_taken(tmp_path: Path) -> None:
    widths = iter([5, 4])

    def changing(path: str, body: dict[str, Any], before: int) -> Reply:
        return embedding(path, {**body, "dimensions": next(widths)}, before)

    with encoding(changing) as (encoder, _):
        encoder.encode(["a"])
        with pytest.raises(EndpointError, match="vectors of 4 numbers, where 5 were expected"):
            encoder.encode(["b"])
    with encoding() as (encoder, _):
        text_vectors(["a"], encoder, tmp_path / "store.sqlite")
    with (
        encoding(lambda p, b, n: embedding(p, {**b, "dimensions": 4}, n)) as (encoder, _),
        pytest.raises(DataError, match="vectors of 4 and of 5 numbers at different times, so it is not one encoder"),
    ):
        text_vectors(["a", "b"], encoder, tmp_path / "store.sqlite")


def test_the_identity_names_model_revision_and_dimensions_and_no_address() -> None:
    with encoding() as (first, _), encoding() as (second, _):
        assert first.identity == second.identity
    variants = [{}, {"revision": "r1"}, {"dimensions": 3}]
    identities = {EndpointTexts(model="bge", **settings).identity for settings in variants}
    assert len(identities | {EndpointTexts(model="e5").identity}) == 4


@pytest.mark.parametrize("settings", [{}, {"dimensions": 3}, {"revision": "r1", "dimensions": 4}])
def test_trainings_find_what_a_server_gave(tmp_path: Path, settings: dict[str, Any]) -> None:
    with encoding(**settings) as (encoder, _):
        vectors = text_vectors(TEXTS, encoder, tmp_path / "store.sqlite")
    stored = named_encoder(encoder.texts.name, settings.get("revision"), "mean")
    assert isinstance(stored, StoredTexts)
    np.testing.assert_array_equal(text_vectors(TEXTS, stored, tmp_path / "store.sqlite"), vectors)
    with pytest.raises(ConfigError, match=r"lacks 1 texts or more; fill it first with `recsys embed DATA --endpoint"):
        text_vectors([*TEXTS, "new"], stored, tmp_path / "store.sqlite")


def test_names_of_encoders() -> None:
    assert EndpointTexts.named("endpoint:org/model:v1?dimensions=256", "r") == EndpointTexts(
        model="org/model:v1", revision="r", dimensions=256
    )
    assert isinstance(named_encoder(None, None, "mean"), SentenceEncoder)
    with pytest.raises(ConfigError, match=r"expected endpoint:MODEL or endpoint:MODEL\?dimensions=256"):
        named_encoder("endpoint:model?dimensions=many", None, "mean")
    with pytest.raises(ConfigError, match="has no model; name one as the server knows it"):
        named_encoder("endpoint:", None, "mean")
    with pytest.raises(ConfigError, match="dimensions=0 must be at least 1"):
        named_encoder("endpoint:model?dimensions=0", None, "mean")
