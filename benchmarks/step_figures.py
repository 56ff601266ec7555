"""What each answer of a run says of its cases, and the controls beside it; kept on disk, for `benchmarks.step_choice`.

K steps, S = K + 1 answers, N cases with a history, V item rows, D width. A model that does not reason has one answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from torch import Tensor

from benchmarks.step_rules import CUTOFF, AnswerFigures, borrowed, disturbed, step_weights
from models.rearec import ReaRec
from pipelines.loading import run_model
from recsys.batches import Histories
from recsys.evaluation import batches_of_like_length, whole_histories
from recsys.metrics import IntArray
from recsys.prepared import Prepared
from recsys.ranking import target_ranks, top_k, without_items
from recsys.runs import Run
from recsys.splits import Part
from recsys.steps import writing_step

BATCH, DROPOUT_COPIES, WEIGHT_CASES = 128, 2, 4096
FILE, OTHERS = "figures.safetensors", "ranks of "
COLUMNS = tuple(entry.name for entry in fields(AnswerFigures))


@dataclass(frozen=True)
class Measured:
    """A run's figures, by part."""

    run: Run
    parts: Mapping[Part, dict[str, np.ndarray]]

    def figures(self, part: Part) -> AnswerFigures:
        """Those of its own answers."""
        return AnswerFigures(**{name: self.parts[part][name] for name in COLUMNS})

    def others(self, part: Part) -> dict[str, IntArray]:
        """Ranks [S, N] of the controls (test cases alone), and [1, N] of the weighted steps."""
        held = self.parts[part].items()
        return {name.removeprefix(OTHERS): ranks for name, ranks in held if name.startswith(OTHERS)}


def measured(run: Run, work: Path) -> Measured:
    """The run's figures, from `work` where they are there."""
    parts: dict[Part, dict[str, np.ndarray]] = {}
    maker = Maker(run)
    for part in ("validation", "test"):
        out = work / f"{run.name}-{run.config['data'][:8]}" / part
        if not out.exists():
            with writing_step("step-choice", out, config={"part": part}, inputs=[run.folder]) as step:
                save_file(maker.figures(part), step.folder / FILE)
        parts[part] = load_file(out / FILE)
    return Measured(run, parts)


@dataclass(frozen=True)
class Cases:
    """Those of a part that have a history: arrays [N]."""

    prepared: Prepared
    users: IntArray
    positions: IntArray
    targets: IntArray

    @classmethod
    def of(cls, prepared: Prepared, part: Part) -> "Cases":
        """In the prepared order."""
        cases = prepared.cases(part).filter(pl.col("history_length") > 0)
        names = ("user_idx", "position", "target")
        return cls(prepared, *(cases[name].to_numpy().astype(np.int64) for name in names))

    def scores(self, vectors: Float[Tensor, "B D"], items: Float[Tensor, "V D"], chosen: slice) -> Float[Tensor, "B V"]:
        """Of the catalogue, without what may not be returned."""
        seen = whole_histories(self.prepared.store, self.users[chosen], self.positions[chosen])
        return without_items(vectors @ items.T, seen if self.prepared.seen == "exclude" else seen[:, :0])


class Maker:
    """Computes a run's figures; its model is loaded when first needed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.prepared = run.prepared()

    @cached_property
    def model(self) -> Any:
        """The run's."""
        return run_model(self.run, self.prepared)[1]

    @cached_property
    def items(self) -> Float[Tensor, "V D"]:
        """Item vectors."""
        return self.model.item_vectors().detach()

    @cached_property
    def counts(self) -> IntArray:
        """Training events of each item row [V]."""
        return self.prepared.training_events().item_counts()

    @torch.no_grad()
    def figures(self, part: Part) -> dict[str, np.ndarray]:
        """Arrays of `AnswerFigures`, lengths and users [N], ranks of other answers; controls on test cases alone."""
        cases = Cases.of(self.prepared, part)
        answers = self.answers(cases)
        kept = vars(self.of_answers(cases, answers)) | {"users": cases.users, "lengths": cases.positions}
        for name, others in self.controls(cases, answers).items() if part == "test" else ():
            kept[f"{OTHERS}{name}"] = np.concatenate([self.ranks(cases, others[:-1]), kept["ranks"][-1:]])
        if len(answers) > 1:
            weighted = torch.einsum("s,snd->nd", self.weights, answers)
            kept |= {f"{OTHERS}weighted": self.ranks(cases, weighted[None]), "weights": self.weights.numpy()}
        return {name: np.ascontiguousarray(values) for name, values in kept.items()}

    @cached_property
    def weights(self) -> Float[Tensor, " S"]:
        """One a step, learned on some validation cases of the first half."""
        cases = Cases.of(self.prepared, "validation")
        some = np.flatnonzero(first_half(cases.users))[:WEIGHT_CASES]
        with torch.enable_grad():
            answers = self.answers(cases)[:, some]
            return step_weights(answers, self.items, torch.from_numpy(cases.targets[some]))

    def answers(self, cases: Cases, dropout_seed: int | None = None) -> Float[Tensor, "S N D"]:
        """After 0 to K steps; with dropout on where it is given a seed."""
        order = list(batches_of_like_length(np.minimum(cases.positions, self.model.max_len), BATCH))
        if dropout_seed is not None:
            torch.manual_seed(dropout_seed)
            self.model.train()
        found = torch.cat([self._answers(cases, chosen) for chosen in order], dim=1)
        self.model.eval()
        answers = torch.empty_like(found)
        answers[:, np.concatenate(order)] = found
        return answers

    @torch.no_grad()
    def _answers(self, cases: Cases, chosen: IntArray) -> Float[Tensor, "S B D"]:
        windows = self.prepared.store.windows(cases.users[chosen], cases.positions[chosen], self.model.max_len)
        batch = Histories.from_windows(windows)
        return self.model.answers(batch) if isinstance(self.model, ReaRec) else self.model.encode(batch)[None]

    def controls(self, cases: Cases, answers: Float[Tensor, "S N D"]) -> dict[str, Float[Tensor, "S N D"]]:
        """As many answers as the model's own, the last the same."""
        copies = len(answers) - 1 or DROPOUT_COPIES
        noisy = torch.cat([self.answers(cases, seed)[-1:] for seed in range(copies)])
        found = {"dropout": torch.cat([noisy, answers[-1:]])}
        if len(answers) > 1:
            found["borrowed"] = borrowed(answers, cases.positions, np.random.default_rng(0))
            found["disturbed"] = disturbed(answers, np.random.default_rng(0))
        return found

    def ranks(self, cases: Cases, answers: Float[Tensor, "S N D"]) -> IntArray:
        """Of the targets, [S, N]."""
        ranks = np.empty(answers.shape[:2], dtype=np.int64)
        for step, part in product(range(len(answers)), slices(len(cases.users))):
            scores = cases.scores(answers[step, part], self.items, part)
            ranks[step, part] = target_ranks(scores, torch.from_numpy(cases.targets[part])).numpy()
        return ranks

    def of_answers(self, cases: Cases, answers: Float[Tensor, "S N D"]) -> AnswerFigures:
        """Ranks, and what the answers say of themselves.

        Written in place: small results kept between large blocks that are freed would scatter over gigabytes.
        """
        held: dict[str, np.ndarray] = {name: np.empty(answers.shape[:2]) for name in COLUMNS}
        held |= {
            "ranks": np.empty(answers.shape[:2], np.int64),
            "best": np.empty((*answers.shape[:2], CUTOFF), np.int64),
        }
        for step, part in product(range(len(answers)), slices(len(cases.users))):
            for name, values in self._figures(cases, answers[step, part], part).items():
                held[name][step, part] = values
        return AnswerFigures(**held)

    def _figures(self, cases: Cases, vectors: Float[Tensor, "B D"], part: slice) -> dict[str, np.ndarray]:
        scores = cases.scores(vectors, self.items, part)
        logs = scores.log_softmax(dim=1)
        best = top_k(scores, CUTOFF)
        return {
            "ranks": target_ranks(scores, torch.from_numpy(cases.targets[part])).numpy(),
            "entropy": torch.special.entr(logs.exp()).sum(dim=1).numpy(),
            "probability": logs.amax(dim=1).exp().numpy(),
            "margin": (best.scores[:, 0] - best.scores[:, 1]).numpy(),
            "popularity": np.log1p(self.counts[best.items[:, 0].numpy()]),
            "best": best.items.numpy(),
        }


def slices(count: int) -> list[slice]:
    """Of some cases each."""
    return [slice(first, first + BATCH) for first in range(0, count, BATCH)]


def first_half(users: IntArray, seed: int = 0) -> np.ndarray:
    """Which cases [N] are of a random half of the users."""
    return np.random.default_rng(seed).permutation(int(users.max()) + 1)[users] % 2 == 0
