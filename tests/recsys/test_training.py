"""The training loop: schedule, early stopping, accumulation, precision, and going on after an interruption."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rankers import ranker
from tiny import PRIME, cyclic_histories, random_histories, store_of
from torch import nn

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.dare import DARE
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import TrainBatch, TrainingWindows
from recsys.errors import ConfigError, DataError
from recsys.losses import LossConfig
from recsys.sequences import Windows
from recsys.training import Trainer, TrainingConfig

SMALL = {"num_items": PRIME, "max_len": 6, "embedding_dim": 12, "num_blocks": 1, "num_heads": 2, "ffn_dim": 20}
HISTORIES = random_histories(26, PRIME, 13, seed=3, shortest=2)


def sasrec(dropout: float = 0.0) -> SASRec:
    """The same small model every time."""
    torch.manual_seed(0)
    return SASRec(SASRecConfig(**SMALL, dropout=dropout))


def bert4rec(dropout: float = 0.0) -> BERT4Rec:
    """The same small model every time."""
    torch.manual_seed(0)
    return BERT4Rec(BERT4RecConfig(**SMALL, dropout=dropout))


def sampled(dropout: float = 0.0) -> SASRec:
    """Shared negatives: half uniform, half of the batch."""
    torch.manual_seed(0)
    loss = LossConfig(kind="sampled-softmax", negatives=10, sampling="mixed")
    model = SASRec(SASRecConfig(**SMALL, dropout=dropout, loss=loss))
    model.learn_popularity(np.bincount([item for history in HISTORIES for item in history], minlength=PRIME + 1))
    return model


def binary(dropout: float = 0.0) -> BERT4Rec:
    """A negative of its own for each position."""
    torch.manual_seed(0)
    return BERT4Rec(BERT4RecConfig(**SMALL, dropout=dropout, loss=LossConfig(kind="bce")))


def dare(dropout: float = 0.0) -> DARE:  # noqa: ARG001 - a ranker has none
    """A ranker: its targets, and the negatives of each, are drawn anew for every batch."""
    model = ranker("dare", num_items=PRIME, max_len=6, positives=3)
    model.learn_popularity(np.bincount([item for history in HISTORIES for item in history], minlength=PRIME + 1))
    return model


def trainer_of(
    model: nn.Module, folder: Path, histories: Sequence[Sequence[int]] = HISTORIES, **settings: Any
) -> Trainer:
    """A trainer of a few small batches an epoch."""
    config = TrainingConfig(**{"epochs": 3, "batch_size": 8, "warmup_steps": 3} | settings)
    stops = np.array([len(history) for history in histories])
    windows = TrainingWindows.cut(stops, model.window)
    return Trainer(model, store_of(histories), windows, config, seed=5, folder=folder)


def fit(
    trainer: Trainer,
    validate: Callable[[], dict[str, float]] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[float]:
    """Trains to the end; the loss of each epoch."""
    trainer.fit(validate, "ndcg@10", on_epoch=lambda _: None, on_batch=on_batch)
    return [epoch["loss"] for epoch in trainer.progress.epochs]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_rates_warm_up_and_stay() -> None:
    config = TrainingConfig(learning_rate=0.8, warmup_steps=4)
    assert [config.rate(step, 100) for step in (0, 1, 2, 3, 4, 99)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert TrainingConfig(learning_rate=0.8, warmup_steps=0).rate(0, 100) == 0.8


def test_rates_warm_up_and_fall_to_nothing() -> None:
    config = TrainingConfig(learning_rate=0.8, warmup_steps=2, schedule="cosine")
    by_hand = [
        0.4,
        0.8 * (1 + math.cos(math.pi / 8)) / 2,
        0.8 * (1 + math.sqrt(0.5)) / 2,
        0.4,
        0.8 * (1 - math.sqrt(0.5)) / 2,
        0.0,
    ]
    assert [config.rate(step, 8) for step in (0, 1, 2, 4, 6, 8)] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "name", ["patience", "batch_size", "accumulation", "learning_rate", "clip_norm", "validation_cases"]
)
def test_settings_must_be_above_zero(name: str) -> None:
    value = 0.0 if name in {"learning_rate", "clip_norm"} else 0
    with pytest.raises(ConfigError, match=f"training: {name}={value} must be above 0"):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("name", ["averaging", "event_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_shares_lie_between_nothing_and_all(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"training: {name}={value} must lie in \[0, 1\)"):
        TrainingConfig(**{name: value})


def test_events_are_left_out_of_training_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one window of ten events, others every epoch."""
    seen: list[list[int]] = []
    model = sasrec()
    original = model.training_batch

    def training_batch(windows: Windows, rng: np.random.Generator) -> TrainBatch:
        seen.append(windows.items[0, : windows.lengths[0]].tolist())
        return original(windows, rng)

    monkeypatch.setattr(model, "training_batch", training_batch)
    fit(trainer_of(model, tmp_path, [[1, 2, 3, 4, 5, 6, 7]], epochs=8, event_dropout=0.5))
    assert len({tuple(kept) for kept in seen}) > 4
    assert all(kept == sorted(kept) and 2 <= len(kept) <= 7 for kept in seen)
    assert min(len(kept) for kept in seen) < 6


def with_sink(dropout: float = 0.0) -> SASRec:
    """The layout of the sparse presets."""
    torch.manual_seed(0)
    layout = {"norm": "both", "positions": "none", "recency": 0.25, "sink": True}
    return SASRec(SASRecConfig(**SMALL, **layout, dropout=dropout))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [sasrec, bert4rec, sampled, binary, with_sink])
def test_a_gpu_trains_as_a_cpu(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Without dropout, in float32, with an average of weights: the same losses and weights."""
    device, host = (
        trainer_of(make(), tmp_path / name, device=name, averaging=0.5, event_dropout=0.3) for name in ("auto", "cpu")
    )
    assert (device.device.type, host.device.type) == ("cuda", "cpu")
    assert fit(device) == pytest.approx(fit(host), rel=1e-4)
    for name, weight in weights(host.model).items():
        torch.testing.assert_close(device.model.state_dict()[name].cpu(), weight, rtol=1e-3, atol=1e-4)


def test_more_parts_than_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="accumulation=9 cannot divide a batch of batch_size=8"):
        TrainingConfig(batch_size=8, accumulation=9)


def test_steps_take_the_scheduled_rates(tmp_path: Path) -> None:
    trainer = trainer_of(sasrec(), tmp_path, epochs=2, schedule="cosine", learning_rate=0.1)
    taken: list[float] = []
    fit(trainer, on_batch=lambda: taken.append(trainer.optimizer.param_groups[0]["lr"]))
    steps = 2 * trainer.batches_per_epoch
    assert len(taken) == steps > 6
    assert taken == [trainer.config.rate(step, steps) for step in range(steps)]


def test_the_reported_loss_is_the_mean_over_the_epochs_targets(tmp_path: Path) -> None:
    """With a rate too small to move anything, an epoch's loss is that of the whole data at once."""
    model = sasrec()
    trainer = trainer_of(model, tmp_path, epochs=2, learning_rate=1e-12)
    everything = model.training_batch(
        trainer.windows.load(trainer.store, np.arange(len(trainer.windows))), np.random.default_rng(0)
    )
    counted: list[int] = []

    def validate() -> dict[str, float]:
        counted.append(trainer.progress.targets)
        return {}

    expected = model.loss(everything).item()
    assert fit(trainer, validate) == pytest.approx([expected, expected], rel=1e-5)
    assert counted == [everything.num_targets] * 2, "each epoch counts its own"


def test_training_learns_the_rule(tmp_path: Path) -> None:
    losses = fit(trainer_of(sasrec(), tmp_path, cyclic_histories(60, 12), epochs=12, learning_rate=1e-2))
    assert losses[0] > 3
    assert losses[-1] < 1


def test_the_best_epoch_is_kept_and_training_stops_after_patience(tmp_path: Path) -> None:
    model = sasrec()
    trainer = trainer_of(model, tmp_path, epochs=50, patience=3)
    figures = iter([0.1, 0.4, 0.2, 0.6, 0.6, 0.5, 0.1, 0.9])
    seen = []

    def validate() -> dict[str, float]:
        seen.append(weights(model))
        return {"ndcg@10": next(figures), "mrr@10": float(len(seen))}

    fit(trainer, validate)
    assert [epoch["ndcg@10"] for epoch in trainer.progress.epochs] == [0.1, 0.4, 0.2, 0.6, 0.6, 0.5, 0.1]
    assert (trainer.progress.best_epoch, trainer.progress.best_metric) == (4, 0.6)
    assert_same(weights(model), seen[3])
    assert_same(trainer.best, seen[3])
    assert (seen[6]["items.weight"] != seen[3]["items.weight"]).any()


def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    model = sasrec()
    trainer = trainer_of(model, tmp_path, epochs=4, patience=1)
    assert len(fit(trainer)) == 4
    assert trainer.progress.best_epoch == 4


def test_the_average_of_the_weights_is_validated_and_kept(tmp_path: Path) -> None:
    """average += (1 - d) (weights - average) after every step, d = min(decay, (1 + step) / (10 + step))."""
    model = sasrec()
    trainer = trainer_of(model, tmp_path, averaging=0.7)
    steps: list[dict[str, torch.Tensor]] = []
    average = weights(model)
    validated: list[dict[str, torch.Tensor]] = []

    def watch() -> None:
        nonlocal average
        decay = min(0.7, (1 + len(steps)) / (10 + len(steps)))
        steps.append(weights(model))
        average = {name: decay * old + (1 - decay) * steps[-1][name] for name, old in average.items()}

    def validate() -> dict[str, float]:
        validated.append(weights(model))
        for name, value in average.items():
            torch.testing.assert_close(validated[-1][name], value)
        return {"ndcg@10": float(len(validated))}

    fit(trainer, validate, watch)
    assert len(validated) == 3
    assert_same(weights(model), validated[-1])
    assert any((validated[-1][name] != value).any() for name, value in steps[-1].items())


def test_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    """A decay so strong that it shows beside the steps themselves."""
    model = sasrec()
    before = weights(model)
    fit(trainer_of(model, tmp_path, epochs=1, learning_rate=1e-3, weight_decay=50.0, warmup_steps=0))
    after, inner, norm = model.state_dict(), "blocks.blocks.0.ffn.inner.weight", "blocks.norm.weight"
    assert after[inner].norm() < 0.9 * before[inner].norm()
    assert after[norm].norm() > 0.99 * before[norm].norm()


@pytest.mark.parametrize("make", [sasrec, bert4rec, sampled, binary, dare])
def test_four_micro_batches_equal_one_batch(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Rows have unlike numbers of targets and one batch has three rows only, so a mean of means would differ."""
    size = len(trainer_of(make(), tmp_path).windows) - 3
    settings = {"learning_rate": 3e-2, "warmup_steps": 0, "clip_norm": 0.3}
    whole = trainer_of(make(), tmp_path / "1", batch_size=size, **settings)
    parts = trainer_of(make(), tmp_path / "4", batch_size=size, accumulation=4, **settings)
    assert fit(parts) == pytest.approx(fit(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "steps", "precision"),
    [(make, steps, "fp32") for make in (sasrec, bert4rec) for steps in (1, 5, 8, 11)]
    + [(sampled, 8, "fp32"), (binary, 5, "fp32"), (sasrec, 5, "bf16"), (bert4rec, 8, "bf16")]
    + [(dare, 5, "fp32"), (dare, 6, "bf16")],
)
def test_an_interrupted_training_ends_with_the_same_weights(
    make: Callable[..., nn.Module], steps: int, precision: str, tmp_path: Path
) -> None:
    """Dropout, events left out, masks and negatives included; the break falls inside an epoch or between two."""
    validation = [0.3, 0.5, 0.4]

    def train(model: nn.Module, folder: Path, break_after: int | None) -> Trainer:
        settings = {"averaging": 0.5, "event_dropout": 0.3, "precision": precision}
        trainer = trainer_of(model, folder, checkpoint_seconds=0.0, **settings)
        trainer.resume()

        def on_batch() -> None:
            if trainer.progress.step == break_after:
                raise KeyboardInterrupt

        fit(trainer, lambda: {"ndcg@10": validation[trainer.progress.epoch]}, on_batch)
        return trainer

    undisturbed = train(make(dropout=0.4), tmp_path / "whole", None)
    assert undisturbed.batches_per_epoch in {4, 5, 6}
    with pytest.raises(KeyboardInterrupt):
        train(make(dropout=0.4), tmp_path / "broken", steps)
    resumed = train(make(dropout=0.4), tmp_path / "broken", None)
    assert_same(weights(resumed.model), weights(undisturbed.model))
    assert_same(resumed.best, undisturbed.best)
    for ours, theirs in zip(resumed.progress.epochs, undisturbed.progress.epochs, strict=True):
        assert ours | {"seconds": 0.0} == theirs | {"seconds": 0.0}


def test_resuming_skips_the_steps_that_were_taken(tmp_path: Path) -> None:
    fit(trainer_of(sasrec(), tmp_path, epochs=2))
    trainer = trainer_of(sasrec(), tmp_path, epochs=3)
    assert trainer.resume()
    taken: list[int] = []
    fit(trainer, on_batch=lambda: taken.append(trainer.progress.epoch))
    assert taken == [2] * trainer.batches_per_epoch
    assert not trainer_of(sasrec(), tmp_path / "elsewhere").resume()


def test_negatives_differ_from_batch_to_batch_and_from_epoch_to_epoch(tmp_path: Path) -> None:
    """They are drawn from the seed of (run, epoch, batch), with the masks."""
    model = sampled()
    drawn: list[tuple[int, ...]] = []
    made = model.training_batch

    def keeping(*given: Any) -> TrainBatch:
        batch = made(*given)
        assert batch.negatives is not None
        drawn.append(tuple(batch.negatives.items.tolist()))
        return batch

    model.training_batch = keeping  # type: ignore[method-assign]
    trainer = trainer_of(model, tmp_path, epochs=2)
    fit(trainer)
    assert len(drawn) == 2 * trainer.batches_per_epoch == len(set(drawn))
    first = list(drawn)
    drawn.clear()
    fit(trainer_of(model, tmp_path / "again", epochs=2))
    assert drawn == first


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    first, second = bert4rec(dropout=0.3), bert4rec(dropout=0.3)
    assert fit(trainer_of(first, tmp_path / "1")) == fit(trainer_of(second, tmp_path / "2"))
    assert_same(weights(first), weights(second))


def test_bfloat16_trains_and_leaves_the_next_training_alone(tmp_path: Path) -> None:
    """Matrix products in bfloat16, weights in float32; accelerate would keep its first precision for good."""
    dtypes: dict[str, torch.dtype] = {}

    def losses_at(precision: str) -> list[float]:
        model = sasrec()
        handle = next(iter(model.blocks)).attention.qkv.register_forward_hook(
            lambda _, __, output: dtypes.update({precision: output.dtype})
        )
        histories = cyclic_histories(60, 12)
        settings = {"epochs": 4, "learning_rate": 1e-2, "precision": precision}
        losses = fit(trainer_of(model, tmp_path / precision, histories, **settings))
        handle.remove()
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        return losses

    low, full = losses_at("bf16"), losses_at("fp32")
    assert dtypes == {"bf16": torch.bfloat16, "fp32": torch.float32}
    assert low[-1] < low[0] - 0.5
    assert low == pytest.approx(full, rel=0.03)
    assert low != full


def test_a_loss_that_is_no_number_stops_training(tmp_path: Path) -> None:
    model = sasrec()
    with torch.no_grad():
        model.blocks.norm.weight[0] = torch.nan
    with pytest.raises(DataError, match=r"loss became nan in epoch 1, at step 1; lower training.learning_rate"):
        fit(trainer_of(model, tmp_path))


def test_users_of_one_event_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no user has two training events"):
        trainer_of(sasrec(), tmp_path, [[1], [2]])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Adam's first step does not depend on a gradient's size, but its second moment shows what came in."""
    trainer = trainer_of(sasrec(), tmp_path, epochs=1, batch_size=64, clip_norm=1e-3)
    fit(trainer)
    moments = [state["exp_avg_sq"].sum() / (1 - 0.999) for state in trainer.optimizer.state.values()]
    assert math.sqrt(sum(moments)) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["epochs", "epoch_batches"])
def test_settings_that_may_be_zero_must_not_be_below(name: str) -> None:
    assert getattr(TrainingConfig(**{name: 0}), name) == 0
    with pytest.raises(ConfigError, match=f"training: {name}=-1 must be at least 0"):
        TrainingConfig(**{name: -1})
