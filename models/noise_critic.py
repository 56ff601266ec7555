"""A small bidirectional network that names the odd item of a window: LLM4DSR's task (arXiv:2408.08208) without an LLM.

Each event brings what `recsys.relations` says of it beside the others (co-occurrence, text, popularity) and its frozen
text vector; one position of a real window holds another item, and cross-entropy over the window's positions asks which.
Unlike the LLM it reads no words: texts are vectors of a frozen encoder. A window of a user is judged by tables made
without the user's fold, in training as in use; otherwise what stands in the log would always seem to belong.
Dimensions: B windows, L positions (right-padded), D width, T rows of tables, F features.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.batches import TrainBatch, WindowShape
from recsys.corruption import NoiseSource, corrupt_one
from recsys.layers import BlockStack, TransformerConfig, init_weights
from recsys.noise import Judged, coded, named
from recsys.relations import Relations
from recsys.sequences import IntArray, Windows

NORM_EPS = 1e-5
WINDOWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class NoiseCriticConfig(TransformerConfig):
    """Architecture; `alpha` is the power of popularity by which wrong items are drawn (`recsys.corruption`)."""

    max_len: int = 11
    num_blocks: int = 1
    ffn_dim: int = 128
    dropout: float = 0.1
    alpha: float = 0.5


class NoiseCritic(nn.Module):
    """Trained by the common loop on windows whose items are rows of `relations`, each in its user's block."""

    def __init__(self, config: NoiseCriticConfig, relations: Relations, counts: IntArray) -> None:
        super().__init__()
        self.config, self.relations = config, relations
        self.max_len = config.max_len
        self.source = NoiseSource(counts, config.alpha)
        width, kinds = config.embedding_dim, 1 + bool(relations.texts.shape[1])
        num_features = 4 * kinds + 2
        self.feature_norm = nn.BatchNorm1d(num_features, affine=False)
        self.features = nn.Linear(num_features, width)
        self.texts = nn.Linear(relations.texts.shape[1], width, bias=False) if relations.texts.shape[1] else None
        self.positions = nn.Embedding(config.max_len, width)
        self.blocks = BlockStack(config, NORM_EPS)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.shortcut = nn.Linear(num_features, 1)
        self.apply(init_weights)

    def logits(self, rows: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """How odd each event is; rows behind a window's end have no meaning."""
        valid = torch.arange(rows.shape[1]) < lengths[:, None]
        figures = self.relations.features(rows, lengths)
        scaled = torch.zeros_like(figures)
        scaled[valid] = self.feature_norm(figures[valid])
        x = self.features(scaled) + self.positions.weight[: rows.shape[1]]
        if self.texts is not None:
            vectors = self.relations.texts[rows % self.relations.num_rows]
            x = x + self.texts(vectors * vectors.shape[-1] ** 0.5)
        states = self.blocks(x, key_mask=valid[:, None, None, :])
        return (self.head(states) + self.shortcut(scaled)).squeeze(2)

    @property
    def window(self) -> WindowShape:
        """Windows that share half of their events: a history is seen from several sides."""
        return WindowShape(length=self.max_len, overlap=self.max_len // 2)

    @property
    def reads_times(self) -> bool:
        """Times are not looked at."""
        return False

    def learn_popularity(self, counts: IntArray) -> None:
        """All it needs to know of popularity it was made with."""

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """One event of each window is another item; the target stands at its place and is the row that was there."""
        num_rows = self.relations.num_rows
        valid = windows.items != 0
        lengths = windows.lengths.astype(np.int64)
        corrupted = corrupt_one(windows.items % num_rows, lengths, self.source, rng)
        chosen = np.arange(windows.items.shape[1]) == corrupted.places[:, None]
        return TrainBatch(
            history=torch.from_numpy(np.where(valid, corrupted.items + windows.items // num_rows * num_rows, 0)),
            timestamps=torch.from_numpy(windows.timestamps),
            target=torch.from_numpy(np.where(chosen, windows.items, 0)),
            lengths=torch.from_numpy(windows.lengths),
        )

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Cross-entropy of the place over the window's events."""
        asked = (batch.target != 0).any(dim=1)
        rows, lengths = batch.history[asked], batch.lengths[asked].long()
        outside = torch.arange(rows.shape[1]) >= lengths[:, None]
        logits = self.logits(rows, lengths).masked_fill(outside, -torch.inf)
        return F.cross_entropy(logits, (batch.target[asked] != 0).int().argmax(dim=1))

    @torch.no_grad()
    def naming(self, windows: Judged) -> Float[np.ndarray, "N L"]:
        """See `recsys.noise.NoiseDetector`."""
        self.eval()
        rows, lengths = coded(windows, self.relations.num_rows)
        parts = [slice(first, first + WINDOWS_AT_ONCE) for first in range(0, len(rows), WINDOWS_AT_ONCE)]
        return torch.cat([named(self.logits(rows[part], lengths[part]), lengths[part]) for part in parts]).numpy()
