"""What every model holds. Each model's test class subclasses one of the contracts and sets `make`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    PRIME,
    cyclic_histories,
    events_of,
    histories_of,
    irregular_times,
    item_table,
    random_histories,
    windows_of,
)
from torch import Tensor, nn
from torch.testing import assert_close

from recsys.batches import Histories, TrainBatch
from recsys.contracts import CountingModel, SentenceReader, TrainableRetriever
from recsys.index import ItemIndex
from recsys.ranking import FullRanking, RetrieverScorer
from recsys.splits import TrainingEvents

NUM_ITEMS = 29
MAX_LEN = 11
SMALL = {
    "num_items": NUM_ITEMS,
    "max_len": MAX_LEN,
    "embedding_dim": 12,
    "num_blocks": 2,
    "num_heads": 3,
    "ffn_dim": 20,
    "dropout": 0.0,
}
"""Sizes of sequence models under test; no two of them alike, so that a transpose cannot hide."""


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight, norm and bias drawn anew, so that no fresh zero or one hides a mistake; padding stays zero.

    Of a model that makes its item vectors of texts these are made anew; its norms scale by about one, for with small
    ones all texts would come out alike.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        if isinstance(model, SentenceReader):
            for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
                norm.weight += 1
            model.refresh_items()
        else:
            model.items.weight[0] = 0  # type: ignore[union-attr, index, operator]
    return model.eval()


def random_batch(model: Any, rows: int = 5, seed: int = 0, num_items: int = NUM_ITEMS) -> TrainBatch:
    """The model's own training batch of random histories of 2 to as many events as a window holds."""
    histories = random_histories(rows, num_items, model.window.length, seed, shortest=2)
    return model.training_batch(windows_of(histories), np.random.default_rng(seed))


def adamw_steps(model: Any, steps: int, fresh: Any, rate: float = 3e-3) -> list[float]:
    """Losses of plain training; `fresh(step)` gives the histories of a step."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        loss = model.loss(model.training_batch(windows_of(fresh(step)), rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def hit_rate(model: Any, histories: list[list[int]], exclude_seen: bool = False) -> float:
    """Share of histories whose last item is the model's first choice after the others."""
    known = histories_of([history[:-1] for history in histories])
    scores = model.encode(known) @ model.item_vectors().T
    if exclude_seen:
        scores = scores.scatter(1, known.items, -torch.inf)
    target = torch.tensor([history[-1] for history in histories])
    return (scores[:, 1:].argmax(dim=1) + 1 == target).double().mean().item()


class RetrieverContract(ABC):
    """A trainable retriever. `settings` of `make` are fields of the model's config, over small lopsided defaults."""

    @abstractmethod
    def make(self, **settings: Any) -> Any:
        """A fresh model in training mode, without dropout unless asked for."""

    @staticmethod
    def loss_of_a_guess(num_items: int) -> float:
        """What a fresh model loses at each target."""
        return float(np.log(num_items))

    def fresh(self, **settings: Any) -> Any:
        """The same after a fixed seed."""
        torch.manual_seed(0)
        return self.make(**settings)

    def test_it_keeps_the_protocol(self) -> None:
        model = self.fresh()
        assert isinstance(model, TrainableRetriever)
        vectors, items = model.encode(histories_of(random_histories(3, NUM_ITEMS, model.max_len))), model.item_vectors()
        assert vectors.shape == (3, items.shape[1])
        assert len(items) == NUM_ITEMS + 1

    def test_loss_starts_at_that_of_a_guess(self) -> None:
        model = self.fresh(num_items=997)
        loss = model.loss(random_batch(model, rows=64, num_items=997)).item()
        assert loss == pytest.approx(self.loss_of_a_guess(997), rel=0.01)

    def test_every_parameter_learns(self) -> None:
        model = scrambled(self.fresh()).train()
        model.loss(random_batch(model)).backward()
        idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert not idle, f"no gradient reaches {idle}"
        if model.positions is None:
            return
        blind = [place for place, row in enumerate(model.positions.weight.grad) if not row.any()]
        assert not blind, f"positions {blind} are never trained"

    def test_padding_row_is_zero_and_stays_so(self) -> None:
        model = self.fresh()
        assert not model.items.weight[0].any()
        before = model.items.weight[1].clone()
        adamw_steps(model, 3, lambda step: random_histories(4, NUM_ITEMS, model.window.length, step, shortest=2))
        assert not model.items.weight[0].any()
        assert (model.items.weight[1] != before).any()

    def test_padding_changes_no_vector(self) -> None:
        model = scrambled(self.fresh(max_len=50))
        histories = random_histories(4, NUM_ITEMS, 7)
        wide = model.encode(histories_of(histories, width=model.max_len))
        assert_close(model.encode(histories_of(histories)), wide, rtol=1e-5, atol=1e-5)

    def test_a_batch_equals_its_rows(self) -> None:
        model = scrambled(self.fresh())
        histories = random_histories(6, NUM_ITEMS, model.max_len)
        rows = torch.cat([model.encode(histories_of([history])) for history in histories])
        assert_close(model.encode(histories_of(histories)), rows, rtol=1e-5, atol=1e-5)

    def test_loss_is_the_mean_over_targets_not_over_rows(self) -> None:
        model = scrambled(self.fresh())
        batch = random_batch(model, rows=7)
        parts = [batch.share(row, 7) for row in range(7)]
        assert len({part.num_targets for part in parts}) > 1, "rows with as many targets each would hide the difference"
        expected = sum(model.loss(part) * part.num_targets for part in parts) / batch.num_targets
        assert_close(model.loss(batch), expected, rtol=1e-5, atol=1e-5)

    def test_loss_without_targets_is_zero_and_so_are_its_gradients(self) -> None:
        model = scrambled(self.fresh()).train()
        batch = random_batch(model)
        loss = model.loss(replace(batch, target=torch.zeros_like(batch.target)))
        loss.backward()
        assert loss.item() == 0
        assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)

    def test_targets_are_items_and_never_padding(self) -> None:
        model = self.fresh()
        histories = random_histories(9, NUM_ITEMS, model.window.length, shortest=2)
        batch = model.training_batch(windows_of(histories), np.random.default_rng(0))
        beyond = torch.arange(batch.target.shape[1]) >= batch.lengths[:, None]
        assert not batch.target[beyond].any()
        assert not batch.history[beyond].any()
        assert batch.target.max() <= NUM_ITEMS

    def test_dropout_works_in_training_and_never_in_use(self) -> None:
        model = scrambled(self.fresh(dropout=0.5))
        histories = histories_of(random_histories(3, NUM_ITEMS, model.max_len))
        assert torch.equal(model.encode(histories), model.encode(histories))
        model.train()
        assert not torch.equal(model.encode(histories), model.encode(histories))

    def test_saved_equals_loaded(self, tmp_path: Path) -> None:
        model = scrambled(self.fresh())
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        other = self.make().eval()
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        histories = histories_of(random_histories(3, NUM_ITEMS, model.max_len))
        assert torch.equal(model.encode(histories), other.encode(histories))
        assert torch.equal(model.item_vectors(), other.item_vectors())

    @torch.no_grad()
    def test_the_index_ranks_as_the_model_does(self) -> None:
        model = scrambled(self.fresh())
        histories = histories_of(random_histories(1000, NUM_ITEMS, model.max_len))
        vectors, items = model.encode(histories), model.item_vectors()
        rows, scores = ItemIndex.build(items.numpy()).search(vectors.numpy(), NUM_ITEMS)
        ranking = FullRanking(RetrieverScorer(model, torch.zeros(NUM_ITEMS + 1)))
        best = ranking.recommend(histories, NUM_ITEMS, mask=None)
        assert_close(torch.from_numpy(scores), best.scores, rtol=1e-5, atol=1e-5)
        assert sorted(rows[0]) == list(range(1, NUM_ITEMS + 1)), "every item once, neither padding nor a private row"
        clear = (best.scores[:, :-1] - best.scores[:, 1:]).min(dim=1).values > 1e-4
        assert clear.sum() > 500
        assert torch.equal(torch.from_numpy(rows)[clear], best.items[clear])


class LearningContract:
    """What a trainable retriever learns, and that it learns nothing else; beside a `RetrieverContract`."""

    rule_steps = 120
    rule_rate = 5e-3
    rule_settings: ClassVar[dict[str, Any]] = {"max_len": 9}
    loss_knows_chance = True
    """Whether the loss of a guess is the least that noise allows; binary losses also fall by learning the base rate."""
    rule_excludes_seen = False
    """For a loss whose negatives are never items of the history: such a model knows nothing of their scores."""
    fresh: Callable[..., Any]

    def test_it_learns_a_rule(self) -> None:
        model = self.fresh(num_items=PRIME, embedding_dim=32, **self.rule_settings)
        adamw_steps(
            model,
            self.rule_steps,
            lambda step: cyclic_histories(32, model.window.length, seed=step),
            rate=self.rule_rate,
        )
        histories = cyclic_histories(62, model.max_len + 1, seed=10**6)
        assert hit_rate(model.eval(), histories, exclude_seen=self.rule_excludes_seen) > 0.95

    def test_it_stays_at_chance_on_noise(self) -> None:
        """Fresh noise every step: a model that sees its targets falls below the loss of a guess."""
        model = self.fresh(num_items=PRIME, max_len=9, embedding_dim=32)
        losses = adamw_steps(model, 150, lambda step: random_histories(32, PRIME, 8, seed=step, shortest=8))
        assert np.mean(losses[-30:]) > np.log(PRIME) - 0.03 or not self.loss_knows_chance
        assert hit_rate(model.eval(), random_histories(500, PRIME, 8, seed=10**6, shortest=2)) < 0.08


@contextmanager
def watched_embeddings(model: Any) -> Iterator[list[Tensor]]:
    """Collects the item embeddings that the model looks up, with their gradients."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.items.register_forward_hook(keep)
    yield seen
    handle.remove()


def whole(items: Tensor, times: Tensor) -> Histories:
    """Histories without padding."""
    return Histories(items, times, torch.full((len(items),), items.shape[1], dtype=torch.int32))


class CausalRetrieverContract(RetrieverContract):
    """A retriever whose states look back only, so that keys and values can be cached."""

    def times(self, rows: int, length: int) -> Tensor:
        """Of events [rows, length]."""
        return torch.tensor(irregular_times(length)).expand(rows, -1)

    @torch.no_grad()
    def test_the_future_does_not_leak(self) -> None:
        model = scrambled(self.fresh())
        history = torch.tensor(random_histories(4, NUM_ITEMS, model.max_len, shortest=model.max_len))
        times = self.times(4, model.max_len)
        for slot in range(model.max_len):
            other, later = history.clone(), times.clone()
            other[:, slot:] = other[:, slot:] % NUM_ITEMS + 1
            later[:, slot:] += 10**13
            states, changed = model.hidden_states(history, times), model.hidden_states(other, later)
            assert torch.equal(states[:, :slot], changed[:, :slot])
            assert (states[:, slot] != changed[:, slot]).any()

    def test_no_gradient_comes_from_the_future(self) -> None:
        model = scrambled(self.fresh())
        history = torch.tensor(random_histories(3, NUM_ITEMS, model.max_len, shortest=model.max_len))
        for place in range(model.max_len):
            with watched_embeddings(model) as seen:
                (model.hidden_states(history, self.times(3, model.max_len))[:, place] ** 3).sum().backward()
            assert not seen[0].grad[:, place + 1 :].any()
            assert seen[0].grad[:, : place + 1].any(dim=2).all()

    def answers(self, model: Any, states: Tensor, _last: Tensor) -> Tensor:
        """What the model makes of states and the items they come after."""
        return model.predictions(states)

    @torch.no_grad()
    def test_a_prefix_keeps_its_states(self) -> None:
        model = scrambled(self.fresh())
        history = torch.tensor(random_histories(4, NUM_ITEMS, model.max_len, shortest=model.max_len))
        times = self.times(4, model.max_len)
        states = model.hidden_states(history, times)
        for length in range(1, model.max_len + 1):
            prefix = Histories(history[:, :length], times[:, :length], torch.full((4,), length, dtype=torch.int32))
            assert_close(model.hidden_states(prefix.items, prefix.timestamps), states[:, :length], rtol=1e-5, atol=1e-5)
            answers = self.answers(model, states[:, length - 1], history[:, length - 1])
            assert_close(model.encode(prefix), answers, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_steps_equal_encoding_anew(self) -> None:
        """200 random sequences: a prefix of any length is encoded, the other events come one by one."""
        model = scrambled(self.fresh())
        rng = np.random.default_rng(0)
        for seed in range(50):
            length = int(rng.integers(2, model.max_len + 1))
            known = int(rng.integers(1, length))
            history = torch.tensor(random_histories(4, NUM_ITEMS, length, seed, shortest=length))
            times = self.times(4, length)
            _, past = model.encode_and_remember(whole(history[:, :known], times[:, :known]))
            for place in range(known, length):
                answers, past = model.encode_next(past, history[:, place], times[:, place])
                longer = whole(history[:, : place + 1], times[:, : place + 1])
                assert_close(answers[-1], model.encode(longer), rtol=1e-5, atol=1e-5)
                assert_close(answers, model.encode_and_remember(longer)[0], rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_a_step_leaves_the_state_before_it_usable(self) -> None:
        """The service keeps one state a user and may answer twice from it."""
        model = scrambled(self.fresh())
        _, past = model.encode_and_remember(whole(torch.tensor([[3, 1, 4]]), self.times(1, 3)))
        at = self.times(1, 4)[:, -1]
        first, _ = model.encode_next(past, torch.tensor([5]), at)
        model.encode_next(past, torch.tensor([9]), at + 10**9)
        again, _ = model.encode_next(past, torch.tensor([5]), at)
        assert torch.equal(first, again)

    @torch.no_grad()
    def test_a_full_window_is_refused(self) -> None:
        model = scrambled(self.fresh())
        full = whole(torch.ones((2, model.max_len), dtype=torch.int64), self.times(2, model.max_len))
        _, past = model.encode_and_remember(full)
        with pytest.raises(ValueError, match=f"window of max_len={model.max_len} events is full; encode its last"):
            model.encode_next(past, torch.tensor([1, 2]), torch.tensor([3, 4]))


class CountingModelContract(ABC):
    """A model of counts. `make` fits it to training events over items 1..NUM_ITEMS with `item_table(NUM_ITEMS)`."""

    @abstractmethod
    def make(self, events: TrainingEvents) -> Any:
        """The model fitted to `events`."""

    def fitted(self) -> Any:
        """The model fitted to random events."""
        return self.make(events_of(random_histories(23, NUM_ITEMS, 8), NUM_ITEMS + 1))

    def test_it_keeps_the_protocol(self) -> None:
        model = self.fitted()
        assert isinstance(model, CountingModel)
        scores = model.scores(histories_of(random_histories(5, NUM_ITEMS, model.max_len)))
        assert scores.shape == (5, NUM_ITEMS + 1)
        assert torch.isfinite(scores).all()

    def test_saved_equals_loaded(self) -> None:
        model = self.fitted()
        again = type(model).from_arrays(model.config, model.arrays())
        histories = histories_of(random_histories(13, NUM_ITEMS, model.max_len, seed=1))
        assert torch.equal(again.scores(histories), model.scores(histories))
        assert {name: array.dtype for name, array in again.arrays().items()} == {
            name: array.dtype for name, array in model.arrays().items()
        }

    def test_a_batch_equals_its_rows_and_padding_counts_for_nothing(self) -> None:
        model = self.fitted()
        histories = random_histories(7, NUM_ITEMS, model.max_len, seed=2)
        rows = torch.cat([model.scores(histories_of([history])) for history in histories])
        assert_close(model.scores(histories_of(histories, width=60)), rows)

    def test_an_empty_history_has_scores(self) -> None:
        model = self.fitted()
        nothing = Histories(
            torch.zeros((1, 1), dtype=torch.int64),
            torch.zeros((1, 1), dtype=torch.int64),
            torch.zeros(1, dtype=torch.int32),
        )
        assert torch.isfinite(model.scores(nothing)).all()

    def test_events_after_the_stops_are_not_learned(self) -> None:
        histories = random_histories(23, NUM_ITEMS, 8, shortest=2)
        stops = [len(history) - 1 for history in histories]
        other = [[*history[:-1], history[-1] % NUM_ITEMS + 1] for history in histories]
        first = self.make(events_of(histories, NUM_ITEMS + 1, stops)).arrays()
        second = self.make(events_of(other, NUM_ITEMS + 1, stops)).arrays()
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])


def table() -> Any:
    """The item table of the contract's counting models."""
    return item_table(NUM_ITEMS)
