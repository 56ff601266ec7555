"""People for the simulator: what they would click, fitted to real ratings that recommenders never see.

Ratings are explained by biases and factors (alternating ridge regressions), and the chance that a rating is a like
follows from the explained one by a logistic curve. A person reads place k of a list with chance 1 / log2(1 + k) and
clicks what is read with a share of the chance of a like. Dimensions: U people, V items (numbers from 0), N ratings.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.metrics import FloatArray, IntArray

FACTORS, RIDGE, ROUNDS = 6, 20.0, 12
LIKE = 4.0
CLICKED = 0.15
"""Share of liked items that are clicked when read."""


@dataclass(frozen=True)
class People:
    """Chances [U, V] that a person clicks an item that is read."""

    clicks: FloatArray

    @classmethod
    def fit(cls, people: IntArray, items: IntArray, ratings: FloatArray, shape: tuple[int, int]) -> "People":
        """To all ratings given."""
        explained = explained_ratings(people, items, ratings, shape)
        slope, offset = logistic(explained[people, items], ratings >= LIKE)
        return cls(CLICKED / (1 + np.exp(-(slope * explained + offset))))


def explained_ratings(people: IntArray, items: IntArray, ratings: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """[U, V], mean + biases + inner products of factors."""
    mean = float(ratings.mean())
    rng = np.random.default_rng(0)
    theirs: FloatArray = np.c_[rng.normal(0, 0.1, (shape[0], FACTORS)), np.zeros(shape[0])]
    its: FloatArray = np.c_[rng.normal(0, 0.1, (shape[1], FACTORS)), np.zeros(shape[1])]
    for _ in range(ROUNDS):
        theirs = solved(people, ratings - mean - its[items, -1], np.c_[its[items, :-1], np.ones(len(items))], shape[0])
        its = solved(
            items, ratings - mean - theirs[people, -1], np.c_[theirs[people, :-1], np.ones(len(items))], shape[1]
        )
    return mean + theirs[:, -1:] + its[:, -1] + theirs[:, :-1] @ its[:, :-1].T


def solved(rows: IntArray, targets: FloatArray, inputs: FloatArray, size: int) -> FloatArray:
    """[size, F], the ridge regression of each row's targets on its inputs [N, F]."""
    width = inputs.shape[1]
    products = np.zeros((size, width, width))
    np.add.at(products, rows, inputs[:, :, None] * inputs[:, None, :])
    sides = np.stack([np.bincount(rows, targets * column, minlength=size) for column in inputs.T], axis=1)
    solutions = np.linalg.solve(products + RIDGE * np.eye(width), sides[:, :, None])
    return np.asarray(solutions[:, :, 0], dtype=np.float64)


def logistic(inputs: FloatArray, outcomes: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the chance of an outcome (Newton's method)."""
    columns, weights = np.c_[inputs, np.ones(len(inputs))], np.zeros(2)
    for _ in range(20):
        chance = 1 / (1 + np.exp(-columns @ weights))
        slopes = columns.T @ (outcomes - chance)
        weights = weights + np.linalg.solve((columns * (chance * (1 - chance))[:, None]).T @ columns, slopes)
    return float(weights[0]), float(weights[1])


def read_chances(places: int) -> FloatArray:
    """[places], how likely each place of a list is read."""
    return 1 / np.log2(np.arange(2, places + 2))
