"""Negatives: what may be drawn, how often, and that weighted sums over them are sums over the catalogue."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recsys.errors import ConfigError
from recsys.negatives import Negatives, NegativeSampler, unseen_negatives

NUM_ITEMS = 40
COUNTS = np.array([0, *(1 + 20 * (row % 4 == 0) + row // 10 for row in range(1, NUM_ITEMS + 1))])
SAMPLINGS = ("uniform", "popularity", "in-batch", "mixed")


def sampler(sampling: str, num_negatives: int = 12, log_q: bool = True) -> NegativeSampler:
    """Over 40 items, every fourth of them popular."""
    made = NegativeSampler(sampling, num_negatives, log_q, NUM_ITEMS)  # type: ignore[arg-type]
    made.learn_popularity(COUNTS)
    return made


def batch_of_events(rng: np.random.Generator) -> np.ndarray:
    """Events [B, L] as often as they are popular, the last columns padding."""
    items = rng.choice(NUM_ITEMS + 1, (6, 9), p=COUNTS / COUNTS.sum())
    items[:, 7:] = 0
    return items


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draw_is_of_distinct_items_in_ascending_order(sampling: str) -> None:
    """So a search finds a target among them; and never padding, nor a row beyond the catalogue."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        negatives = sampler(sampling).draw(batch_of_events(rng), rng)
        assert negatives.shared
        assert (negatives.items[1:] > negatives.items[:-1]).all()
        assert 1 <= negatives.items.min()
        assert negatives.items.max() <= NUM_ITEMS
        assert negatives.items.shape == negatives.log_weight.shape
        assert negatives.log_weight.dtype == torch.float32


def test_uniform_negatives_are_as_many_as_asked_for_and_all_alike() -> None:
    rng = np.random.default_rng(0)
    often = np.zeros(NUM_ITEMS + 1)
    for _ in range(2000):
        negatives = sampler("uniform").draw(np.zeros((2, 3), dtype=np.int64), rng)
        assert len(negatives.items) == 12
        assert negatives.log_weight.exp() == pytest.approx(NUM_ITEMS / 12)
        often[negatives.items] += 1
    expected = 2000 * 12 / NUM_ITEMS
    assert often[0] == 0
    assert often[1:] == pytest.approx(np.full(NUM_ITEMS, expected), abs=5 * np.sqrt(expected * (1 - 12 / NUM_ITEMS)))


def test_a_uniform_draw_may_be_the_whole_catalogue() -> None:
    negatives = sampler("uniform", NUM_ITEMS).draw(np.zeros((2, 3), dtype=np.int64), np.random.default_rng(0))
    assert negatives.items.tolist() == list(range(1, NUM_ITEMS + 1))
    assert not negatives.log_weight.any()


@pytest.mark.parametrize("sampling", ["uniform", "mixed"])
def test_more_distinct_negatives_than_items_are_refused(sampling: str) -> None:
    too_many = NUM_ITEMS + 1 if sampling == "uniform" else 2 * NUM_ITEMS + 2
    with pytest.raises(ConfigError, match=r"loss: \d+ distinct negatives cannot be drawn from 40 items"):
        NegativeSampler(sampling, too_many, True, NUM_ITEMS)  # type: ignore[arg-type]


def test_popular_items_are_drawn_as_often_as_events_name_them() -> None:
    """Without logQ the weight of an item is how often it was drawn."""
    rng = np.random.default_rng(0)
    drawn = np.zeros(NUM_ITEMS + 1)
    for _ in range(500):
        negatives = sampler("popularity", 100, log_q=False).draw(np.zeros((2, 3), dtype=np.int64), rng)
        times = negatives.log_weight.double().exp().numpy()
        assert times.sum() == pytest.approx(100, rel=1e-5)
        drawn[negatives.items.numpy()] += times
    expected = 50_000 * COUNTS / COUNTS.sum()
    assert drawn[0] == 0
    assert (np.abs(drawn - expected)[1:] < 5 * np.sqrt(expected[1:])).all()


def test_in_batch_negatives_are_events_of_the_batch() -> None:
    batch = np.array([[3, 7, 7, 0], [31, 3, 0, 0]])
    seen = set()
    for seed in range(30):
        drawn = sampler("in-batch").draw(batch, np.random.default_rng(seed)).items
        seen |= set(drawn.tolist())
    assert seen == {3, 7, 31}


def test_mixed_negatives_are_half_of_each() -> None:
    """Of 12, six are uniform and distinct; the others all name the only item of the batch."""
    batch = np.full((2, 3), 8)
    for seed in range(30):
        negatives = sampler("mixed", log_q=False).draw(batch, np.random.default_rng(seed))
        times = dict(zip(negatives.items.tolist(), negatives.log_weight.exp().round().int().tolist(), strict=True))
        assert times.pop(8) in {6, 7}
        assert set(times.values()) == {1}
        assert sum(times.values()) in {5, 6}


def estimates(sampling: str, log_q: bool, values: np.ndarray) -> np.ndarray:
    """Weighted sums of `values` [V] over 4,000 draws."""
    made = sampler(sampling, log_q=log_q)
    sums = []
    for seed in range(4000):
        rng = np.random.default_rng(seed)
        drawn = made.draw(batch_of_events(rng), rng)
        sums.append(float(drawn.log_weight.double().exp().numpy() @ values[drawn.items.numpy()]))
    return np.array(sums)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weighted_sums_have_the_sum_over_the_catalogue_for_their_mean(sampling: str) -> None:
    """exp of scores that like popular items; within four standard errors, which are below 2 %."""
    values = np.exp(np.sin(np.arange(NUM_ITEMS + 1)) + COUNTS / 20)
    sums = estimates(sampling, True, values)
    whole, error = values[1:].sum(), sums.std() / np.sqrt(len(sums))
    assert error < 0.02 * whole
    assert abs(sums.mean() - whole) < 4 * error


@pytest.mark.parametrize("sampling", ["popularity", "in-batch", "mixed"])
def test_without_the_correction_popular_items_count_too_much(sampling: str) -> None:
    """Even scaled to the size of the catalogue."""
    values = np.exp(np.sin(np.arange(NUM_ITEMS + 1)) + COUNTS / 20)
    sums = estimates(sampling, False, values) * NUM_ITEMS / 12
    whole, error = values[1:].sum(), sums.std() / np.sqrt(len(sums))
    assert sums.mean() > 1.1 * whole
    assert sums.mean() - whole > 20 * error


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_seed_decides_the_draw(sampling: str) -> None:
    batch = batch_of_events(np.random.default_rng(3))

    def drawn(seed: int) -> list[int]:
        return sampler(sampling).draw(batch, np.random.default_rng(seed)).items.tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_negative_of_its_own_is_nothing_that_the_row_holds() -> None:
    histories = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, (50, 9))
    histories[:, 7:] = 0
    negatives = unseen_negatives(histories, NUM_ITEMS, np.random.default_rng(1))
    assert not negatives.shared
    assert negatives.items.shape == histories.shape
    assert not (negatives.items[:, :, None] == torch.from_numpy(histories)[:, None, :]).any()
    assert set(negatives.items.flatten().tolist()) == set(range(1, NUM_ITEMS + 1))


def test_where_a_row_holds_everything_a_known_item_is_drawn() -> None:
    everything = np.arange(1, NUM_ITEMS + 1)[None]
    negatives = unseen_negatives(everything, NUM_ITEMS, np.random.default_rng(1))
    assert ((1 <= negatives.items) & (negatives.items <= NUM_ITEMS)).all()


@pytest.mark.parametrize("sampling", ["popularity", "in-batch", "mixed"])
def test_popularity_must_be_known_before_the_first_batch(sampling: str) -> None:
    made = NegativeSampler(sampling, 12, True, NUM_ITEMS)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"{sampling} negatives need learn_popularity"):
        made.draw(np.ones((2, 3), dtype=np.int64), np.random.default_rng(0))


def per_position() -> Negatives:
    """[B, L] = [3, 4]: each item is 10 times its row plus its column, its weight minus that."""
    items = 10 * torch.arange(1, 4)[:, None] + torch.arange(4)
    return Negatives(items, -items.float())


def shared() -> Negatives:
    """Three for every position."""
    return Negatives(torch.tensor([2, 5, 9]), torch.tensor([0.5, 1.0, 1.5]))


@pytest.mark.parametrize("part", [lambda n: n.rows(torch.tensor([2, 0])), lambda n: n.at(torch.eye(3, 4).bool())])
def test_parts_of_shared_negatives_are_all_of_them(part: Callable[[Negatives], Negatives]) -> None:
    assert part(shared()).items.tolist() == [2, 5, 9]
    assert part(shared()).log_weight.tolist() == [0.5, 1.0, 1.5]


def test_parts_of_a_positions_own_negatives_go_with_it() -> None:
    rows = per_position().rows(torch.tensor([2, 0]))
    assert rows.items.tolist() == [[30, 31, 32, 33], [10, 11, 12, 13]]
    chosen = per_position().at(torch.eye(3, 4).bool())
    assert chosen.items.tolist() == [10, 21, 32]
    assert chosen.log_weight.tolist() == [-10, -21, -32]
