"""What stands together, by hand; and that a user's own events are no evidence."""

import numpy as np
import pytest
import torch
from noisy_logs import training_events

from recsys.cooccurrence import cooccurrence_vectors, pair_counts, positive_pmi
from recsys.relations import beside_others, fit_relations, log_popularity, other_pairs, text_directions

HISTORIES = [[1, 2, 1, 3], [2, 4], [3, 3, 4, 5, 1]]


def test_pairs_are_counted_as_by_hand() -> None:
    """Fewer than three apart, never with itself, never across users."""
    expected = np.zeros((7, 7))
    for history in HISTORIES:
        for first in range(len(history)):
            for second in range(first + 1, min(first + 3, len(history))):
                if history[first] != history[second]:
                    expected[history[first], history[second]] += 1
                    expected[history[second], history[first]] += 1
    assert (pair_counts(training_events(HISTORIES, 6), 3).toarray() == expected).all()


def test_information_is_its_formula() -> None:
    counts = pair_counts(training_events(HISTORIES, 6), 3)
    dense = counts.toarray()
    totals = dense.sum(axis=1)
    context = totals**0.75 / (totals**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(dense > 0, np.maximum(np.log(dense / totals[:, None] / context[None]), 0), 0)
    np.testing.assert_allclose(positive_pmi(counts).toarray(), expected, atol=1e-12)


def test_vectors_have_length_one_or_are_zero() -> None:
    vectors = cooccurrence_vectors(training_events(HISTORIES, 6), 3, 32)
    lengths = np.linalg.norm(vectors, axis=1)
    assert vectors.shape == (7, 5)
    np.testing.assert_allclose(lengths[[1, 2, 3, 4]], 1, atol=1e-5)
    assert lengths[0] == lengths[6] == 0


def test_users_without_neighbours_give_no_vectors() -> None:
    assert not cooccurrence_vectors(training_events([[1], [2], [3, 3]], 6), 3, 4).any()


def test_figures_beside_others_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    lengths = [5, 2, 3]
    similarity = torch.from_numpy(rng.normal(size=(3, 5, 5)).astype(np.float32))
    rows = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0], [3, 1, 2, 0, 0]])
    found = beside_others(similarity, other_pairs(rows, torch.tensor(lengths)))
    for window, length in enumerate(lengths):
        for event in range(length):
            others = [float(similarity[window, event, other]) for other in range(length) if other != event]
            rest = [
                float(similarity[window, one, other])
                for one in range(length)
                for other in range(length)
                if one != other and event not in {one, other}
            ]
            # "alike" counts every ordered pair once; the similarity here is not symmetric, so both ways are averaged
            column = sum(float(similarity[window, other, event]) for other in range(length) if other != event)
            total = sum(rest) + sum(others) + column
            expected = [
                np.mean(others),
                max(others),
                np.mean(sorted(others)[-3:]),
                (total - 2 * sum(others)) / max(1, (length - 1) * (length - 2)),
            ]
            np.testing.assert_allclose([float(one[window, event]) for one in found], expected, rtol=1e-4, atol=1e-5)


def test_a_fold_is_judged_by_what_others_did() -> None:
    """Block 0 changes with fold 1's events and not with fold 0's; the last block knows all."""
    folds = np.array([0, 1, 1])
    texts = np.zeros((7, 0), dtype=np.float32)
    base = fit_relations(training_events(HISTORIES, 6), folds, texts, 3, 4)
    other = fit_relations(training_events([[6, 5, 6], *HISTORIES[1:]], 6), folds, texts, 3, 4)
    assert (base.num_rows, base.last_block) == (7, 2)
    assert torch.equal(base.popularity[:7], other.popularity[:7])
    assert torch.equal(base.cooccurrence[:7], other.cooccurrence[:7])
    assert not torch.equal(base.popularity[7:14], other.popularity[7:14])
    np.testing.assert_allclose(
        base.popularity[14:], log_popularity(training_events(HISTORIES, 6).item_counts()), rtol=1e-6
    )


def test_features_say_what_is_there_twice_and_ignore_padding() -> None:
    rng = np.random.default_rng(1)
    relations = fit_relations(
        training_events(HISTORIES, 6), np.array([0, 1, 1]), rng.normal(size=(7, 9)).astype(np.float32), 3, 4
    )
    block = 2 * 7
    short = relations.features(torch.tensor([[1, 2, 1]]) + block, torch.tensor([3]))
    padded = relations.features(torch.tensor([[1, 2, 1, 0, 0]]) + block, torch.tensor([3]))
    assert short.shape == (1, 3, 10)
    torch.testing.assert_close(padded[:, :3], short)
    assert short[0, :, -1].tolist() == [1, 0, 1]


def test_text_directions_are_centred_and_leave_what_has_no_text() -> None:
    texts = np.random.default_rng(2).normal(size=(20, 6)).astype(np.float32) + 3
    texts[4] = 0
    found = text_directions(texts)
    assert found.shape == (20, 6)
    assert not found[4].any()
    described = np.delete(texts, 4, axis=0)
    centred = described - described.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    kept = np.delete(found, 4, axis=0)
    np.testing.assert_allclose(kept @ kept.T, centred @ centred.T, atol=1e-5)
    assert text_directions(np.zeros((5, 0), dtype=np.float32)).shape == (5, 0)


@pytest.mark.parametrize("block", [0, 2])
def test_what_fits_is_what_loops_find(block: int) -> None:
    rng = np.random.default_rng(3)
    relations = fit_relations(
        training_events(HISTORIES, 6), np.array([0, 1, 1]), rng.normal(size=(7, 9)).astype(np.float32), 3, 4
    )
    rows = torch.tensor([[1, 2, 3]]) + 7 * block
    weights = torch.tensor([[1.0, 0.0, 1.0]])
    found = relations.fit(block, rows, weights)[0]
    for item in range(7):
        own = relations.cooccurrence[7 * block + item]
        if not own.any():
            assert found[item] == -torch.inf
            continue
        witnesses = [1, 3]
        score = np.mean([float(relations.cooccurrence[7 * block + one] @ own) for one in witnesses])
        score += np.mean([float(relations.texts[one] @ relations.texts[item]) for one in witnesses])
        assert float(found[item]) == pytest.approx(
            score + 0.05 * float(relations.popularity[7 * block + item]), abs=1e-5
        )
