"""The detectors of `recsys denoise`: what each is fitted to, and where it is kept when it is.

A fitted detector lies in a folder named by all that it was learned from; asked for again, it is read, and a training
that was killed goes on from its last checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file

from models.noise_critic import NoiseCritic, NoiseCriticConfig
from models.noise_llm import NoiseLlm, NoiseLlmConfig
from pipelines.reporter import Reporter
from recsys import __version__
from recsys.batches import TrainingWindows
from recsys.noise import FEWEST_EVENTS, Judged, NoiseDetector, OutlierDetector, user_folds
from recsys.relations import Relations, fit_relations
from recsys.score_store import kept_naming
from recsys.sequences import IntArray
from recsys.splits import TrainingEvents
from recsys.steps import writing_step
from recsys.training import Trainer, TrainingConfig

Detector = TypeVar("Detector", NoiseCritic, NoiseLlm)
FOLDS = 4
TABLES = "tables.safetensors"
WEIGHTS = "weights.safetensors"
CRITIC_TRAINING = TrainingConfig(epochs=10, learning_rate=1e-3, weight_decay=0.01, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What detectors learn from: training events, and text vectors and titles of all item rows.

    `length` of windows, `width` of co-occurrence vectors, `store`: the folder of what was fitted and said.
    """

    events: TrainingEvents
    texts: Float[np.ndarray, "V W"]
    titles: list[str]
    seed: int
    length: int
    width: int
    store: Path

    @cached_property
    def folds(self) -> IntArray:
        """Of each user [U], which is also the block of `relations` that knows nothing of the user."""
        return user_folds(self.events.store, FOLDS)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of it, and of this version."""
        digest = hashlib.sha256(json.dumps([__version__, self.seed, self.length, self.width, self.titles]).encode())
        for part in (self.events.items, self.events.users, self.folds, self.texts):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def key(self, *settings: Any) -> str:
        """Names what is made of this material with these settings."""
        return hashlib.sha256(json.dumps([self.fingerprint, *settings], default=str).encode()).hexdigest()

    @cached_property
    def relations(self) -> Relations:
        """Fitted once and kept: the same tables serve every detector, and replacements."""
        folder = self.store / "fits" / self.key("relations")
        if not folder.exists():
            with writing_step("fit", folder, config={"tables": FOLDS + 1}) as step:
                relations = fit_relations(self.events, self.folds, self.texts, self.length, self.width)
                save_file({name: table.contiguous() for name, table in vars(relations).items()}, step.folder / TABLES)
        return Relations(**load_file(folder / TABLES))


@dataclass(frozen=True)
class Stage:
    """A kind of detector: one `make` for each of `parts` groups of users, who are judged by what others taught it."""

    name: str
    key: str
    parts: int
    make: Callable[[int], NoiseDetector]

    def naming(self, material: Material, windows: Judged, reporter: Reporter, what: str) -> Float[np.ndarray, "N L"]:
        """Probabilities for all windows, judged once and kept."""
        result = np.zeros(windows.items.shape, dtype=np.float32)
        with reporter.task(f"{self.name}: {what}", len(windows)) as advance:
            for part in range(self.parts):
                chosen = np.flatnonzero(windows.blocks % self.parts == part)
                detector = Once(partial(self.make, part))
                key = f"{self.key}/{part}"
                result[chosen] = kept_naming(key, detector, windows.rows(chosen), material.store, advance)
        return result


class Once:
    """What a function gives, made when it is first asked for."""

    def __init__(self, make: Callable[[], NoiseDetector]) -> None:
        self._make = make

    def __call__(self) -> NoiseDetector:
        return self._made

    @cached_property
    def _made(self) -> NoiseDetector:
        return self._make()


def outlier_stage(material: Material) -> Stage:
    """Nothing but the tables."""
    return Stage("outlier", material.key("outlier"), 1, lambda _: OutlierDetector(material.relations))


def critic_stage(material: Material, config: NoiseCriticConfig, reporter: Reporter) -> Stage:
    """One network for each fold of users, taught by the others."""
    key = material.key("critic", asdict(config), asdict(CRITIC_TRAINING))

    def make(part: int) -> NoiseCritic:
        events = material.events.without(material.folds == part)
        return fitted_critic(material, config, events, f"{key}-{part}", reporter)

    return Stage("critic", key, FOLDS, make)


def fitted_critic(
    material: Material, config: NoiseCriticConfig, events: TrainingEvents, name: str, reporter: Reporter
) -> NoiseCritic:
    """A critic taught by these events, each user's in the block that knows nothing of the user."""
    torch.manual_seed(material.seed)
    critic = NoiseCritic(config, material.relations, material.events.item_counts())
    own_block = (material.folds * events.num_rows)[events.store.event_users()]
    store = replace(events.store, item_idx=(events.store.item_idx + own_block).astype(np.int32))
    return fitted(critic, replace(events, store=store), CRITIC_TRAINING, material, name, reporter)


def llm_stage(material: Material, config: NoiseLlmConfig, reporter: Reporter) -> Stage:
    """One language model for all users, fine-tuned on a sample of windows."""
    training = config.training()
    key = material.key("llm", asdict(config), config.identity, asdict(training))

    def make(_: int) -> NoiseLlm:
        torch.manual_seed(material.seed)
        detector = NoiseLlm(config, material.titles, material.events.item_counts())
        return fitted(detector, material.events, training, material, f"{key}-0", reporter)

    return Stage("llm", key, 1, make)


def fitted(
    detector: Detector,
    events: TrainingEvents,
    training: TrainingConfig,
    material: Material,
    name: str,
    reporter: Reporter,
) -> Detector:
    """Trained by the common loop, or read where that was done before."""
    folder = material.store / "fits" / hashlib.sha256(name.encode()).hexdigest()
    if not folder.exists():
        with writing_step(
            "fit", folder, config=asdict(training), seed=material.seed, keep_partial=True, scratch=("checkpoints",)
        ) as step:
            windows = TrainingWindows.cut(np.where(events.stops < FEWEST_EVENTS, 0, events.stops), detector.window)
            trainer = Trainer(detector, events.store, windows, training, material.seed, step.folder)
            trainer.resume()
            with reporter.task("train detector", training.epochs * trainer.batches_per_epoch) as advance:
                advance(trainer.progress.step)
                trainer.fit(
                    None,
                    "loss",
                    lambda figures: advance(0, f"epoch {figures['epoch']} loss {figures['loss']:.4f}"),
                    lambda: advance(1),
                )
            save_file({key: value.contiguous().cpu() for key, value in trainer.best.items()}, step.folder / WEIGHTS)
    detector.load_state_dict(load_file(folder / WEIGHTS))
    return detector
