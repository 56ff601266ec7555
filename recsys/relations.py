"""How well an item stands beside others: by what occurs together and by text; with how often it occurs.

Tables come in blocks of V rows, one for each fold of the users, made without that fold, and a last one of all users.
Row `V * block + item` is what block says of the item, so that a window of a user can be judged by what others did:
its own events are no evidence for it. The texts are the same in all blocks.
Dimensions: B windows, L positions (row 0 is padding), T = blocks * V rows, K, W widths, F features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recsys.cooccurrence import cooccurrence_vectors
from recsys.sequences import IntArray
from recsys.splits import TrainingEvents

TEXT_COMPONENTS = 64
NEAREST = 3
POPULARITY_WEIGHT = 0.05
"""Of log popularity beside cosines, in what fits a window: the vectors alone prefer rare items."""


@dataclass(frozen=True)
class Relations:
    """Unit vectors by co-occurrence [T, K] and of texts [V, W] (W may be 0), and log popularity [T]."""

    cooccurrence: Float[Tensor, "T K"]
    texts: Float[Tensor, "V W"]
    popularity: Float[Tensor, " T"]

    @property
    def num_rows(self) -> int:
        """V."""
        return len(self.texts)

    @property
    def last_block(self) -> int:
        """The block of all users; the others are folds."""
        return len(self.popularity) // self.num_rows - 1

    def similarities(self, rows: Int[Tensor, "B L"]) -> list[Float[Tensor, "B L L"]]:
        """Cosines between the events of a window: by co-occurrence, and where there are texts by text."""
        vectors = [self.cooccurrence[rows]]
        if self.texts.shape[1]:
            vectors.append(self.texts[rows % self.num_rows])
        return [one @ one.transpose(1, 2) for one in vectors]

    def features(self, rows: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L F"]:
        """What tells an odd item of a window: four figures a kind of similarity, its popularity, and whether it
        stands there twice."""
        pairs = other_pairs(rows, lengths)
        same = ((rows[:, :, None] == rows[:, None, :]) & pairs).any(dim=2)
        figures = [figure for one in self.similarities(rows) for figure in beside_others(one, pairs)]
        return torch.stack([*figures, self.popularity[rows], same.float()], dim=2)

    def fit(self, block: int, rows: Int[Tensor, "B L"], weights: Float[Tensor, "B L"]) -> Float[Tensor, "B V"]:
        """How well each item would stand among a window's events: mean cosine to those of weight 1, both kinds added,
        and a little for its popularity. Items without training events in the block can fit nothing: minus infinity.
        """
        own = slice(block * self.num_rows, (block + 1) * self.num_rows)
        shares = (weights / weights.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None]
        scores = (self.cooccurrence[rows] * shares).sum(dim=1) @ self.cooccurrence[own].T
        scores = scores + (self.texts[rows % self.num_rows] * shares).sum(dim=1) @ self.texts.T
        scores = scores + POPULARITY_WEIGHT * self.popularity[own]
        return scores.masked_fill(~self.cooccurrence[own].any(dim=1), -torch.inf)


def other_pairs(rows: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Bool[Tensor, "B L L"]:
    """True where both positions are events of the window, and not the same one."""
    valid = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
    return valid[:, :, None] & valid[:, None, :] & ~itself


def beside_others(similarity: Float[Tensor, "B L L"], pairs: Bool[Tensor, "B L L"]) -> list[Float[Tensor, "B L"]]:
    """Mean, largest and mean of the `NEAREST` similarities to other events, and how alike those others are."""
    inside = similarity * pairs
    others = pairs.sum(dim=2)
    mean = inside.sum(dim=2) / others.clamp(min=1)
    nearest = torch.where(pairs, similarity, -torch.inf).topk(min(NEAREST, similarity.shape[2]), dim=2).values
    found = nearest.isfinite()
    nearest = nearest.masked_fill(~found, 0)
    rest = inside.sum(dim=(1, 2))[:, None] - 2 * inside.sum(dim=2)
    alike = rest / (others * (others - 1)).clamp(min=1)
    return [mean, nearest[..., 0], nearest.sum(dim=2) / found.sum(dim=2).clamp(min=1), alike]


def fit_relations(
    events: TrainingEvents, folds: IntArray, texts: Float[np.ndarray, "V W"], window: int, width: int
) -> Relations:
    """From training events whose users [U] are in `folds` 0, 1, ..., and from text vectors of all item rows."""
    blocks = [events.without(folds == fold) for fold in range(int(folds.max()) + 1)] + [events]
    vectors = [cooccurrence_vectors(block, window, width) for block in blocks]
    counts = [block.item_counts() for block in blocks]
    return Relations(
        cooccurrence=torch.from_numpy(np.concatenate(vectors)),
        texts=torch.from_numpy(text_directions(texts)),
        popularity=torch.from_numpy(np.concatenate([log_popularity(block) for block in counts])),
    )


def log_popularity(counts: IntArray) -> Float[np.ndarray, " V"]:
    """Logarithm of an item's share of events over the mean item's; half an event is added to each."""
    shares = (counts + 0.5) / (counts + 0.5).sum()
    return np.log(shares * len(counts)).astype(np.float32)


def text_directions(texts: Float[np.ndarray, "V F"]) -> Float[np.ndarray, "V W"]:
    """Of length 1, centred on the described items, in their `TEXT_COMPONENTS` main directions; no text stays zero."""
    described = np.asarray(texts.any(axis=1))
    if described.sum() < 2:
        return np.zeros((len(texts), 0), dtype=np.float32)
    centred = np.where(described[:, None], texts - texts[described].mean(axis=0), 0).astype(np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    projected = centred @ directions[:, ::-1][:, :TEXT_COMPONENTS]
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    return (projected / np.maximum(lengths, 1e-9)).astype(np.float32)
