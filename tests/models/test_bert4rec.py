"""BERT4Rec: the retriever's contract, the cloze task, and what looking both ways means."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import (
    MAX_LEN,
    NUM_ITEMS,
    SMALL,
    LearningContract,
    RetrieverContract,
    adamw_steps,
    random_batch,
    scrambled,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import PRIME, histories_of, random_histories, windows_of
from torch.testing import assert_close

from models.bert4rec import BERT4Rec, BERT4RecConfig, cloze_mask
from recsys.batches import TrainingWindows
from recsys.errors import ConfigError
from recsys.losses import LossConfig
from recsys.sequences import Windows

CLOZE = {**SMALL, "mask_share": 0.3, "last_item_share": 0.1}


def make(**settings: Any) -> BERT4Rec:
    """A small model."""
    return BERT4Rec(BERT4RecConfig(**CLOZE | {"num_heads": 2 if "embedding_dim" in settings else 3} | settings))


class TestBERT4Rec(LearningContract, RetrieverContract):
    """The contract."""

    rule_steps = 350
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "last_item_share": 0.5}

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**settings)


class TestBERT4RecWithRecency(LearningContract, RetrieverContract):
    """Distances in place of learned positions."""

    rule_steps = 350
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "last_item_share": 0.5}

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"positions": "none", "recency": 0.5} | settings)


class TestBERT4RecWithSink(LearningContract, RetrieverContract):
    """As preset for MovieLens-1M."""

    rule_steps = 1200
    rule_rate = 3e-3
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "last_item_share": 0.5}

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"norm": "both", "positions": "none", "recency": 0.25, "sink": True} | settings)


class TestBERT4RecPreNorm(RetrieverContract):
    """LiGR layers under the cloze task."""

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"norm": "pre", "gated": True, "activation": "swiglu", "positions": "rotary"} | settings)


class TestBERT4RecWithTimes(RetrieverContract):
    """Intervals between events."""

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"time_buckets": 20} | settings)


class TestBERT4RecSampledSoftmax(LearningContract, RetrieverContract):
    """The bias is a dimension of the sampled vectors too."""

    rule_steps = 450
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 4, "last_item_share": 0.5}

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"loss": LossConfig(kind="sampled-softmax", negatives=16)} | settings)


class TestBERT4RecGeneralisedBinary(RetrieverContract):
    """gBCE."""

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"loss": LossConfig(kind="gbce", negatives=16)} | settings)

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:
        rate = 16 / (num_items - 1)
        return math.log(2) * (16 + 0.75 * (rate - 1) + 1) / 17


class TestBERT4RecBinary(RetrieverContract):
    """One negative a mask."""

    def make(self, **settings: Any) -> BERT4Rec:
        return make(**{"loss": LossConfig(kind="bce")} | settings)

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:  # noqa: ARG004 - the same for any
        return 2 * math.log(2)


def test_the_mask_takes_one_of_the_positions() -> None:
    model = make()
    assert model.max_len == MAX_LEN - 1
    assert (model.window.length, model.window.overlap) == (MAX_LEN, 0)
    assert model.encode(histories_of(random_histories(2, NUM_ITEMS, model.max_len))).shape == (2, 13)


def test_the_mask_is_no_item() -> None:
    model = make()
    assert model.mask_row == NUM_ITEMS + 1
    assert model.items.num_embeddings == NUM_ITEMS + 2
    assert len(model.item_vectors()) == NUM_ITEMS + 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_exactly_the_share_is_masked_and_never_padding(lengths: list[int], share: float, seed: int) -> None:
    masked = cloze_mask(np.array(lengths), share, 0.0, np.random.default_rng(seed))
    assert masked.shape == (len(lengths), max(lengths))
    assert masked.sum(axis=1).tolist() == [max(1, round(share * length)) for length in lengths]
    assert not any(masked[row, length:].any() for row, length in enumerate(lengths))


def test_every_place_is_masked_as_often_as_any_other() -> None:
    lengths = np.full(20_000, 7)
    often = cloze_mask(lengths, 0.3, 0.0, np.random.default_rng(0)).mean(axis=0)
    assert often == pytest.approx(np.full(7, 2 / 7), abs=0.015)  # five standard deviations


def test_the_set_share_of_rows_masks_the_last_item_alone() -> None:
    lengths = np.random.default_rng(1).integers(10, 30, 20_000)
    masked = cloze_mask(lengths, 0.4, 0.25, np.random.default_rng(0))
    last = np.arange(masked.shape[1]) == lengths[:, None] - 1
    alone = (masked == last).all(axis=1)
    assert alone.mean() == pytest.approx(0.25, abs=0.015)
    assert (masked[~alone].sum(axis=1) == np.round(0.4 * lengths[~alone])).all()
    assert (cloze_mask(lengths, 0.4, 1.0, np.random.default_rng(0)) == last).all()


def test_masked_items_are_the_targets_and_the_others_stay() -> None:
    model = make()
    windows = windows_of(random_histories(500, NUM_ITEMS, MAX_LEN))
    batch = model.training_batch(windows, np.random.default_rng(0))
    items, masked = torch.from_numpy(windows.items), batch.target != 0
    assert torch.equal(batch.target[masked], items[masked])
    assert (batch.history[masked] == model.mask_row).all()
    assert torch.equal(batch.history[~masked], items[~masked])
    assert not (masked & (items == 0)).any()
    assert (masked.sum(dim=1) >= 1).all()


def test_masks_are_drawn_anew_for_every_batch() -> None:
    model, windows, rng = make(), windows_of(random_histories(9, NUM_ITEMS, MAX_LEN)), np.random.default_rng(0)
    first, second = model.training_batch(windows, rng), model.training_batch(windows, rng)
    assert not torch.equal(first.target, second.target)


def test_the_item_under_a_mask_is_invisible() -> None:
    model = scrambled(make())
    windows = windows_of(random_histories(6, NUM_ITEMS, MAX_LEN))
    batch = model.training_batch(windows, np.random.default_rng(3))
    hidden = (batch.target != 0).numpy()
    others = np.where(hidden, windows.items % NUM_ITEMS + 1, windows.items)
    twin = model.training_batch(Windows(others, windows.timestamps, windows.lengths), np.random.default_rng(3))
    assert (twin.target != batch.target).any()
    assert torch.equal(
        model.hidden_states(twin.history, twin.timestamps), model.hidden_states(batch.history, batch.timestamps)
    )


def test_a_later_item_changes_an_earlier_mask() -> None:
    model = scrambled(make())
    tokens = torch.tensor([[3, model.mask_row, 5, 7]])
    later = torch.tensor([[3, model.mask_row, 5, 8]])
    assert (model.hidden_states(tokens, tokens)[0, 1] - model.hidden_states(later, tokens)[0, 1]).abs().max() > 1e-3


def test_order_matters_by_the_position_table_alone() -> None:
    model = scrambled(make())
    forth, back = histories_of([[3, 5, 7, 11, 2]]), histories_of([[11, 7, 3, 2, 5]])
    assert (model.encode(forth) - model.encode(back)).abs().max() > 1e-2
    with torch.no_grad():
        model.positions.weight.zero_()
    assert_close(model.encode(forth), model.encode(back), rtol=1e-5, atol=1e-5)


def test_output_table_is_the_input_table_and_learns_from_both_ends() -> None:
    model = scrambled(make()).train()
    batch = random_batch(model)
    masked = batch.target != 0

    def gradient(tied_in: bool, tied_out: bool) -> torch.Tensor:
        model.zero_grad()
        table = model.items.weight
        x = F.embedding(batch.history, table if tied_in else table.detach())
        x = model.embedding_norm(x + model.positions.weight[: x.shape[1]])
        states = model.blocks(x, key_mask=(batch.history != 0)[:, None, None, :])[masked]
        output = (table if tied_out else table.detach())[1 : model.mask_row]
        logits = model.predictions(states)[:, :-1] @ output.T + model.item_bias[1:]
        F.cross_entropy(logits, batch.target[masked] - 1).backward()
        return torch.zeros_like(table) if table.grad is None else table.grad.clone()

    both, from_input, from_output = gradient(True, True), gradient(True, False), gradient(False, True)
    model.zero_grad()
    model.loss(batch).backward()
    assert from_input.abs().max() > 1e-3
    assert from_output.abs().max() > 1e-3
    assert_close(both[1:], (from_input + from_output)[1:], rtol=1e-4, atol=1e-5)
    assert_close(model.items.weight.grad[1:], both[1:], rtol=1e-4, atol=1e-5)


def test_mask_and_padding_are_no_classes() -> None:
    """The mask's row learns from the input alone, padding's bias not at all."""
    model = scrambled(make())
    tokens = torch.tensor([[3, 5, 7]])
    states = model.hidden_states(tokens, tokens)
    logits = model.predictions(states) @ model.item_vectors().T
    assert logits.shape[-1] == NUM_ITEMS + 1
    model.loss(random_batch(model)).backward()
    assert model.item_bias.grad[0] == 0
    assert model.item_bias.grad.sum() == pytest.approx(0, abs=1e-5)  # a softmax over the items alone


def test_number_of_parameters_is_the_official_one() -> None:
    """ML-1M, d=64: 339,612 in the official code, which keeps a token-type table and two special rows more."""
    items, length, width, inner, blocks = 3416, 200, 64, 256, 2
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 2 * 2 * width
    assert block == 49_984
    official_rows = items + 4
    token_types = 2 * width
    head = width * width + width + 2 * width
    official = official_rows * width + length * width + token_types + 2 * width + blocks * block + head + official_rows
    assert official == 339_612
    rows_less, biases_less = 2, 3  # ours: padding, items and one mask; biases of padding and items
    config = BERT4RecConfig(num_items=items, max_len=length, embedding_dim=width, ffn_dim=inner, num_blocks=blocks)
    ours = sum(weight.numel() for weight in BERT4Rec(config).parameters())
    assert ours == official - token_types - rows_less * width - biases_less


def test_loss_at_the_start_is_ln_of_the_catalogue() -> None:
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(num_items=3420, max_len=20))
    loss = model.loss(random_batch(model, rows=64, num_items=3420)).item()
    assert loss == pytest.approx(math.log(3420), rel=0.01)
    assert loss == pytest.approx(8.137, rel=0.01)


def test_it_can_learn_a_few_sequences_by_heart() -> None:
    torch.manual_seed(0)
    model = make(num_items=PRIME, max_len=6, embedding_dim=32, ffn_dim=64, mask_share=0.2)
    histories = random_histories(32, PRIME, 6, seed=5, shortest=6)
    adamw_steps(model, 500, lambda _: histories, rate=3e-3)
    right = total = 0
    model.eval()
    for seed in range(5):
        batch = model.training_batch(windows_of(histories), np.random.default_rng(seed))
        masked = batch.target != 0
        logits = (
            model.predictions(model.hidden_states(batch.history, batch.timestamps)[masked]) @ model.item_vectors().T
        )
        right += int((logits[:, 1:].argmax(dim=1) + 1 == batch.target[masked]).sum())
        total += int(masked.sum())
    assert total >= 160
    assert right / total > 0.95


def test_what_is_asked_in_use_was_seen_in_training() -> None:
    """encode() gives what training on a last-item mask gives at the same place: one input, one answer."""
    model = scrambled(make(last_item_share=1.0))
    histories = random_histories(4, NUM_ITEMS, MAX_LEN, shortest=2)
    batch = model.training_batch(windows_of(histories), np.random.default_rng(0))
    trained = model.predictions(model.hidden_states(batch.history, batch.timestamps)[batch.target != 0])
    assert_close(model.encode(histories_of([history[:-1] for history in histories])), trained, rtol=1e-5, atol=1e-5)


def test_windows_never_outgrow_the_position_table() -> None:
    model = make()
    stops = np.array([1, 2, MAX_LEN, MAX_LEN + 1, 5 * MAX_LEN + 3])
    windows = TrainingWindows.cut(stops, model.window)
    assert (windows.stops - windows.starts).max() == model.positions.num_embeddings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim=10 cannot be split over num_heads=3"),
        ({"max_len": 1}, "max_len=1 leaves no room for an event and the mask"),
        ({"mask_share": 0.0}, r"mask_share=0.0 must lie in \(0, 1\)"),
        ({"last_item_share": 1.5}, r"last_item_share=1.5 in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BERT4RecConfig(**CLOZE | settings)
