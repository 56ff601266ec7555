"""Searches of stage 1: what each keeps, and the laws of hashing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from rankers import asked, ranker, scrambled
from torch import Tensor
from torch.testing import assert_close

from recsys.event_fields import Attended, Seen, masked_softmax
from recsys.event_search import (
    CategorySearch,
    HashSearch,
    LatestSearch,
    Lookup,
    RandomSearch,
    SimHash,
    clustered,
    kept,
    recency,
    top_places,
)

LENGTH = 9


def lookup_of(categories: list[int], candidate_categories: list[int], stop: int = LENGTH) -> Lookup:
    """One history of these categories, of which the first `stop` are seen; random vectors."""
    generator = torch.Generator().manual_seed(0)
    events, candidates = len(categories), len(candidate_categories)
    return Lookup(
        items=torch.arange(1, events + 1)[None],
        categories=torch.tensor([categories]),
        keys=torch.randn(1, events, 6, generator=generator),
        candidate_categories=torch.tensor([candidate_categories]),
        queries=torch.randn(1, candidates, 6, generator=generator),
        scores=torch.randn(1, candidates, events, generator=generator),
        seen=Seen.before(torch.tensor([[stop]]), torch.arange(events)[None], events, 0),
    )


def places_of(priorities: Tensor, lookup: Lookup, most: int) -> list[list[int]]:
    """Places that are kept and valid, for each candidate."""
    places, valid = kept(priorities, lookup.seen.visible, most, lookup.queries.shape[1])
    return [row[known].tolist() for row, known in zip(places[0], valid[0], strict=True)]


def test_hard_search_takes_the_newest_of_the_category_and_fills_up_with_the_newest_others() -> None:
    lookup = lookup_of([1, 2, 1, 3, 2, 2, 1, 3, 1], [1, 3, 5], stop=8)
    priorities = CategorySearch()(lookup)
    assert places_of(priorities, lookup, 3) == [[6, 2, 0], [7, 3, 6], [7, 6, 5]]
    assert places_of(priorities, lookup, 5)[0] == [6, 2, 0, 7, 5]


def test_the_latest_are_the_latest_and_short_histories_keep_what_they_have() -> None:
    lookup = lookup_of([0] * LENGTH, [0, 0], stop=4)
    assert places_of(LatestSearch()(lookup), lookup, 3) == [[3, 2, 1]] * 2
    assert places_of(LatestSearch()(lookup), lookup, 8) == [[3, 2, 1, 0]] * 2
    nothing = lookup_of([0] * LENGTH, [0], stop=0)
    places, valid = kept(recency(nothing.seen), nothing.seen.visible, 3, 1)
    assert not valid.any()
    assert not masked_softmax(torch.ones(1, 1, 3), valid).any()
    assert places.shape == (1, 1, 3)


def test_random_events_are_any_events_and_always_the_same() -> None:
    often = np.zeros(LENGTH)
    for first in range(300):
        lookup = replace(lookup_of([0] * LENGTH, [0]), items=torch.arange(first * 50, first * 50 + LENGTH)[None])
        chosen = places_of(RandomSearch()(lookup), lookup, 3)
        assert chosen == places_of(RandomSearch()(lookup), lookup, 3)
        often[chosen[0]] += 1
    assert often.sum() == 900
    assert (np.abs(often - 100) < 5 * np.sqrt(300 * (1 / 3) * (2 / 3))).all()


def test_equal_distances_go_to_the_newer_event() -> None:
    """One bit: events are alike or not, and the newest of those alike come first."""
    torch.manual_seed(0)
    search, lookup = HashSearch(6, 1), lookup_of([0] * LENGTH, [0, 0])
    same = (search.hash(lookup.keys)[0, :, 0] == search.hash(lookup.queries)[0, :, 0, None]).tolist()
    newest_first = [
        [*(n for n in range(8, -1, -1) if row[n]), *(n for n in range(8, -1, -1) if not row[n])] for row in same
    ]
    assert places_of(search(lookup), lookup, LENGTH) == newest_first
    assert any(0 < sum(row) < LENGTH for row in same)


def pair_at(degrees: float) -> Tensor:
    """Two unit vectors at that angle."""
    angle = np.radians(degrees)
    return torch.tensor([[1.0, 0, 0], [np.cos(angle), np.sin(angle), 0]], dtype=torch.float32)


@pytest.mark.parametrize(("degrees", "expected"), [(60, 2 / 3), (90, 0.5), (0.0, 1.0)])
def test_bits_agree_as_often_as_the_angle_says(degrees: float, expected: float) -> None:
    torch.manual_seed(0)
    vectors = pair_at(degrees)[None]
    hashing = SimHash(3, 100_000)
    agreeing = hashing.agreement(vectors[:, :1], vectors[:, 1:]).item() / 100_000
    assert agreeing == pytest.approx(expected, abs=0.005)
    bits = hashing(vectors)[0]
    assert agreeing == pytest.approx((bits[0] == bits[1]).double().mean().item())


def test_groups_of_bits_collide_as_a_power() -> None:
    torch.manual_seed(0)
    vectors = pair_at(60)[None]
    collisions = SimHash(3, 200_000).collisions(vectors[:, :1], vectors[:, 1:], 2)
    assert collisions.item() == pytest.approx(4 / 9, abs=0.005)


def test_signatures_are_numbers_of_their_bits() -> None:
    torch.manual_seed(0)
    hashing, vectors = SimHash(3, 6), torch.randn(4, 3)
    bits = hashing(vectors).int()
    by_hand = torch.stack([bits[:, 3 * g] + 2 * bits[:, 3 * g + 1] + 4 * bits[:, 3 * g + 2] for g in (0, 1)], dim=1)
    assert torch.equal(hashing.signatures(vectors, 3), by_hand.long())


@pytest.mark.parametrize("groups", [48, 512, 4096])
def test_sdim_nears_its_kernel_as_groups_grow(groups: int) -> None:
    """By one over the root of their number."""
    torch.manual_seed(0)
    events, query = F.normalize(torch.randn(1, 200, 64), dim=2), F.normalize(torch.randn(1, 1, 64), dim=2)
    events = F.normalize(events + 0.5 * query, dim=2)
    weights = SimHash(64, 3 * groups).collisions(query, events, 3)
    expected = (1 - torch.arccos((query @ events.mT).clamp(-1, 1)) / torch.pi) ** 3
    error = ((weights - expected) @ events).norm() / (expected @ events).norm()
    assert 0.2 < error.item() * np.sqrt(groups) < 1.2


@pytest.mark.parametrize(("bits", "expected"), [(32, 0.51), (64, 0.58), (256, 0.77), (4096, 0.94)])
def test_eta_ranks_nearer_to_cosines_with_more_bits(bits: int, expected: float) -> None:
    """Kendall's tau as the sheet has it, cosines spread over 0 to .7."""
    torch.manual_seed(0)
    query = F.normalize(torch.randn(64), dim=0)
    other = torch.randn(200, 64)
    other = F.normalize(other - (other @ query)[:, None] * query, dim=1)
    cosines = torch.linspace(0, 0.7, 200)
    events = cosines[:, None] * query + (1 - cosines**2).sqrt()[:, None] * other
    agreeing = SimHash(64, bits).agreement(query[None, None], events[None])[0, 0]
    assert kendall(agreeing.numpy(), cosines.numpy()) == pytest.approx(expected, abs=0.1)


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Concordant less discordant pairs, over those that differ in both (tau-b)."""
    first, second = (np.sign(x[:, None] - x[None]) for x in (a, b))
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def test_a_cluster_weighs_as_its_events_do() -> None:
    """The sheet's golden vector; sizes of one change nothing; one row of size 3 is three rows."""
    scores, sizes = torch.tensor([[[1.0, 1.0, 0.0]]]), torch.tensor([1.0, 3.0, 3.0])
    everywhere = torch.ones(1, 1, 3, dtype=torch.bool)
    weights = masked_softmax(scores + sizes.log(), everywhere)
    assert_close(weights[0, 0], torch.tensor([0.195939, 0.587816, 0.216245]), atol=1e-6, rtol=0)
    copies = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]])
    apart = masked_softmax(copies, torch.ones(1, 1, 7, dtype=torch.bool))[0, 0]
    assert_close(torch.stack([apart[0], apart[1:4].sum(), apart[4:].sum()]), weights[0, 0])


def test_clusters_are_counted_among_what_is_seen() -> None:
    """The newest visible event of each stands for it."""
    seen = Seen.before(torch.tensor([[6, 4]]), torch.zeros(1, 6, dtype=torch.int64), 5, 0)
    stands, log_sizes = clustered(torch.tensor([[7, 3, 7, 3, 7, 5]]), seen)
    assert stands.visible[0].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]]
    sizes = log_sizes.exp().round().int() * stands.visible
    assert sizes[0].tolist() == [[0, 0, 0, 2, 2, 1], [0, 0, 2, 2, 0, 0]]


@torch.no_grad()
def test_clusters_of_one_are_twin() -> None:
    """With bits enough all events but equal items stand alone."""
    twin, clusters = scrambled(ranker("twin")), scrambled(ranker("twin-v2", cluster_bits=60))
    histories, candidates = asked()
    histories = replace(histories, items=torch.stack([torch.randperm(29)[:11] + 1 for _ in range(5)]))
    assert_close(clusters.score(histories, candidates), twin.score(histories, candidates), rtol=1e-5, atol=1e-6)
    fewer = scrambled(ranker("twin-v2")).score(histories, candidates)
    assert (fewer - twin.score(histories, candidates)).abs().max() > 1e-3


@torch.no_grad()
def test_the_size_of_a_cluster_is_added_to_its_score() -> None:
    """Equal items are one cluster at any number of bits."""
    twin, clusters = scrambled(ranker("twin")), scrambled(ranker("twin-v2", cluster_bits=60))
    items, candidates = torch.tensor([[3, 9, 3, 3, 7]]), torch.tensor([[5, 6]])
    seen = Seen.before(torch.tensor([[5]]), torch.arange(5)[None], 11, 9)
    alone, together = (model._lookup(items, candidates, seen) for model in (twin, clusters))
    assert together.seen.visible[0, 0].tolist() == [False, True, False, True, True]
    added = torch.tensor([0, 3, 0]).clamp(min=1).log()
    assert_close((together.scores - alone.scores)[0, :, [1, 3, 4]], added.expand(2, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("dare", 1, 1), ("twin", 1, 1), ("sim-soft", 0, 0.75), ("eta", 0, 0.75), ("random-k", 0.2, 0.5)],
)
@torch.no_grad()
def test_share_of_the_best_events_that_a_search_keeps(method: str, low: float, high: float) -> None:
    """Of the four that attention likes best, among eleven: all by construction, or about 4 / 11 by chance."""
    model = scrambled(ranker(method))
    histories, candidates = asked(rows=60, longest=11)
    histories = replace(histories, items=histories.items.clamp(min=1), lengths=torch.full((60,), 11, dtype=torch.int32))
    seen = Seen.before(histories.lengths[:, None], histories.timestamps, 11, 9)
    lookup = model._lookup(histories.items, candidates, seen)
    chosen = model._attended(lookup, model.search(lookup))  # type: ignore[misc]
    best = lookup.scores.topk(4, dim=2).indices
    recall = (chosen.places[..., None] == best[:, :, None]).any(dim=2).double().mean().item()  # type: ignore[index]
    assert low <= recall <= high


def test_pooling_by_place_equals_pooling_all() -> None:
    """Kept events, and the same weights spread over all of them."""
    generator = torch.Generator().manual_seed(0)
    semantic, table = torch.randn(2, LENGTH, 4, generator=generator), torch.randn(LENGTH + 1, 3, generator=generator)
    seen = Seen.before(torch.tensor([[9], [6]]), torch.zeros(2, LENGTH, dtype=torch.int64), LENGTH, 0)
    places = torch.tensor([[[8, 1], [3, 2]], [[0, 5], [4, 4]]])
    weights = torch.rand(2, 2, 2, generator=generator)
    dense = torch.zeros(2, 2, LENGTH).scatter_add(2, places, weights)
    by_hand = torch.stack([
        torch.stack([
            sum(
                w * torch.cat([semantic[b, n], table[stop - n]])
                for w, n in zip(weights[b, c], places[b, c], strict=True)
            )
            for c in range(2)
        ])
        for b, stop in enumerate((9, 6))
    ])
    assert_close(Attended(weights, places).pooled(semantic, [table], seen), by_hand)
    assert_close(Attended(dense).pooled(semantic, [table], seen), by_hand)


@pytest.mark.parametrize("length", [1279, 2560 + 64, 4011])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_the_greatest_of_many_values_are_found_block_by_block(length: int, dtype: torch.dtype) -> None:
    """In order, wherever they are; a lopsided row has them all in one block, another in the rest that is no block."""
    generator = torch.Generator().manual_seed(length)
    values = torch.stack([torch.randperm(length, generator=generator) for _ in range(3)])
    values[1] = torch.arange(length)
    values[2] = (torch.arange(length) - 700).abs().neg() * 2 + (torch.arange(length) > 700)
    values = values[None].to(dtype)
    assert top_places(values, 20).tolist() == values.topk(20, dim=2).indices.tolist()


def test_equal_values_are_found_though_not_in_a_certain_order() -> None:
    values = torch.randint(0, 3, (2, 3, 3000), generator=torch.Generator().manual_seed(0))
    found = top_places(values, 10)
    assert values.gather(2, found).tolist() == values.topk(10, dim=2).values.tolist()
    assert all(len(set(row)) == 10 for row in found.flatten(0, 1).tolist())


def test_clusters_by_their_definition() -> None:
    """Event by event: as many as are visible of the cluster, and only the newest of them stands."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 5, (3, 12), generator=generator) * 2**50
    seen = Seen.before(torch.tensor([[12, 4, 0, 7]] * 3), torch.zeros_like(ids), 6, 0)
    stands, log_sizes = clustered(ids, seen)
    for row, candidate, event in seen.visible.nonzero().tolist():
        alike = [
            other for other in range(12) if ids[row, other] == ids[row, event] and seen.visible[row, candidate, other]
        ]
        assert log_sizes[row, candidate, event].item() == pytest.approx(np.log(len(alike)), abs=1e-6)
        assert stands.visible[row, candidate, event].item() == (event == max(alike))
    assert not (stands.visible & ~seen.visible).any()
