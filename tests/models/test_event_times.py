"""Times as input of both transformers: what they change, what they must not, and a rule that only they reveal."""

from typing import Any

import numpy as np
import pytest
import torch
from contract import NUM_ITEMS, random_batch, scrambled
from test_bert4rec import make as bert4rec
from test_sasrec import make as sasrec
from tiny import PRIME, histories_of, random_histories, windows_of
from torch.testing import assert_close

from recsys.batches import Histories
from recsys.sequences import Windows

MODELS = pytest.mark.parametrize("make", [sasrec, bert4rec], ids=["sasrec", "bert4rec"])
SECOND, DAY = 1_000_000, 86_400 * 1_000_000
RULE_LENGTH = 4


def history(*gaps: int) -> Histories:
    """Five events, `gaps` apart."""
    return histories_of([[3, 1, 4, 1, 5]], timestamps=[np.cumsum([10**15, *gaps]).tolist()])


@MODELS
def test_times_change_the_vector_where_the_model_reads_them(make: Any) -> None:
    short, long = history(SECOND, SECOND, DAY, SECOND), history(SECOND, DAY, SECOND, SECOND)
    model = scrambled(make(time_buckets=20))
    assert model.reads_times
    assert (model.encode(short) - model.encode(long)).abs().max() > 1e-3
    blind = scrambled(make())
    assert not blind.reads_times
    assert torch.equal(blind.encode(short), blind.encode(long))


@MODELS
def test_only_intervals_count(make: Any) -> None:
    """The same history a year later has the same vector, and so has one within the same powers of two."""
    model = scrambled(make(time_buckets=20))
    before = history(SECOND, DAY, 5 * SECOND, 100 * SECOND)
    later = Histories(before.items, before.timestamps + 365 * DAY, before.lengths)
    assert_close(model.encode(before), model.encode(later), rtol=0, atol=0)
    alike = history(2 * SECOND, DAY + SECOND, 6 * SECOND, 99 * SECOND)
    assert_close(model.encode(before), model.encode(alike), rtol=0, atol=0)


@MODELS
def test_times_of_padding_count_for_nothing(make: Any) -> None:
    model = scrambled(make(time_buckets=20))
    batch = histories_of(random_histories(4, NUM_ITEMS, 7), width=9)
    padding = torch.arange(9) >= batch.lengths[:, None]
    other = Histories(batch.items, batch.timestamps.masked_fill(padding, 10**18), batch.lengths)
    assert torch.equal(model.encode(batch), model.encode(other))


def test_a_mask_hides_the_interval_before_it() -> None:
    """Of two masks side by side the first one's time is known to nobody else; the next event's interval remains."""
    model = scrambled(bert4rec(time_buckets=20))
    tokens = torch.tensor([[3, model.mask_row, model.mask_row, 5], [3, 8, model.mask_row, model.mask_row]])
    times = torch.tensor([[0, 60, 120, 180], [0, 60, 120, 180]]) * SECOND
    other = times.clone()
    other[0, 1] = other[1, 2] = other[1, 3] = 10**15
    assert torch.equal(model.hidden_states(tokens, times), model.hidden_states(tokens, other))
    seen = torch.where(tokens == model.mask_row, 9, tokens)
    assert (model.hidden_states(seen, times) - model.hidden_states(seen, other)).abs().max() > 1e-2


@MODELS
def test_batches_carry_the_times_of_their_history(make: Any) -> None:
    model = make(time_buckets=20)
    windows = windows_of(random_histories(5, NUM_ITEMS, model.window.length, shortest=2))
    batch = random_batch(model)
    assert torch.equal(batch.timestamps, torch.from_numpy(windows.timestamps)[:, : batch.history.shape[1]])


def told_by_times(count: int, seed: int, length: int = RULE_LENGTH) -> Windows:
    """After a gap of a second the next item is item + 1, after one of a day item + 11 (mod 31)."""
    rng = np.random.default_rng(seed)
    long = rng.random((count, length)) < 0.5
    items = np.zeros((count, length), dtype=np.int64)
    items[:, :2] = rng.integers(0, PRIME, (count, 2))
    for place in range(2, length):
        items[:, place] = (items[:, place - 1] + np.where(long[:, place - 1], 11, 1)) % PRIME
    times = np.cumsum(np.where(long, DAY, SECOND), axis=1) + 10**15
    return Windows(items + 1, times, np.full(count, length, dtype=np.int32))


@torch.no_grad()
def first_choices(model: Any, windows: Windows) -> torch.Tensor:
    """The best item for the last event, given all before it."""
    known = windows.items.shape[1] - 1
    lengths = torch.full((len(windows.items),), known, dtype=torch.int32)
    batch = Histories(
        torch.from_numpy(windows.items[:, :known]), torch.from_numpy(windows.timestamps)[:, :known], lengths
    )
    return (model.encode(batch) @ model.item_vectors().T)[:, 1:].argmax(dim=1) + 1


@pytest.mark.parametrize(
    ("make", "settings", "steps"),
    [(sasrec, {"max_len": RULE_LENGTH - 1}, 250), (bert4rec, {"max_len": RULE_LENGTH, "last_item_share": 1.0}, 500)],
    ids=["sasrec", "bert4rec"],
)
def test_a_rule_that_only_times_reveal_is_learned_with_times_alone(
    make: Any, settings: dict[str, Any], steps: int
) -> None:
    """Without them it knows the two candidates and cannot tell which."""
    held_out = told_by_times(400, seed=10**6)
    target = torch.from_numpy(held_out.items[:, -1])
    either = torch.from_numpy((held_out.items[:, -2:-1] - 1 + np.array([1, 11])) % PRIME + 1)
    for time_buckets in (20, 0):
        torch.manual_seed(0)
        model = make(num_items=PRIME, embedding_dim=32, num_blocks=1, time_buckets=time_buckets, **settings)
        rng = np.random.default_rng(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps):
            loss = model.loss(model.training_batch(told_by_times(64, seed=step), rng))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        chosen = first_choices(model.eval(), held_out)
        hits = (chosen == target).double().mean().item()
        if time_buckets:
            assert hits > 0.95
        else:
            assert (chosen[:, None] == either).any(dim=1).double().mean().item() > 0.9
            assert 0.35 < hits < 0.65
