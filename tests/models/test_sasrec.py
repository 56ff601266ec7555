"""SASRec: the causal contract, and what papers and public code say of this model."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from contract import MAX_LEN, NUM_ITEMS, SMALL, CausalRetrieverContract, LearningContract, random_batch, scrambled
from tiny import histories_of, irregular_times, random_histories, windows_of
from torch.testing import assert_close

from models.sasrec import SASRec, SASRecConfig
from recsys.errors import ConfigError
from recsys.losses import LossConfig


def make(**settings: Any) -> SASRec:
    """A small model."""
    return SASRec(SASRecConfig(**SMALL | {"num_heads": 2 if "embedding_dim" in settings else 3} | settings))


class TestSASRec(LearningContract, CausalRetrieverContract):
    """The contract."""

    def make(self, **settings: Any) -> SASRec:
        return make(**settings)


class TestSASRecWithRecency(LearningContract, CausalRetrieverContract):
    """Distances in place of learned positions."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"positions": "none", "recency": 0.5} | settings)

    def test_no_positions_are_learned(self) -> None:
        assert not [name for name, _ in self.make().named_parameters() if "position" in name]


class TestSASRecWithSink(LearningContract, CausalRetrieverContract):
    """As preset for sparse data: one norm for branch and sum, and heads that may look at nothing."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"norm": "both", "positions": "none", "recency": 0.25, "sink": True} | settings)


def with_texts(model: SASRec) -> SASRec:
    """The same with random text vectors of its items, of length 1 and the same every time."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(model.config.num_items + 1, model.config.text_width, generator=generator)
    vectors[3] = 0  # an item without text
    model.learn_texts(F.normalize(vectors, dim=1), np.ones(len(vectors), dtype=np.int64))
    return model


def test_a_table_takes_no_texts() -> None:
    with pytest.raises(TypeError, match="items=table has a learned vector for each item"):
        make().learn_texts(torch.zeros(NUM_ITEMS + 1, 384), np.zeros(NUM_ITEMS + 1, dtype=np.int64))


class TestSASRecOfProjectedTexts(LearningContract, CausalRetrieverContract):
    """As MoRec has it."""

    rule_steps = 200

    def make(self, **settings: Any) -> SASRec:
        return with_texts(make(**{"items": "morec", "text_width": 40} | settings))


class TestSASRecOfWhitenedTexts(CausalRetrieverContract):
    """As UniSRec has it: experts, cosines, a temperature."""

    def make(self, **settings: Any) -> SASRec:
        unisrec = {"items": "unisrec", "text_width": 7, "cosine": True, "temperature": 2.0, "input_norm": True}
        return with_texts(make(**unisrec | settings))

    def test_scores_are_cosines_over_the_temperature(self) -> None:
        model = scrambled(self.make())
        vectors = model.encode(histories_of(random_histories(5, NUM_ITEMS, MAX_LEN)))
        assert_close(vectors.norm(dim=1), torch.full((5,), 0.5))
        assert_close(model.item_vectors()[1:].norm(dim=1), torch.ones(NUM_ITEMS))
        assert not model.item_vectors()[0].any()
        assert_close(model.item_vectors(torch.tensor([4, 2])), model.item_vectors()[[4, 2]])


class TestSASRecLiGR(CausalRetrieverContract):
    """Gates, SwiGLU and rotations."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"gated": True, "activation": "swiglu", "positions": "rotary"} | settings)


class TestSASRecPostNorm(CausalRetrieverContract):
    """The norm after the sum, as first published for transformers; with gates and distances beside positions."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"norm": "post", "gated": True, "activation": "gelu", "recency": 0.3} | settings)


class TestSASRecWithTimes(CausalRetrieverContract):
    """Intervals between events, and rotations for their order."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"time_buckets": 20, "positions": "rotary"} | settings)

    def test_it_says_that_it_reads_times(self) -> None:
        assert self.make().reads_times
        assert not make().reads_times


class TestSASRecSampledSoftmax(LearningContract, CausalRetrieverContract):
    """Uniform negatives."""

    def make(self, **settings: Any) -> SASRec:
        return make(**{"loss": LossConfig(kind="sampled-softmax", negatives=16)} | settings)


class TestSASRecMixedNegatives(CausalRetrieverContract):
    """Half uniform, half of the batch."""

    def make(self, **settings: Any) -> SASRec:
        model = make(**{"loss": LossConfig(kind="sampled-softmax", negatives=16, sampling="mixed")} | settings)
        model.learn_popularity(np.minimum(1, np.arange(model.config.num_items + 1)))
        return model


class TestSASRecGeneralisedBinary(LearningContract, CausalRetrieverContract):
    """gBCE."""

    rule_steps = 360
    loss_knows_chance = False

    def make(self, **settings: Any) -> SASRec:
        return make(**{"loss": LossConfig(kind="gbce", negatives=16)} | settings)

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:
        rate = 16 / (num_items - 1)
        return math.log(2) * (16 + 0.75 * (rate - 1) + 1) / 17


class TestSASRecBinary(LearningContract, CausalRetrieverContract):
    """The published loss; of longer windows it would not learn the next item from those after, never its negatives."""

    rule_steps = 450
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 1}
    rule_excludes_seen = True
    loss_knows_chance = False

    def make(self, **settings: Any) -> SASRec:
        return make(**{"loss": LossConfig(kind="bce")} | settings)

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:  # noqa: ARG004 - the same for any
        return 2 * math.log(2)


def test_windows_are_one_event_longer_than_what_the_model_reads() -> None:
    window = make().window
    assert (window.length, window.overlap) == (MAX_LEN + 1, 1)


def test_every_event_predicts_the_next() -> None:
    batch = random_batch(make())
    lengths = batch.lengths.tolist()
    for row, length in enumerate(lengths):
        assert (batch.history[row, 1:length] == batch.target[row, : length - 1]).all()
    assert batch.num_targets == sum(lengths)


@torch.no_grad()
def test_without_blocks_it_scores_by_the_normalised_last_item() -> None:
    model = scrambled(make(num_blocks=0))
    histories = random_histories(4, NUM_ITEMS, MAX_LEN)
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    expected = []
    for history in histories:
        x = weights["items.weight"][history[-1]] + weights["positions.weight"][len(history) - 1]
        deviation = (x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt()
        expected.append(deviation * weights["blocks.norm.weight"] + weights["blocks.norm.bias"])
    scores = model.encode(histories_of(histories)) @ model.item_vectors().T
    assert_close(scores.double(), torch.stack(expected) @ weights["items.weight"].T, rtol=1e-5, atol=1e-5)


def test_output_table_is_the_input_table_and_learns_from_both_ends() -> None:
    model = scrambled(make()).train()
    assert model.item_vectors().data_ptr() == model.items.weight.data_ptr()
    batch = random_batch(model)

    def gradient(tied_in: bool, tied_out: bool) -> torch.Tensor:
        model.zero_grad()
        table = model.items.weight
        x = F.embedding(batch.history, table if tied_in else table.detach())
        x = x + model.positions.weight[: batch.history.shape[1]]
        states = model.blocks(x, causal=True)
        logits = states[batch.target != 0] @ (table if tied_out else table.detach())[1:].T
        F.cross_entropy(logits, batch.target[batch.target != 0] - 1).backward()
        return torch.zeros_like(table) if table.grad is None else table.grad.clone()

    both, from_input, from_output = gradient(True, True), gradient(True, False), gradient(False, True)
    model.zero_grad()
    model.loss(batch).backward()
    assert from_input.abs().max() > 1e-3
    assert from_output.abs().max() > 1e-3
    assert_close(both[1:], (from_input + from_output)[1:], rtol=1e-4, atol=1e-5)
    assert_close(model.items.weight.grad[1:], both[1:], rtol=1e-4, atol=1e-5)


def test_order_matters() -> None:
    model = scrambled(make())
    forth = model.encode(histories_of([[3, 5, 7, 11]]))
    swapped = model.encode(histories_of([[5, 3, 7, 11]]))
    assert (forth - swapped).abs().max() > 1e-2


def test_number_of_parameters_is_that_of_the_papers_size() -> None:
    """ML-1M, d=50, N=200, 2 blocks: 212,000 in pmixer's code, whose position table holds one row for padding."""
    items, length, width, blocks = 3416, 200, 50, 2
    config = SASRecConfig(
        num_items=items, max_len=length, embedding_dim=width, num_blocks=blocks, num_heads=1, ffn_dim=width
    )
    attention = 4 * (width * width + width)
    feed_forward = 2 * (width * width + width)
    norms = 2 * 2 * width
    assert attention + feed_forward + norms == 15_500
    formula = (items + 1) * width + length * width + blocks * 15_500 + 2 * width
    assert formula == 212_000 - width
    assert sum(weight.numel() for weight in SASRec(config).parameters()) == formula


def test_loss_at_the_start_is_ln_of_the_catalogue() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=3416, max_len=20))
    loss = model.loss(random_batch(model, rows=16, num_items=3416)).item()
    assert loss == pytest.approx(math.log(3416), rel=0.01)
    assert loss == pytest.approx(8.136, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sampled-softmax", math.log(3416)), ("gbce", math.log(2) * (256 + 0.30622) / 257), ("bce", 2 * math.log(2))],
)
def test_sampled_losses_start_where_the_sheet_says(kind: str, expected: float) -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=3416, max_len=20, loss=LossConfig(kind=kind, negatives=256)))  # type: ignore[arg-type]
    loss = model.loss(random_batch(model, rows=16, num_items=3416)).item()
    assert loss == pytest.approx(expected, rel=0.01)


def test_a_binary_negative_is_no_event_of_its_window() -> None:
    """Not the first one either, which is read and never a target."""
    model = make(loss=LossConfig(kind="bce"))
    for seed in range(20):
        histories = random_histories(9, NUM_ITEMS, MAX_LEN + 1, seed, shortest=2)
        batch = model.training_batch(windows_of(histories), np.random.default_rng(seed))
        assert batch.negatives is not None
        assert batch.negatives.items.shape == batch.target.shape
        for row, history in enumerate(histories):
            assert not set(batch.negatives.items[row, : len(history) - 1].tolist()) & set(history)


def test_a_sampled_loss_is_drawn_by_the_given_rng() -> None:
    model = make(loss=LossConfig(kind="sampled-softmax", negatives=7))
    windows = windows_of(random_histories(9, NUM_ITEMS, MAX_LEN))

    def drawn(seed: int) -> list[int]:
        batch = model.training_batch(windows, np.random.default_rng(seed))
        assert batch.negatives is not None
        return batch.negatives.items.tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_states_know_the_time_since_the_last_event() -> None:
    """By hand for one event after another: bucket 1 + floor(log2(1 + s)) is added to the item."""
    model = scrambled(make(time_buckets=20, positions="none", num_blocks=0)).double()
    history, times = torch.tensor([[4, 9, 2]]), torch.tensor([[5_000_000, 5_000_000 + 3_000_000, 70_000_000]])
    x = model.items.weight[history[0]] + model.intervals.weight[[0, 3, 6]]
    deviation = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-8).sqrt()
    expected = deviation * model.blocks.norm.weight + model.blocks.norm.bias
    assert_close(model.hidden_states(history, times)[0], expected)


def test_a_window_of_one_event_predicts_nothing() -> None:
    batch = make().training_batch(windows_of([[4], [5, 6]]), np.random.default_rng(0))
    assert batch.history.tolist() == [[0], [5]]
    assert batch.target.tolist() == [[0], [6]]
    assert batch.timestamps.tolist() == [irregular_times(1)] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim=10 cannot be split over num_heads=3"),
        ({"max_len": 0}, "max_len=0 must be at least 1"),
        ({"positions": "rotary", "embedding_dim": 9}, "positions=rotary turns pairs .* embedding_dim=9 / num_heads=3"),
        ({"time_buckets": -1}, "time_buckets=-1 must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SASRecConfig(**SMALL | settings)
