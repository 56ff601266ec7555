"""What rankers are taught and what they learn: targets and negatives of windows, a signal, and nothing from noise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from contract import adamw_steps
from rankers import METHODS, NUM_CATEGORIES, NUM_ITEMS, ranker
from tiny import histories_of, random_histories, windows_of

from models.dare import DARE
from recsys.batches import Histories

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def test_targets_and_negatives_of_a_window() -> None:
    """At most so many targets, each as the next item; negatives are new to the window by then."""
    model = ranker(positives=4, negatives=3, num_items=290)
    for seed in range(20):
        histories = random_histories(6, NUM_ITEMS, 22, seed, shortest=2)
        batch = model.training_batch(windows_of(histories), np.random.default_rng(seed))
        assert batch.negatives is not None
        for row, history in enumerate(histories):
            places = batch.target[row].nonzero().flatten().tolist()
            assert len(places) == min(4, len(history) - 1)
            assert len(history) < 22 or min(places) >= 10, "a full window's first half was taught by the one before"
            for place in places:
                assert batch.target[row, place] == history[place + 1]
                assert not set(batch.negatives.items[row, place].tolist()) & set(history[: place + 2])
    elsewhere = batch.target == 0
    assert not batch.negatives.items[elsewhere].any()


def test_a_later_event_may_be_a_negative_now() -> None:
    """Whether it will be clicked is not known; the official code looks ahead."""
    model = ranker(num_items=3, positives=9, negatives=5)
    batch = model.training_batch(windows_of([[1, 2, 3]]), np.random.default_rng(0))
    assert batch.negatives is not None
    assert batch.negatives.items[0, 0].tolist() == [3] * 5


def tastes(step: int, signal: bool, count: int = 32) -> list[list[int]]:
    """Users who take nine items, all of a category of their own or any."""
    rng = np.random.default_rng(step)
    groups = [[row for row in range(1, NUM_ITEMS + 1) if row % (NUM_CATEGORIES + 1) == taste] for taste in range(1, 6)]
    everything = list(range(1, NUM_ITEMS + 1))
    return [rng.choice(groups[rng.integers(5)] if signal else everything, 9).tolist() for _ in range(count)]


@torch.no_grad()
def auc_of(model: DARE, fresh: Callable[[int], list[list[int]]]) -> float:
    """How often a click of fresh users stands above its negatives."""
    batch = model.training_batch(windows_of(fresh(10**6)), np.random.default_rng(1))
    places = batch.target[:, -1:].nonzero()[:, 0]
    shown = torch.cat([batch.target[places, -1:], batch.negatives.items[places, -1]], dim=1)  # type: ignore[union-attr]
    lengths = torch.full((len(places),), batch.history.shape[1], dtype=torch.int32)
    scores = model.score(
        Histories(batch.history[places], batch.timestamps[places], lengths).latest(model.max_len), shown
    )
    return (scores[:, :1] > scores[:, 1:]).double().mean().item()


@EVERY_METHOD
def test_it_learns_what_users_like(method: str) -> None:
    """All but a negative in six of the same category, which no one can tell from the click."""
    model = ranker(method, embedding_dim=8, positives=8)
    adamw_steps(model, 30, lambda step: tastes(step, signal=True), rate=3e-2)
    assert auc_of(model.eval(), lambda step: tastes(step, signal=True, count=400)) > 0.85


@pytest.mark.parametrize("method", ["dare", "din", "sdim"])
def test_it_learns_nothing_from_noise(method: str) -> None:
    """Negatives are new to the user and clicks are not, always: items drawn with replacement would be a signal."""
    model = ranker(method, embedding_dim=8, positives=8)

    def noise(step: int, count: int = 32) -> list[list[int]]:
        rng = np.random.default_rng(step)
        return [(1 + rng.permutation(NUM_ITEMS)[:9]).tolist() for _ in range(count)]

    adamw_steps(model, 30, noise, rate=3e-2)
    assert abs(auc_of(model.eval(), lambda step: noise(step, 400)) - 0.5) < 0.06


def long_ago(step: int, count: int = 32) -> list[list[int]]:
    """A taste shown by three events, then seven of items without category, then the click it explains."""
    rng = np.random.default_rng(step)
    plain = [row for row in range(1, NUM_ITEMS + 1) if row % 6 == 0]
    users = []
    for _ in range(count):
        category = int(rng.integers(1, 6))
        taste = [row for row in range(1, NUM_ITEMS + 1) if row % 6 == category]
        users.append([*rng.permutation(taste)[:3].tolist(), *rng.choice(plain, 7).tolist(), int(rng.choice(taste))])
    return users


def test_a_search_finds_what_the_latest_events_do_not_hold() -> None:
    """Four events are kept of ten; by category is the best search where categories are the signal."""
    reached = {}
    for method in ("dare", "sim-hard", "last-k"):
        model = ranker(method, embedding_dim=8, positives=10)
        adamw_steps(model, 50, long_ago, rate=3e-2)
        reached[method] = auc_of(model.eval(), lambda step: long_ago(step, 400))
    assert reached["dare"] > 0.8 > 0.65 > reached["last-k"]
    assert reached["sim-hard"] > 0.8


class Constant:
    """A retriever that gives each item the same score after every history."""

    max_len = 9

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def item_vectors(self) -> torch.Tensor:
        """One number each."""
        return self.scores[:, None]

    def encode(self, batch: Histories) -> torch.Tensor:
        """Ones."""
        return torch.ones(len(batch.lengths), 1)

    def prefix_vectors(self, items: torch.Tensor, timestamps: torch.Tensor) -> torch.Tensor:
        """Ones."""
        assert items.shape == timestamps.shape
        return torch.ones(*items.shape, 1)


@pytest.mark.parametrize("knows", [False, True])
def test_it_learns_what_its_retriever_does_not_know(knows: bool) -> None:
    """Items of one category are taken eight times as often as others.

    Beside answers of a retriever that knows it nothing is left to learn; of one that does not, logits tell them apart.
    """
    liked = torch.arange(NUM_ITEMS + 1) % (NUM_CATEGORIES + 1) == 2
    truth = torch.where(liked, np.log(8.0), 0.0).float()
    share = truth[1:].double().softmax(dim=0).numpy()
    model = ranker(embedding_dim=8, positives=8)
    model.learn_retriever(Constant(truth if knows else torch.zeros(NUM_ITEMS + 1)), repeats=True)

    def taken(step: int) -> list[list[int]]:
        rng = np.random.default_rng(step)
        return [(1 + rng.choice(NUM_ITEMS, 3, p=share)).tolist() for _ in range(64)]

    adamw_steps(model, 60, taken, rate=1e-2)
    histories, candidates = histories_of(taken(10**6)), torch.arange(1, NUM_ITEMS + 1).expand(64, -1)
    with torch.no_grad():
        logits = model.eval().score(histories, candidates).mean(dim=0)
    learned = float(logits[liked[1:]].mean() - logits[~liked[1:]].mean())
    assert (abs(learned) < 0.5) if knows else (learned > 1.2)
