"""The one training loop: any `Trainable`, one process or many, resumable at any step.

Randomness is a function of (seed, epoch, batch), never of what ran before: a run that was killed and resumed
computes what an undisturbed one computes, bit for bit on CPU, and every process of a distributed run builds the
same global batch and takes its own rows of it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn

from recsys.batches import TrainBatch, TrainingWindows, thinned
from recsys.checkpoints import Checkpoint, Progress, copy_weights, latest_checkpoint, on_device, save_checkpoint
from recsys.contracts import Refreshing, SentenceReader, Trainable, TrainableRanker, TrainableRetriever
from recsys.errors import ConfigError, DataError
from recsys.sequences import SequenceStore
from recsys.tracking import NoTracker, Tracker
from recsys.windows import WindowKind, WindowPolicy


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    `batch_size` counts windows of all processes together; an epoch has at most `epoch_batches` of them, drawn anew, or
    with 0 all; of more than `validation_cases` a fixed sample is ranked. Of all users a fixed `user_share` is learned
    from, to see how much data a model needs (smaller shares are parts of larger ones).
    `event_dropout` is the probability that an event of a window is left out, drawn anew every time it comes.
    How windows are cut is said by `windows`, `window_stride` and `session_gap` (minutes); see `recsys.windows`.
    With `averaging` above 0 the weights that are validated and kept are an exponential average over steps, of this
    decay (Polyak & Juditsky, 1992): what single steps of sparse data add as noise cancels out.
    """

    epochs: int = 100
    epoch_batches: int = 0
    patience: int = 10
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    averaging: float = 0.0
    event_dropout: float = 0.0
    windows: WindowKind = "sliding"
    window_stride: int = 0
    session_gap: float = 0.0
    user_share: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    checkpoint_seconds: float = 60.0
    validation_cases: int = 10_000

    def __post_init__(self) -> None:
        for name in ("epochs", "epoch_batches"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training: {name}={getattr(self, name)} must be at least 0.")
        for name in (
            "patience",
            "batch_size",
            "accumulation",
            "learning_rate",
            "clip_norm",
            "validation_cases",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training: {name}={getattr(self, name)} must be above 0.")
        for name in ("averaging", "event_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training: {name}={getattr(self, name)} must lie in [0, 1).")
        if not 0 < self.user_share <= 1:
            raise ConfigError(f"training: user_share={self.user_share} must lie in (0, 1].")
        self.window_policy  # noqa: B018 - checks itself
        if self.accumulation > self.batch_size:
            raise ConfigError(
                f"training: accumulation={self.accumulation} cannot divide a batch of batch_size={self.batch_size}."
            )

    @property
    def window_policy(self) -> WindowPolicy:
        """How histories are cut."""
        return WindowPolicy(kind=self.windows, stride=self.window_stride, session_gap=self.session_gap)

    def rate(self, step: int, total_steps: int) -> float:
        """Learning rate of a step: linear warm-up, then constant or a cosine down to 0."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))


class _Loss(nn.Module):
    """The model's loss as a forward pass, which is what DDP and autocast hook into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch) -> Float[Tensor, ""]:
        loss: Tensor = self.model.loss(batch)  # type: ignore[operator]
        return loss


class Trainer:
    """Trains `model` on windows of `store`, validating once an epoch by `validate` (higher is better)."""

    def __init__(
        self,
        model: nn.Module,
        store: SequenceStore,
        windows: TrainingWindows,
        config: TrainingConfig,
        seed: int,
        folder: Path,
        tracker: Tracker | None = None,
    ) -> None:
        if len(windows) == 0:
            raise DataError(
                f"training: no user has two training events (user_share={config.user_share}), so there is no next item "
                "to learn from."
            )
        self.store, self.windows, self.config, self.seed = store, windows, config, seed
        self.checkpoints = folder / "checkpoints"
        self.accelerator = make_accelerator(config, uneven=isinstance(model, SentenceReader))
        self.model = model
        self.network = self.accelerator.prepare(_Loss(model))
        groups = _parameter_groups(model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.tracker = tracker or NoTracker()
        self.progress = Progress()
        self.average = copy_weights(model.state_dict()) if config.averaging else {}
        self.best = copy_weights(model.state_dict())
        self.batches_per_epoch = windows.batches(config.batch_size, config.epoch_batches)

    @property
    def learner(self) -> Trainable:
        """The model by what training asks of it."""
        return self.model  # type: ignore[return-value]

    @property
    def retriever(self) -> TrainableRetriever:
        """The model, where it is a retriever."""
        return self.model  # type: ignore[return-value]

    @property
    def ranker(self) -> TrainableRanker:
        """The model, where it is a ranker."""
        return self.model  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    def resume(self) -> bool:
        """Goes on from the newest checkpoint of the folder; False where there is none."""
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is None:
            return False
        self.progress = checkpoint.progress
        self.model.load_state_dict(on_device(checkpoint.model, self.accelerator.device))
        self.average = on_device(checkpoint.average, self.accelerator.device)
        self.best = on_device(checkpoint.best, self.accelerator.device)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        return True

    def fit(
        self,
        validate: Callable[[], dict[str, float]] | None,
        watch: str,
        on_epoch: Callable[[dict[str, float]], None],
        on_batch: Callable[[], None],
        stop_after: int | None = None,
        judge_start: bool = False,
    ) -> None:
        """Trains to the last epoch or until `watch` has not improved for `patience` epochs; then restores the best.

        Without `validate` there is no stopping early, and the last epoch is the best; `stop_after` ends training
        there, on the schedule of all `epochs`. With `judge_start` the weights that the model came with are validated
        too, as epoch 0, and may stay the best.
        """
        last = self.config.epochs if stop_after is None else stop_after
        if self.progress.step == 0:
            if judge_start or not self._contrasts_rows:
                self._refresh_items()
            self.best = copy_weights(self.model.state_dict())
            if judge_start:
                self.progress.best_metric = self._validated(validate).get(watch, self.progress.best_metric)
        while self.progress.epoch < last and not self.progress.stopped:
            began = time.perf_counter()
            self._train_epoch(on_batch)
            with self._kept_weights():
                self._refresh_items()
                self._end_epoch(self._validated(validate), watch, time.perf_counter() - began)
            self._save()
            figures = self.progress.epochs[-1]
            self.tracker.log_metrics({k: v for k, v in figures.items() if k != "epoch"}, step=self.progress.epoch)
            on_epoch(figures)
        self.model.load_state_dict(self.best)

    @property
    def _contrasts_rows(self) -> bool:
        """Whether the loss asks for no item vectors but those of the batch."""
        return isinstance(self.model, SentenceReader) and self.model.contrasts_rows

    def _refresh_items(self) -> None:
        """Item vectors of a model that keeps them apart from the weights they are made of."""
        if isinstance(self.model, Refreshing):
            with self.accelerator.autocast():
                self.model.refresh_items()

    @contextmanager
    def _kept_weights(self) -> Iterator[None]:
        """The model with the weights that would be kept: the average, where there is one."""
        latest = copy_weights(self.model.state_dict()) if self.average else {}
        self.model.load_state_dict(self.average or self.model.state_dict())
        yield
        self.model.load_state_dict(latest or self.model.state_dict())

    @torch.no_grad()
    def _update_average(self) -> None:
        """One step of the average; early ones count less, so that the first weights are soon forgotten."""
        step = self.progress.step
        share = 1 - min(self.config.averaging, (1 + step) / (10 + step))
        for name, weight in self.model.named_parameters():
            if name in self.average:
                self.average[name].lerp_(weight, share)

    def _validated(self, validate: Callable[[], dict[str, float]] | None) -> dict[str, float]:
        """Figures of the first process, the same in all: what they decide is decided together."""
        figures = [validate() if validate is not None and self.accelerator.is_main_process else {}]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(figures)
        return figures[0]

    def _train_epoch(self, on_batch: Callable[[], None]) -> None:
        self.model.train()
        rng = np.random.default_rng([self.seed, self.progress.epoch])
        saved = time.perf_counter()
        for number, chosen in enumerate(self.windows.epoch(self.config.batch_size, rng, self.config.epoch_batches)):
            if number < self.progress.batch:
                continue
            self.step(chosen, number)
            on_batch()
            if time.perf_counter() - saved > self.config.checkpoint_seconds:
                self._save()
                saved = time.perf_counter()

    def step(self, chosen: np.ndarray, number: int) -> None:
        """One optimiser step on one global batch."""
        rng = np.random.default_rng([self.seed, self.progress.epoch, number + 1])  # 0 ends as the epoch's own seed
        torch.manual_seed(int(rng.integers(2**62)) + self.accelerator.process_index)
        windows = self.windows.load(self.store, chosen)
        if self.config.event_dropout:
            windows = thinned(windows, self.config.event_dropout, rng)
        batch = self.learner.training_batch(windows, rng)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.progress.step, self.config.epochs * self.batches_per_epoch)
        loss = self._backward(batch)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_average()
        self.progress.loss_sum += loss
        self.progress.targets += batch.num_targets
        self.progress.step += 1
        self.progress.batch = number + 1

    def _backward(self, batch: TrainBatch) -> float:
        """Gradients of the global batch's mean loss; returns the loss summed over its targets.

        Every process and micro-batch weighs by its targets, so the result is that of one process and one batch for
        every loss that is a mean over targets; what a model adds for each row or batch (ReaRec) is so only on average.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        total = torch.zeros((), device=self.accelerator.device)
        micro_batches = min(self.config.accumulation, len(batch.lengths))
        for part in range(micro_batches):
            share = batch.share(part, micro_batches).share(rank, processes).to(self.accelerator.device)
            last = part == micro_batches - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                loss = self.network(share)
                weight = share.num_targets / max(1, batch.num_targets)
                self.accelerator.backward(loss * weight * processes)
            total += loss.detach() * share.num_targets
        summed = self.accelerator.reduce(total, reduction="sum").item()
        if not math.isfinite(summed):
            raise DataError(
                f"training: the loss became {summed} in epoch {self.progress.epoch + 1}, at step "
                f"{self.progress.step + 1}; "
                "lower training.learning_rate, or use training.precision=fp32."
            )
        return summed

    def _end_epoch(self, figures: dict[str, float], watch: str, seconds: float) -> None:
        progress = self.progress
        progress.epoch += 1
        progress.seconds += seconds
        reached = figures.get(watch, float(progress.epoch))
        if reached > progress.best_metric:
            progress.best_metric, progress.best_epoch = reached, progress.epoch
            self.best = copy_weights(self.model.state_dict())
        progress.stopped = progress.epoch - progress.best_epoch >= self.config.patience
        progress.epochs.append({
            "epoch": progress.epoch,
            "loss": progress.loss_sum / max(1, progress.targets),
            **figures,
            "seconds": round(seconds, 3),
        })
        progress.batch, progress.loss_sum, progress.targets = 0, 0.0, 0

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
            state = Checkpoint(self.progress, weights, self.average, self.best, optimizer)
            save_checkpoint(self.checkpoints, state)


def make_accelerator(config: TrainingConfig, uneven: bool = False) -> Accelerator:
    """Device, precision and process group; a process may train one model after another.

    `uneven`: not every step uses every weight, as where texts are read at their first token alone.
    """
    AcceleratorState._reset_state()  # accelerate would keep its first precision for good
    return Accelerator(
        cpu=config.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False,  # frozen, the same everywhere
                find_unused_parameters=uneven,
            )
        ],
    )


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only, not on biases and norms."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learned if parameter.ndim >= 2]
    vectors = [parameter for parameter in learned if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
