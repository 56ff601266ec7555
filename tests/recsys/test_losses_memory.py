"""What losses over the catalogue hold while they compute: chunks of logits, never all of them."""

from collections.abc import Callable

import pytest
from loss_problems import drawn_loss, problem
from watching import largest_tensor, peak_bytes

from recsys import losses


def step(kind: str, count: int, items: int, width: int = 3, negatives: int = 40) -> Callable[[], None]:
    """Loss and gradients of `count` positions over a catalogue of `items`."""
    task = problem(count, width, items)
    compute = drawn_loss(kind, task, negatives)
    return lambda: compute().backward()


def test_softmax_holds_no_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 logits in all; the gradients of states and table must be held."""
    monkeypatch.setattr(losses, "CPU_LOGITS", 2000)
    for count in (20, 500):
        assert largest_tensor(step("softmax", count, items=400)) <= max(2000, 500 * 3, 401 * 3)


def test_sampled_softmax_holds_no_more_than_a_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CPU_LOGITS", 2000)
    for count in (20, 500):
        assert largest_tensor(step("sampled-softmax", count, items=400)) <= max(2000, 500 * 3, 401 * 3)
    assert largest_tensor(step("sampled-softmax", 500, items=30_000)) == 30_001 * 3, "the table's gradient"


def test_the_peak_grows_with_states_and_not_with_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a dozen copies of what was added to the states, where the logits would be 400 / 3 times as much."""
    monkeypatch.setattr(losses, "CPU_LOGITS", 2000)
    for kind in ("softmax", "sampled-softmax"):
        few, many = (peak_bytes(step(kind, count, items=400)) for count in (1000, 5000))
        assert few > 2000 * 8, "a peak that counts nothing would be as flat"
        assert many - few < 12 * 4000 * 3 * 8


def test_the_peak_of_a_sampled_softmax_grows_with_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full one adds gradients and sums of them; this one what indexing the table gives back, twice at most."""
    monkeypatch.setattr(losses, "CPU_LOGITS", 2000)
    small, large = (peak_bytes(step("sampled-softmax", 500, items=items)) for items in (1000, 50_000))
    assert large - small < 3.1 * 49_000 * 3 * 8
