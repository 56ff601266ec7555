"""ReaRec: latent reasoning before recommending (Tang et al., 2025, arXiv:2503.22675).

Reference: TangJiakai/ReaRec at 7f46432; tests/parity/ holds its numbers.
The state after the last event, plus a vector of its own for each step, is fed back K times; every step attends to the
history and to the steps before it. Two objectives make that worth the time:

    erl    cross-entropy of the mean of all states, less a divergence between the steps (`recsys.divergence`)
    prl    cross-entropy of every state, softer at first (temperature tau * alpha^(K - k)), and a contrast that brings
           each state near to that of a second view: other dropout, noise on the steps
    last   cross-entropy of the last state alone: the paper's control RPE, and without step vectors Naive

Where paper and release differ, `form` says which is followed: the sums over steps (paper) or means (release), noise of
that variance (paper) or deviation (release), gradients through both sides of the divergence (paper) or one.
Deviates on purpose:
  - with a causal backbone every event of a window is a history of its own: its chain of steps sees the events before
    it and nothing of other chains, so one pass trains what the release trains row by row, prefix by prefix;
  - divergence and contrast are those of one history a row, drawn anew for every batch: prefixes of one user are near
    to each other, and pushing them apart would mislead;
  - the contrast counts from the first step on (release: from the third epoch), in float32 under bfloat16;
  - LayerNorm of events and fed-back states alike is a setting (`input_norm`), as for the backbone;
  - padding is no class of the softmax.
What is added for one history a row, and the contrast's choice of rows, belong to the batch they were computed in: with
micro-batches or several processes the loss is that of one batch on average only.
Dimensions: B batch, L positions, P chains a row, S = K + 1 states, D width, E width of vectors, V item rows.
"""

import math
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import Histories, TrainBatch, WindowShape, target_places
from recsys.divergence import Form, step_divergence
from recsys.errors import ConfigError
from recsys.layers import Chains, KeyValues, Remembered
from recsys.losses import ItemVectors
from recsys.negatives import Negatives
from recsys.sequences import IntArray, Windows

Objective = Literal["erl", "prl", "last"]


@dataclass(frozen=True, kw_only=True)
class ReasoningConfig:
    """How far the model thinks, and how it learns to.

    `diversity` is ERL's weight of the divergence; `sharpening` (alpha), `noise` and `contrast` (the weight) are PRL's.
    """

    steps: int = 2
    objective: Objective = "prl"
    step_vectors: bool = True
    form: Form = "released"
    diversity: float = 0.05
    sharpening: float = 5.0
    noise: float = 0.01
    contrast: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "diversity", "noise", "contrast"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"ReasoningConfig: {name}={getattr(self, name)} must be at least 0.")
        if not self.sharpening > 0:
            raise ConfigError(f"ReasoningConfig: sharpening={self.sharpening} must be above 0.")

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise."""
        return math.sqrt(self.noise) if self.form == "paper" else self.noise


@dataclass(frozen=True, kw_only=True)
class ReaRecConfig(SASRecConfig):
    """The backbone's settings, SASRec's or (`mask_share`, `last_item_share`) BERT4Rec's, and how it reasons."""

    backbone: Literal["sasrec", "bert4rec"] = "sasrec"
    mask_share: float = 0.2
    last_item_share: float = 0.1
    reasoning: ReasoningConfig = field(default_factory=ReasoningConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {entry.name for entry in fields(self.of_backbone())} | {"backbone", "reasoning"}
        for entry in fields(self):
            if entry.name not in known and getattr(self, entry.name) != entry.default:
                raise ConfigError(
                    f"ReaRecConfig: {entry.name}={getattr(self, entry.name)} is no setting of "
                    f"backbone={self.backbone}; leave it at {entry.default}."
                )
        if self.likeness:
            raise ConfigError(
                f"ReaRecConfig: likeness={self.likeness} stands beside SASRec's state after an event, and not beside "
                "thoughts; leave it at 0."
            )
        if self.loss.kind == "bce":
            raise ConfigError(
                "ReaRecConfig: loss.kind=bce draws a negative for each position, and here chains are scored, not "
                "positions; choose softmax, sampled-softmax or gbce."
            )

    def of_backbone(self) -> SASRecConfig | BERT4RecConfig:
        """The settings that the backbone alone would have."""
        kind = SASRecConfig if self.backbone == "sasrec" else BERT4RecConfig
        return kind(**{entry.name: getattr(self, entry.name) for entry in fields(kind)})


class ReaRec(nn.Module):
    """A backbone that thinks K steps in latent space before it answers."""

    weighs_events = True

    def __init__(self, config: ReaRecConfig) -> None:
        super().__init__()
        self.config = config
        settings = config.of_backbone()
        self.backbone = SASRec(settings) if isinstance(settings, SASRecConfig) else BERT4Rec(settings)
        self.max_len = self.backbone.max_len
        thinks = config.reasoning.steps > 0 and config.reasoning.step_vectors
        self.step_vectors = nn.Embedding(config.reasoning.steps, config.embedding_dim) if thinks else None
        if self.step_vectors is not None:
            nn.init.trunc_normal_(self.step_vectors.weight, std=0.02, a=-0.04, b=0.04)

    def encode(self, batch: Histories, steps: int | None = None) -> Float[Tensor, "B E"]:
        """What the model would recommend after all its steps, or after fewer."""
        return self.answer(self.reason(batch, steps))

    def answers(self, batch: Histories) -> Float[Tensor, "S B E"]:
        """What it would recommend after 0 to K steps."""
        return self._answers_of(self.reason(batch))

    def _answers_of(self, states: Float[Tensor, "S B D"]) -> Float[Tensor, "S B E"]:
        return torch.stack([self.answer(states[: steps + 1]) for steps in range(len(states))])

    @property
    def goes_on(self) -> bool:
        """With a causal backbone that remembers."""
        return isinstance(self.backbone, SASRec) and self.backbone.goes_on

    def encode_and_remember(self, batch: Histories) -> tuple[Float[Tensor, "S B E"], Remembered]:
        """All answers, and the backbone's keys and values, which hold no reasoning; with a causal backbone only."""
        first, memory = self._causal_backbone().remember_last(batch)
        return self._answers_of(self._reason_after(first, memory, batch)), Remembered(memory, batch.timestamps[:, -1])

    def encode_next(
        self, past: Remembered, event: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "S B E"], Remembered]:
        """One more event: the answers for the longer history."""
        first, past = self._causal_backbone().remember_next(past, event, timestamp)
        chains = chains_up_to(torch.full_like(event, past.length - 1), torch.arange(past.length, device=event.device))
        return self._answers_of(self._chain(first[:, None], past.memory, chains).squeeze(2)), past

    @property
    def most_steps(self) -> int:
        """K."""
        return self.config.reasoning.steps

    def reason(self, batch: Histories, steps: int | None = None) -> Float[Tensor, "S B D"]:
        """States r_0 (the backbone's own) to r_K."""
        first, memory = self.backbone.remember_last(batch)
        return self._reason_after(first, memory, batch, steps)

    def _reason_after(
        self,
        first: Float[Tensor, "B D"],
        memory: tuple[KeyValues, ...],
        batch: Histories,
        steps: int | None = None,
    ) -> Float[Tensor, "S B D"]:
        place = batch.lengths.long() - (1 if self.causal else 0)  # BERT4Rec answers at the [mask] behind the last event
        events = torch.arange(batch.items.shape[1] + (0 if self.causal else 1), device=place.device)
        return self._chain(first[:, None], memory, chains_up_to(place, events), steps).squeeze(2)

    def answer(self, states: Float[Tensor, "S *N D"]) -> Float[Tensor, "*N E"]:
        """One vector of all states: ERL's mean of them, or the last."""
        pooled = states.mean(dim=0) if self.config.reasoning.objective == "erl" else states[-1]
        return self.backbone.predictions(pooled)

    def item_vectors(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "V E"]:
        """The backbone's."""
        return self.backbone.item_vectors(rows)

    def _chain(
        self,
        first: Float[Tensor, "B P D"],
        memory: tuple[KeyValues, ...],
        chains: Chains,
        steps: int | None = None,
    ) -> Float[Tensor, "S B P D"]:
        """Each state fed back, step by step."""
        states, past = [first], None
        for step in range(self._allowed(steps)):
            state, past = self.backbone.blocks.think(self._fed_back(states[-1], step), memory, chains, past)
            states.append(state)
        return torch.stack(states)

    def _fed_back(self, state: Float[Tensor, "B P D"], step: int, noise: float = 0.0) -> Float[Tensor, "B P D"]:
        """A state as the next step's input, treated as events are."""
        x = state if self.step_vectors is None else state + self.step_vectors.weight[step]
        if noise:
            x = x + noise * torch.randn_like(x)
        return self.backbone.dropout(self.backbone.embedding_norm(x))

    @property
    def causal(self) -> bool:
        """Whether events see only those before them, so that each is the end of a history."""
        return isinstance(self.backbone, SASRec)

    @property
    def window(self) -> WindowShape:
        """The backbone's."""
        return self.backbone.window

    @property
    def reads_times(self) -> bool:
        """Whether vectors depend on timestamps."""
        return self.backbone.reads_times

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """The backbone's."""
        self.backbone.learn_texts(vectors, counts)

    def learn_popularity(self, counts: IntArray) -> None:
        """For negatives by popularity: training events of each item row, [V]."""
        self.backbone.learn_popularity(counts)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """The backbone's: every event predicts the next, or masked ones are filled in."""
        return self.backbone.training_batch(windows, rng)

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """The objective over all targets, and what ERL or PRL add, for one target of each row."""
        reasoning = self.config.reasoning
        first, memory = self.backbone.remember(batch.history, batch.timestamps)
        places, valid = target_places(batch.target)
        chains = Chains(places, self._visible(batch.history, places))
        states = self._chain(at_places(first, places), memory, chains)
        items = _table_once(self.backbone.item_vectors)
        loss = self._prediction_loss(states[:, valid], batch.target.gather(1, places)[valid], items, batch.negatives)
        if not (reasoning.steps and valid.any()):
            return loss
        rows, drawn = one_per_row(valid)
        if reasoning.objective == "erl" and reasoning.diversity:
            answers = self.backbone.predictions(states[:, rows, drawn])
            loss = loss - reasoning.diversity * step_divergence(answers, items(), reasoning.form)
        if reasoning.objective == "prl" and reasoning.contrast:
            place = places[rows, drawn][:, None]
            alone = Chains(place, self._visible(batch.history[rows], place))
            clean = states[:, rows, drawn]
            loss = loss + reasoning.contrast * self._contrast(batch.rows(rows), clean, alone)
        return loss

    def _prediction_loss(
        self,
        states: Float[Tensor, "S N D"],
        target: Int[Tensor, " N"],
        items: ItemVectors,
        negatives: Negatives | None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the answer, and with PRL of every earlier state at a higher temperature."""
        loss = self.backbone.catalog_loss(self.answer(states), items, target, negatives)
        if self.config.reasoning.objective != "prl":
            return loss
        earlier = [
            self.backbone.catalog_loss(self.backbone.predictions(state) / softening, items, target, negatives)
            for state, softening in zip(states[:-1], self._softening(), strict=True)
        ]
        return loss + self._over_steps(earlier) if earlier else loss

    def _softening(self) -> list[float]:
        """alpha^(K - k) of steps 0 to K - 1."""
        steps = self.config.reasoning.steps
        return [self.config.reasoning.sharpening**exponent for exponent in range(steps, 0, -1)]

    def _over_steps(self, losses: list[Float[Tensor, ""]]) -> Float[Tensor, ""]:
        total = torch.stack(losses).sum()
        return total if self.config.reasoning.form == "paper" else total / len(losses)

    def _contrast(self, batch: TrainBatch, clean: Float[Tensor, "S B D"], chains: Chains) -> Float[Tensor, ""]:
        """Each step of a second view among the first views of all rows: a softmax of inner products, own row right.

        The second view has its own dropout and its own memory; each of its steps starts from the first view's state.
        """
        _, memory = self.backbone.remember(batch.history, batch.timestamps)
        own, past, losses = torch.arange(len(chains.places), device=clean.device), None, []
        for step, (before, after) in enumerate(pairwise(clean)):
            x = self._fed_back(before[:, None], step, self.config.reasoning.noise_deviation)
            noisy, past = self.backbone.blocks.think(x, memory, chains, past)
            losses.append(F.cross_entropy(_products(noisy.squeeze(1), after) / self.config.temperature, own))
        return self._over_steps(losses)

    def _visible(self, history: Int[Tensor, "B L"], places: Int[Tensor, "B P"]) -> Bool[Tensor, "B Q L"]:
        """Which events a chain sees: those up to its place, or all of its window."""
        if not self.causal:
            return (history != 0)[:, None]
        return torch.arange(history.shape[1], device=history.device) <= places[:, :, None]

    def _allowed(self, steps: int | None) -> int:
        if steps is not None and not 0 <= steps <= self.most_steps:
            raise ValueError(
                f"steps={steps} must lie between 0 and the {self.most_steps} that the model was trained with"
            )
        return self.most_steps if steps is None else steps

    def _causal_backbone(self) -> SASRec:
        if not isinstance(self.backbone, SASRec):
            raise TypeError("backbone=bert4rec reads both ways: a further event changes every state; encode anew")
        return self.backbone


def _table_once(item_vectors: ItemVectors) -> ItemVectors:
    """The same, with the whole catalogue computed once: every term of a batch's loss sees one item table."""
    whole = cache(item_vectors)

    def vectors(rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "N D"]:
        return whole() if rows is None else item_vectors(rows)

    return vectors


def _products(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """In at least float32: among like states, bfloat16 rounds away what tells them apart."""
    wide = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(wide) @ b.to(wide).T


def chains_up_to(place: Int[Tensor, " B"], events: Int[Tensor, " T"]) -> Chains:
    """One chain a row, behind the event at `place` and seeing all up to it; `events` are 0 to T - 1."""
    return Chains(place[:, None], (events <= place[:, None])[:, None])


def at_places(states: Float[Tensor, "B L D"], places: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
    """The states at the places of each row."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


def one_per_row(valid: Bool[Tensor, "B P"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Rows that have a valid column, and one of each row's, drawn at random; the valid ones come first."""
    counts = valid.sum(dim=1)
    rows = counts.nonzero().squeeze(1)
    drawn = (torch.rand(len(rows), device=valid.device) * counts[rows]).long()
    return rows, drawn
