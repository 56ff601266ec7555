"""The page of online decisions: a few worlds of each kind, and a world that is what it says."""

import numpy as np

from benchmarks.decision_quality import World, lists_told_apart, off_policy_rows, page, peeked, split_doubted


def test_a_world_earns_what_its_policies_earn() -> None:
    rng = np.random.default_rng(0)
    world = World.draw(rng)
    logs = [world.log(500, rng) for _ in range(200)]
    earned = np.array([log.rewards.mean() for log in logs])
    own = float((world.acting * world.rates).sum(axis=1).mean())
    assert abs(earned.mean() - own) < 3 * earned.std() / np.sqrt(200)
    assert abs(np.mean([log.weights.mean() for log in logs]) - 1) < 0.02


def test_a_large_difference_is_found_by_every_way() -> None:
    rng = np.random.default_rng(1)
    found = peeked(0.5, rng)
    assert found.last
    assert found.usual_last
    assert split_doubted(0.7, rng) == (True, True)
    assert lists_told_apart(6.0, rng) == (True, True)


def test_the_page_has_a_row_of_everything() -> None:
    text = page(3, np.random.default_rng(2))
    assert len(list(off_policy_rows(3, 100, np.random.default_rng(3)))) == 7
    assert text.count("\n|") == 16 + 15
    assert "nan" not in text
