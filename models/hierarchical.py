"""Hierarchical Recformer: a causal transformer over the item vectors of a trained Recformer, which also teaches it.

    history     item 4   item 9   item 2          a token-level Recformer reads some 40 tokens of each, all at once;
    features      f4       f9       f2            here each item was read once and has a vector that is kept
    states        h1       h2       h3            so that one more event costs one step

loss = softmax over the catalogue at every position
     + distillation * KL(teacher's softmax over the catalogue || this one's), after each window's last event
The teacher scores as it does in use: cosines of its own history and item vectors over its own temperature. Items keep
their place in its space through an adaptor (`recsys.text_items`), so a new item with a text has a vector at once.
Distillation after Hinton et al., 2015 (arXiv:1503.02531), at temperature 1: both sides' scores have one already.
Dimensions: B batch, L positions, D width, V item rows (row 0 is padding), F width of the teacher's vectors.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor

from models.recformer import Recformer
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import Histories, TrainBatch, TrainingWindows
from recsys.contracts import Teaching
from recsys.errors import ConfigError
from recsys.sequences import SequenceStore
from recsys.text_items import TextItems

HISTORIES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class HierarchicalConfig(SASRecConfig):
    """The student's architecture, and how much the teacher's scores count beside what users did next."""

    items: Literal["table", "morec", "unisrec"] = "unisrec"
    distillation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation < 0:
            raise ConfigError(f"HierarchicalConfig: distillation={self.distillation} must be at least 0.")
        if self.items == "table":
            raise ConfigError("HierarchicalConfig: items=table learns ids, not texts; choose unisrec or morec.")
        own = {entry.name: entry.default for entry in fields(self)}
        for name in ("text_encoder", "text_revision", "text_pooling", "text_components", "text_control"):
            if getattr(self, name) != own[name]:
                raise ConfigError(
                    f"HierarchicalConfig: {name}={getattr(self, name)!r}, but its texts are read by the teacher."
                )


class Teacher:
    """A trained Recformer that reads each history once: what it said is kept by the items that it reads."""

    def __init__(self, model: Recformer) -> None:
        self._model = model.eval()
        self._kept: dict[bytes, Float[Tensor, " F"]] = {}

    @property
    def item_vectors(self) -> Float[Tensor, "V F"]:
        """Of length 1; padding's is zero."""
        return self._model.item_vectors()

    @torch.no_grad()
    def encode(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B F"]:
        """Vectors of histories, of which the newest events are read, as many as it reads in use."""
        newest = [
            row[max(0, length - self._model.max_len) : length].cpu()
            for row, length in zip(items, lengths.tolist(), strict=True)
        ]
        keys = [history.numpy().tobytes() for history in newest]
        if new := {key: history for key, history in zip(keys, newest, strict=True) if key not in self._kept}:
            sizes = torch.tensor([len(history) for history in new.values()], dtype=torch.int32)
            rows = torch.nn.utils.rnn.pad_sequence(list(new.values()), batch_first=True)
            device = self.item_vectors.device
            batch = Histories(rows.to(device), torch.zeros_like(rows, device=device), sizes.to(device))
            self._kept |= dict(zip(new, self._model.encode(batch).float(), strict=True))
        return torch.stack([self._kept[key] for key in keys]).to(items.device)

    def read(self, store: SequenceStore, windows: TrainingWindows) -> None:
        """Every training history at once, in an order of its own: a run that goes on hears what it heard before."""
        order = np.argsort(windows.stops - windows.starts, kind="stable")
        for first in range(0, len(order), HISTORIES_AT_ONCE):
            loaded = windows.load(store, order[first : first + HISTORIES_AT_ONCE])
            self.encode(torch.from_numpy(loaded.items), torch.from_numpy(loaded.lengths - 1))


class Hierarchical(SASRec):
    """SASRec over a teacher's item vectors; the teacher is needed for training alone, and no part of the weights."""

    config: HierarchicalConfig
    teacher: Teaching | None = None

    def learn_from(self, teacher: Teaching) -> None:
        """Called before training: takes the teacher's item vectors, and asks it for histories from then on."""
        self.texts.features.copy_(teacher.item_vectors)
        self.teacher = teacher

    @property
    def features(self) -> Float[Tensor, "V F"]:
        """The teacher's vectors of all item rows; a service may bring more."""
        return self.texts.features

    def vectors_of(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """What `item_vectors` would give items of which the teacher says this."""
        vectors = self.texts.adapted(features)
        return F.normalize(vectors, dim=-1) if self.config.cosine else vectors

    @property
    def texts(self) -> TextItems:
        """The items, which are never a table here."""
        assert isinstance(self.items, TextItems)
        return self.items

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """What was next at every position, and what the teacher expects after the last one."""
        loss = super().loss(batch)
        wanted = (batch.target != 0).any(dim=1)
        if not (self.config.distillation and wanted.any()):
            return loss
        return loss + self.config.distillation * self._difference(batch, wanted)

    def _difference(self, batch: TrainBatch, wanted: Tensor) -> Float[Tensor, ""]:
        """Mean over the rows that have a target; takes the memory of some [B, V]."""
        if self.teacher is None:
            raise ValueError("distillation needs a teacher; call learn_from before training")
        history = Histories(batch.history, batch.timestamps, batch.lengths).rows(wanted)
        answers = (self.encode(history), self.teacher.encode(history.items, history.lengths))
        items = (self.item_vectors(), self.teacher.item_vectors.to(batch.history.device))
        with torch.autocast(batch.history.device.type, enabled=False):  # in bfloat16 scores of 20 have steps of .1
            logits = [vectors.float() @ rows.float().T for vectors, rows in zip(answers, items, strict=True)]
        ours, theirs = (scores[:, 1:].log_softmax(dim=1) for scores in logits)
        return (theirs.exp() * (theirs - ours)).sum() / len(ours)
