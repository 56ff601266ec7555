"""The critic: it learns to name planted noise, ignores padding, and knows users by what others did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noisy_logs import NUM_ITEMS, clustered_log

from models.noise_critic import NoiseCritic, NoiseCriticConfig
from recsys.batches import TrainingWindows
from recsys.click_metrics import auc
from recsys.noise import Judged, NoiseDetector, user_folds
from recsys.relations import fit_relations
from recsys.training import Trainer, TrainingConfig

TEXTS = np.random.default_rng(5).normal(size=(NUM_ITEMS + 1, 7)).astype(np.float32)
CONFIG = NoiseCriticConfig(num_items=NUM_ITEMS, max_len=11, embedding_dim=16, ffn_dim=16)


def made(seed: int = 0, texts: np.ndarray = TEXTS) -> tuple[NoiseCritic, np.ndarray]:
    """A fresh critic of the clustered log, and the folds of its users."""
    log = clustered_log()
    folds = user_folds(log.events.store, 4)
    relations = fit_relations(log.events, folds, texts, 11, 16)
    torch.manual_seed(seed)
    return NoiseCritic(CONFIG, relations, log.events.item_counts()), folds


def test_it_learns_to_name_planted_noise(tmp_path: Path) -> None:
    log, (critic, folds) = clustered_log(), made()
    events = log.events
    assert isinstance(critic, NoiseDetector)
    own_block = (folds * events.num_rows)[events.store.event_users()]
    store = replace(events.store, item_idx=(events.store.item_idx + own_block).astype(np.int32))
    training = TrainingConfig(epochs=15, batch_size=32, learning_rate=3e-3, warmup_steps=5, device="cpu")
    trainer = Trainer(critic, store, TrainingWindows.cut(events.stops, critic.window), training, 0, tmp_path)
    trainer.fit(None, "loss", lambda _: None, lambda: None)
    found = critic.naming(Judged(np.array(log.seen), np.full(len(folds), 11), folds))
    labels = np.array(log.noisy)
    assert auc(labels.astype(np.int64).ravel(), found.ravel().astype(np.float64)) > 0.95
    one = labels.sum(axis=1) == 1
    assert (found[one].argmax(axis=1) == labels[one].argmax(axis=1)).mean() > 0.95


def test_rows_sum_to_one_and_padding_is_nothing() -> None:
    critic, _ = made()
    items = np.array([[1, 2, 3, 4, 5], [21, 22, 1, 0, 0]])
    windows = Judged(items, np.array([5, 3]), np.array([0, 4]))
    found = critic.naming(windows)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert not found[1, 3:].any()
    alone = critic.naming(Judged(items[1:, :3], np.array([3]), np.array([4])))
    np.testing.assert_allclose(alone[0], found[1, :3], atol=1e-6)


def test_a_batch_has_one_wrong_event_in_the_users_own_block() -> None:
    critic, _ = made()
    num_rows = NUM_ITEMS + 1
    log = clustered_log()
    store = replace(log.events.store, item_idx=(log.events.store.item_idx + 2 * num_rows).astype(np.int32))
    windows = store.windows(np.arange(6), np.full(6, 9), 9)
    batch = critic.training_batch(windows, np.random.default_rng(0))
    history, target = batch.history.numpy(), batch.target.numpy()
    assert ((history != windows.items) == (target != 0)).all()
    assert ((target != 0).sum(axis=1) == 1).all()
    assert (target[target != 0] == windows.items[target != 0]).all()
    assert (history // num_rows == 2).all()


def test_every_weight_learns() -> None:
    critic, _ = made()
    windows = clustered_log().events.store.windows(np.arange(20), np.full(20, 11), 11)
    critic.loss(critic.training_batch(windows, np.random.default_rng(0))).backward()
    idle = [name for name, weight in critic.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle in ([], ["head.3.bias", "shortcut.bias"]), idle  # a constant over the window changes no softmax


@pytest.mark.parametrize("texts", [TEXTS, np.zeros((NUM_ITEMS + 1, 0), dtype=np.float32)])
def test_the_loss_is_the_cross_entropy_of_the_place(texts: np.ndarray) -> None:
    critic, _ = made(texts=texts)
    windows = clustered_log().events.store.windows(np.arange(5), np.array([11, 4, 7, 11, 3]), 11)
    batch = critic.eval().training_batch(windows, np.random.default_rng(1))
    named = critic.naming(Judged(batch.history.numpy(), windows.lengths.astype(np.int64), np.zeros(5, dtype=np.int64)))
    places = (batch.target != 0).int().argmax(dim=1).numpy()
    expected = -np.log(named[np.arange(5), places]).mean()
    assert critic.loss(batch).item() == pytest.approx(expected, rel=1e-4)
