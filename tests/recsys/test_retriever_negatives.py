"""Negatives that a retriever would answer: how often, never what the user knew, and read from the right events."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.sasrec import SASRec, SASRecConfig
from recsys import retriever_negatives
from recsys.batches import Histories
from recsys.retriever_negatives import RetrieverNegatives

NUM_ITEMS, MAX_LEN = 11, 6


def retriever() -> SASRec:
    """Random and loud, so that its answers differ from place to place."""
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=NUM_ITEMS, max_len=MAX_LEN, embedding_dim=8, num_heads=2, dropout=0.0)).eval()
    with torch.no_grad():
        model.items.weight[1:] *= 40
    return model


def windows(length: int, rows: int = 3) -> np.ndarray:
    """Random events [B, L]."""
    return np.random.default_rng(1).integers(1, NUM_ITEMS + 1, (rows, length))


@torch.no_grad()
def shares(model: SASRec, events: np.ndarray, stop: int, repeats: bool) -> np.ndarray:
    """By hand: softmax of the scores after the events up to `stop` - 2, of what may be answered but the target."""
    read = torch.from_numpy(events[None, : stop - 1])
    lengths = torch.tensor([read.shape[1]], dtype=torch.int32)
    scores = (model.encode(Histories(read, torch.zeros_like(read), lengths)) @ model.item_vectors().T)[0].double()
    weights = np.exp(scores.numpy() - scores.max().item())
    weights[[0, *events[stop - 1 if repeats else 0 : stop]]] = 0
    return weights / weights.sum()


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_items_are_drawn_as_often_as_the_retriever_expects_them(
    at_once: int, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where users take items again, known ones are drawn too: they are among the answers that are to be told apart."""
    monkeypatch.setattr(retriever_negatives, "SCORES_AT_ONCE", at_once)
    model, events = retriever(), windows(MAX_LEN)
    stops = np.array([[2, 4], [3, 5], [6, 2]])
    drawn = RetrieverNegatives(model, repeats).draw(events, stops, 4000, np.random.default_rng(2))
    assert drawn.shape == (3, 2, 4000)
    for row in range(3):
        for column in range(2):
            share = shares(model, events[row], int(stops[row, column]), repeats)
            counts = np.bincount(drawn[row, column], minlength=NUM_ITEMS + 1)
            assert (counts[share == 0] == 0).all(), "padding, what comes next, what may not be answered"
            assert abs(counts / 4000 - share).max() < 0.04


def test_long_windows_are_read_in_pieces_that_share_a_half() -> None:
    """Place 9 stands in the piece of the events from 6 on, place 8 in that from 3 on."""
    model, events = retriever(), windows(15)
    source = RetrieverNegatives(model, repeats=True)
    places = torch.tensor([[0, 5, 6, 8, 9, 13]]).expand(3, -1)
    with torch.no_grad():
        vectors = source._vectors(torch.from_numpy(events), places)
    for row in range(3):
        for column, (place, first) in enumerate(((0, 0), (5, 0), (6, 3), (8, 3), (9, 6), (13, 9))):
            read = torch.from_numpy(events[row : row + 1, first : place + 1])
            histories = Histories(read, torch.zeros_like(read), torch.tensor([read.shape[1]], dtype=torch.int32))
            assert_close(vectors[row, column], model.encode(histories)[0].detach(), rtol=1e-4, atol=1e-4)


def test_who_knows_everything_gets_something() -> None:
    events = np.arange(1, NUM_ITEMS + 1)[None]
    drawn = RetrieverNegatives(retriever(), repeats=False).draw(
        events, np.array([[NUM_ITEMS]]), 50, np.random.default_rng(0)
    )
    assert set(drawn.ravel().tolist()) <= set(range(1, NUM_ITEMS + 1))
    assert len(set(drawn.ravel().tolist())) > 3


def test_the_same_chance_draws_the_same() -> None:
    source, stops = RetrieverNegatives(retriever(), repeats=False), np.full((3, 1), 4)
    first, second = (source.draw(windows(MAX_LEN), stops, 9, np.random.default_rng(5)) for _ in range(2))
    assert (first == second).all()
