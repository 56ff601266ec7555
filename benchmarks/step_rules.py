"""Which of a model's S = K + 1 answers to give, without knowing the target; N cases, V item rows, D width.

Lowest entropy, highest probability, largest margin: the answer whose softmax over the catalogue is surest.
Halting: the first answer whose ten best items are mostly those of the answer before; it saves the steps behind.
Gates, linear or of one hidden layer, over `AnswerFigures.features`: they maximise what the learning cases would score
if each answer were drawn with the gate's probability, as the reward of every answer is known.
One weight a step, the same for everyone: scores added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.metrics import FloatArray, IntArray, ndcg_at_k
from recsys.resampling import Resamples

CUTOFF, DRAWS = 10, 2_000
THRESHOLDS = tuple(range(CUTOFF + 2))
CASES_AT_ONCE = 256
GATE_ROUNDS, GATE_RATE, GATE_DECAY = 300, 0.01, 0.001
REWARD_SCALE = 20.0
"""NDCG@10 lies near .05 on average: scaled, rewards stand against the weights' decay as a loss of order 1 would."""


@dataclass(frozen=True)
class AnswerFigures:
    """What each answer says of itself: arrays [S, N], and the rows of its ten best items `best` [S, N, 10].

    `ranks` are those of the targets. Entropy in nats; `probability` is the best item's and `margin` its lead in score
    over the second; `popularity` the logarithm of 1 + the best item's training events.
    """

    ranks: IntArray
    entropy: FloatArray
    probability: FloatArray
    margin: FloatArray
    popularity: FloatArray
    best: IntArray

    def cases(self, chosen: IntArray) -> "AnswerFigures":
        """Those of some cases."""
        return AnswerFigures(**{name: values[:, chosen] for name, values in vars(self).items()})

    @property
    def gains(self) -> FloatArray:
        """NDCG@10 [S, N]."""
        return ndcg_at_k(self.ranks, CUTOFF)

    def shared(self) -> IntArray:
        """Items that the ten best of each answer but the first share with those of the answer before, [S - 1, N]."""
        return np.stack([
            (after[:, :, None] == before[:, None]).any(axis=2).sum(axis=1)
            for before, after in zip(self.best[:-1], self.best[1:], strict=True)
        ])

    def features(self, lengths: IntArray) -> FloatArray:
        """What a gate may look at, [N, 5 S]: all of the above but ranks, and the histories' length."""
        own = np.concatenate([self.entropy, np.log(self.probability), self.margin, self.popularity])
        return np.concatenate([own, self.shared() / CUTOFF, np.log(lengths)[None]]).T


def halted(shared: IntArray, threshold: int) -> IntArray:
    """The first step [N] whose ten best share so many with those of the step before; the last where none does."""
    agrees = np.concatenate([shared >= threshold, np.ones_like(shared[:1], dtype=bool)])
    return np.minimum(agrees.argmax(axis=0) + 1, len(shared))


def best_threshold(shared: IntArray, gains: FloatArray) -> int:
    """The one with the highest mean gain on learning cases; the strictest of equals, 11 being never."""
    means = [mean_gain(gains, halted(shared, threshold)) for threshold in THRESHOLDS]
    return max(THRESHOLDS, key=lambda threshold: (means[threshold], threshold))


def chosen_gains(gains: FloatArray, chosen: IntArray) -> FloatArray:
    """The gain [N] of the answer chosen for each case."""
    return gains[chosen, np.arange(gains.shape[1])]


def mean_gain(gains: FloatArray, chosen: IntArray) -> float:
    """Of a choice for each case."""
    return float(chosen_gains(gains, chosen).mean())


class Gate:
    """Features to the answer to give."""

    def __init__(self, features: FloatArray, gains: FloatArray, hidden: int, seed: int = 0) -> None:
        self.mean, self.deviation = features.mean(axis=0), features.std(axis=0) + 1e-9
        torch.manual_seed(seed)
        width, steps = features.shape[1], len(gains)
        layers = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
        self.network = nn.Sequential(*layers, nn.Linear(hidden or width, steps))
        self._learn(self._inputs(features), torch.tensor(gains.T * REWARD_SCALE, dtype=torch.float32))

    def choose(self, features: FloatArray) -> IntArray:
        """The likeliest answer [N]."""
        with torch.no_grad():
            return self.network(self._inputs(features)).argmax(dim=1).numpy()

    def _learn(self, x: Float[Tensor, "N F"], rewards: Float[Tensor, "N S"]) -> None:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=GATE_RATE, weight_decay=GATE_DECAY)
        for _ in range(GATE_ROUNDS):
            loss = -(self.network(x).softmax(dim=1) * rewards).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _inputs(self, features: FloatArray) -> Float[Tensor, "N F"]:
        return torch.tensor((features - self.mean) / self.deviation, dtype=torch.float32)


def step_weights(
    answers: Float[Tensor, "S N D"], items: Float[Tensor, "V D"], target: Int[Tensor, " N"]
) -> Float[Tensor, " S"]:
    """Weights of the answers' scores with the least cross-entropy of the targets; begun at the last answer alone."""
    weights = F.one_hot(torch.tensor(len(answers) - 1), len(answers)).float().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for first in range(0, len(target), CASES_AT_ONCE):
            part = slice(first, first + CASES_AT_ONCE)
            scores = torch.einsum("s,snd->nd", weights, answers[:, part]) @ items[1:].T
            value = F.cross_entropy(scores, target[part] - 1, reduction="sum") / len(target)
            value.backward()  # type: ignore[no-untyped-call]  # torch's own
            total += value.detach()
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch's own
    return weights.detach()


def borrowed(answers: Float[Tensor, "S N D"], lengths: IntArray, rng: np.random.Generator) -> Float[Tensor, "S N D"]:
    """The last answers, and in place of each earlier one the last plus another case's difference from its last.

    Cases are paired within equal history lengths: steps of the same size and kind, which know nothing of the case.
    """
    order = np.lexsort((rng.random(len(lengths)), lengths))
    lender = np.empty_like(order)
    lender[order] = np.roll(order, 1)
    return answers[-1] + (answers - answers[-1])[:, lender]


def disturbed(answers: Float[Tensor, "S N D"], rng: np.random.Generator) -> Float[Tensor, "S N D"]:
    """The last answers, and in place of each earlier one the last moved as far in a random direction."""
    directions = torch.from_numpy(rng.standard_normal(answers.shape)).to(answers.dtype)
    lengths = (answers - answers[-1]).norm(dim=2, keepdim=True)
    return answers[-1] + lengths * F.normalize(directions, dim=2)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """B minus A of NDCG@10: means and a 95 % interval over users."""

    mean_a: float
    mean_b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.mean_b - self.mean_a


def judged(gains_a: Sequence[FloatArray], gains_b: Sequence[FloatArray], users: Sequence[IntArray]) -> Judged:
    """Runs pooled, one array each; users are resampled with their cases of all runs."""
    a, b = np.concatenate(gains_a), np.concatenate(gains_b)
    resamples = Resamples.of_users(np.concatenate(users), DRAWS, seed=0)
    low, high = resamples.interval(resamples.sums(b - a)[:, None], resamples.sums(np.ones_like(a)))
    return Judged(mean_a=float(a.mean()), mean_b=float(b.mean()), low=float(low[0]), high=float(high[0]))
