"""What an item earns at a place of a list: the model of rewards behind the direct method and doubly robust estimates.

    q(item, place) = rate of the place x lift of the item
    lift           = (what the item earned + PRIOR) / (what its places would have earned + PRIOR)

An item shown seldom keeps a lift near 1. Users are dealt to folds, and rewards of a fold are predicted from the others:
predicted from themselves they would look better known than they are. Dimensions: N rows, V items, K places.
"""

from dataclasses import dataclass

import numpy as np

from recsys.metrics import FloatArray, IntArray

PRIOR = 1.0
"""In units of reward: how much evidence lies in knowing nothing of an item."""
FOLDS = 5


@dataclass(frozen=True)
class RewardModel:
    """Rates [K] and lifts [V]."""

    rates: FloatArray
    lifts: FloatArray

    @classmethod
    def fit(
        cls, items: IntArray, places: IntArray, rewards: FloatArray, num_items: int, num_places: int
    ) -> "RewardModel":
        """Of rows with item numbers below `num_items` and places below `num_places`; unseen places have the mean."""
        shown = np.bincount(places, minlength=num_places)
        earned = np.bincount(places, rewards, minlength=num_places)
        mean = rewards.mean() if len(rewards) else 0.0
        rates = np.divide(earned, shown, out=np.full(num_places, mean), where=shown > 0)
        own = np.bincount(items, rewards, minlength=num_items)
        due = np.bincount(items, rates[places], minlength=num_items)
        return cls(rates, (own + PRIOR) / (due + PRIOR))

    def predict(self, items: IntArray, places: IntArray) -> FloatArray:
        """Of items at places, in any shape."""
        return self.rates[places] * self.lifts[items]


def cross_fitted(
    users: IntArray, items: IntArray, places: IntArray, rewards: FloatArray, others: IntArray, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Predictions [N] of the items shown, and of the `others` [N] in their place, each by users of other folds."""
    num_items, num_places = int(max(items.max(), others.max())) + 1, int(places.max()) + 1
    _, own = np.unique(users, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(own.max() + 1)[own] % FOLDS
    predicted, expected = np.empty(len(items)), np.empty(len(items))
    for number in range(FOLDS):
        held, rest = fold == number, fold != number
        model = RewardModel.fit(items[rest], places[rest], rewards[rest], num_items, num_places)
        predicted[held] = model.predict(items[held], places[held])
        expected[held] = model.predict(others[held], places[held])
    return predicted, expected
