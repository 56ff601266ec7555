"""Rows of new items by their texts."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recsys.new_rows import RIDGES, rows_from_texts

N, F, D, M = 40, 6, 3, 5


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(texts: np.ndarray, rows: np.ndarray, ridge: float, asked: np.ndarray) -> np.ndarray:
    """With an intercept that is not punished."""
    mean_text, mean_row = texts.mean(axis=0), rows.mean(axis=0)
    centred = texts - mean_text
    weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(F), centred.T @ (rows - mean_row))
    return mean_row + (asked - mean_text) @ weights


def test_the_ridge_predicts_left_out_rows_best() -> None:
    texts, new = drawn(0, N, F).numpy(), drawn(1, M, F).numpy()
    rows = texts @ drawn(2, F, D).numpy() + 3 * drawn(3, N, D).numpy() + 1
    centred = texts - texts.mean(axis=0)
    largest = np.linalg.eigvalsh(centred.T @ centred)[-1]

    def error(ridge: float) -> float:
        return sum(
            ((regression(np.delete(texts, n, 0), np.delete(rows, n, 0), ridge, texts[n]) - rows[n]) ** 2).sum()
            for n in range(N)
        )

    best = min((ridge * largest for ridge in RIDGES), key=error)
    assert RIDGES[0] < best / largest < RIDGES[-1], "the case should not be decided by the grid's ends"
    found = rows_from_texts(torch.from_numpy(texts), torch.from_numpy(rows), torch.from_numpy(new))
    np.testing.assert_allclose(found.numpy(), regression(texts, rows, best, new), rtol=1e-9)


def test_what_texts_say_exactly_is_found() -> None:
    truth, shift = drawn(0, F, D), drawn(1, D)
    texts, new = drawn(2, N, F), drawn(3, M, F)
    assert_close(rows_from_texts(texts, texts @ truth + shift, new), new @ truth + shift, rtol=1e-4, atol=1e-4)


def test_where_texts_say_nothing_rows_are_near_the_mean() -> None:
    texts, rows, new = drawn(0, 400, F), drawn(1, 400, D) + 5, drawn(2, M, F)
    assert_close(rows_from_texts(texts, rows, new), rows.mean(dim=0).expand(M, D), rtol=0, atol=0.1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_row_or_two_are_enough(number: int) -> None:
    found = rows_from_texts(drawn(0, number, F), drawn(1, number, D), drawn(2, M, F))
    assert found.isfinite().all()
