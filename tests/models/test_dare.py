"""DARE and its rivals: what every ranker holds, the sheet's golden vector, gradients, and formulas by plain numpy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from rankers import METHODS, NUM_CATEGORIES, NUM_ITEMS, SMALL, asked, clicks, ranker, scrambled
from safetensors.torch import load_file, save_file
from tiny import histories_of, windows_of
from torch import Tensor
from torch.testing import assert_close

from models import dare
from models.dare import DARE, DAREConfig
from recsys.batches import Histories
from recsys.contracts import TrainableRanker
from recsys.errors import ConfigError
from recsys.event_fields import FieldTables, Seen, masked_softmax
from recsys.time_buckets import log_buckets

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
LAYOUTS = pytest.mark.parametrize(
    "settings",
    [
        *({"method": method} for method in METHODS),
        {"attention_dim": 2},
        {"num_categories": 0, "time_buckets": 0},
        {"recent": 3},
        {"target_aware": False},
        {"method": "twin-4e", "attention_dim": 5, "recent": 2},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)


@LAYOUTS
@torch.no_grad()
def test_a_batch_equals_its_rows_and_padding_counts_for_nothing(settings: dict[str, Any]) -> None:
    """Neither its width nor what stands there."""
    model = scrambled(ranker(**settings))
    assert isinstance(model, TrainableRanker)
    histories, candidates = asked()
    scores = model.score(histories, candidates)
    assert scores.shape == candidates.shape
    assert (scores.std(dim=1) > 1e-3).all()
    for row, length in enumerate(histories.lengths.tolist()):
        alone = Histories(
            histories.items[[row], :length], histories.timestamps[[row], :length], histories.lengths[[row]]
        )
        assert_close(model.score(alone, candidates[[row]]), scores[[row]], rtol=1e-4, atol=1e-5)
    padding = torch.arange(histories.items.shape[1]) >= histories.lengths[:, None]
    items, times = histories.items.masked_fill(padding, 3), histories.timestamps.masked_fill(padding, 10**16)
    assert_close(model.score(Histories(items, times, histories.lengths), candidates), scores, rtol=1e-4, atol=1e-5)


@LAYOUTS
@torch.no_grad()
def test_scores_go_with_their_candidates(settings: dict[str, Any]) -> None:
    model = scrambled(ranker(**settings))
    histories, candidates = asked()
    scores, order = model.score(histories, candidates), torch.tensor([3, 0, 6, 2])
    assert_close(model.score(histories, candidates[:, order]), scores[:, order], rtol=1e-4, atol=1e-5)


@LAYOUTS
@torch.no_grad()
def test_only_the_latest_events_count(settings: dict[str, Any]) -> None:
    model = scrambled(ranker(**settings))
    histories = histories_of([list(range(1, 16))])
    _, candidates = asked(rows=1)
    scores = model.score(histories, candidates)
    assert_close(model.score(histories.latest(11), candidates), scores, rtol=1e-4, atol=1e-5)
    assert (model.score(histories.latest(3), candidates) - scores).abs().max() > 1e-3


@LAYOUTS
def test_a_history_without_events_has_scores_and_gradients(settings: dict[str, Any]) -> None:
    model = scrambled(ranker(**settings))
    nothing = torch.zeros((2, 1), dtype=torch.int64)
    scores = model.score(Histories(nothing, nothing, torch.zeros(2, dtype=torch.int32)), torch.tensor([[3, 4], [4, 5]]))
    assert_close(scores[0, 1], scores[1, 0])
    assert scores[0, 0] != scores[0, 1]
    scores.sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@LAYOUTS
def test_every_parameter_learns(settings: dict[str, Any]) -> None:
    model = scrambled(ranker(**settings, l2=0.0)).train()
    model.loss(clicks(model, rows=9)).backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle, f"no gradient reaches {idle}"


@LAYOUTS
def test_saved_equals_loaded(settings: dict[str, Any], tmp_path: Path) -> None:
    """Categories and hashes are kept with the weights: the other model has drawn others."""
    model = scrambled(ranker(**settings))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = DARE(model.config)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model.score(*asked()), other.score(*asked()))


@LAYOUTS
def test_the_loss_is_that_of_scores_after_each_prefix(settings: dict[str, Any]) -> None:
    """What is trained in one pass over a window is what will be asked, event by event."""
    model = scrambled(ranker(**settings, auxiliary=1.0 if settings.get("method") == "sim-soft" else 0.0, l2=0.0))
    batch = clicks(model)
    assert batch.negatives is not None
    losses = []
    for row, place in batch.target.nonzero().tolist():
        prefix = Histories(
            batch.history[[row], : place + 1], batch.timestamps[[row], : place + 1], torch.tensor([place + 1])
        )
        shown = torch.cat([batch.target[row, place, None], batch.negatives.items[row, place]])[None]
        logits = model.score(prefix.latest(model.max_len), shown)
        losses.append(F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0, 0.0]])))
    assert len(losses) == batch.num_targets
    model.auxiliary = None
    assert_close(model.loss(batch), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@EVERY_METHOD
def test_the_loss_is_the_mean_over_targets_not_over_rows(method: str) -> None:
    model = scrambled(ranker(method))
    batch = clicks(model, rows=7)
    parts = [batch.share(row, 7) for row in range(7)]
    assert len({part.num_targets for part in parts}) > 1, "rows with as many targets each would hide the difference"
    expected = sum(model.loss(part) * part.num_targets for part in parts) / batch.num_targets
    assert_close(model.loss(batch), expected, rtol=1e-4, atol=1e-5)
    nothing = replace(batch, target=torch.zeros_like(batch.target))
    assert_close(model.loss(nothing), model.config.l2 * squares(model))


def squares(model: DARE) -> Tensor:
    """Of everything but tables and biases."""
    named = {name: weight for name, weight in model.named_parameters() if "tables" not in name and "bias" not in name}
    assert any("norm" in name for name in named)
    assert any("layers" in name for name in named)
    return torch.stack([(weight**2).sum() for weight in named.values()]).sum()


def test_a_fresh_model_loses_what_a_guess_loses() -> None:
    """Twice, with the second head."""
    for method, heads in (("dare", 2), ("last-k", 1)):
        model = DARE(DAREConfig(**{**SMALL, "method": method, "embedding_dim": 16, "hidden": (200, 80)}))
        model.learn_popularity(np.r_[0, np.ones(NUM_ITEMS, dtype=np.int64)])
        assert model.loss(clicks(model, rows=40)).item() == pytest.approx(heads * np.log(2), rel=0.1)


def golden() -> DARE:
    """The sheet's vector: semantic keys of 4 numbers, time keys of 2, values of 3; items 1-4 are events, 5 is asked."""
    model = ranker(num_items=5, num_categories=5, embedding_dim=1, attention_dim=2, kept=2, max_len=4, time_buckets=0)
    model.learn_categories(torch.arange(6))
    keys = torch.tensor([[1, 0, 0.5, -0.5], [0, 1, 0, 0], [-1, 0, 1, 1], [0.5, 0.5, 0.5, 0], [1, 0, 0.5, -0.5]])
    times = torch.tensor([[0.2, 0.1], [0.1, 0.3], [0.2, 0.2], [0.3, 0.1], [0.4, 0.0]])  # of positions 0 to 4
    values = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [-1, -2, -3], [0.5, -1, 2]])
    attention, representation = model._tables("key"), model._tables("event")
    with torch.no_grad():
        attention.items.weight[1:] = keys[:, :2]
        attention.categories.weight[1:] = keys[:, 2:]  # type: ignore[union-attr]
        attention.positions.weight[:] = times
        representation.items.weight[1:, 0] = values[:, 0]
        representation.categories.weight[1:, 0] = values[:, 1]  # type: ignore[union-attr]
        representation.positions.weight[:, 0] = values[[4, 3, 2, 1, 0], 2]
    return model


@torch.no_grad()
def test_the_golden_vector_of_the_sheet() -> None:
    """One root over all six numbers would give .645, .029, -.384, .327."""
    model = golden()
    items = torch.tensor([[1, 2, 3, 4]])
    seen = Seen.before(torch.tensor([[4]]), torch.zeros_like(items), 4, 0)
    lookup = model._lookup(items, torch.tensor([[5]]), seen)
    assert_close(lookup.scores[0, 0], torch.tensor([0.806569, 0.049497, -0.457574, 0.410355]), atol=1e-6, rtol=0)
    found = model._attended(lookup, model.search(lookup))  # type: ignore[misc]
    assert found.places is not None
    assert found.places.tolist() == [[[0, 3]]]
    assert_close(found.weights[0, 0], torch.tensor([0.597778, 0.402222]), atol=1e-6, rtol=0)
    event = model._role("event")
    pooled = found.pooled(event.semantic(items, lookup.categories), event.times(), seen)
    assert_close(pooled[0, 0], torch.tensor([0.195555, 0.391110, 0.586665]), atol=2e-6, rtol=0)
    target = model._role("candidate").candidates(torch.tensor([[5]]), torch.tensor([[5]]))
    assert_close(target[0, 0], torch.tensor([0.5, -1, 2]))
    product = torch.tensor([0.097778, -0.391110, 1.173330])
    assert_close(model._about(pooled, target)[1][0, 0], product, atol=2e-6, rtol=0)
    everything = model._all_events(lookup, None).weights[0, 0]
    assert_close(everything, torch.tensor([0.412476, 0.193467, 0.116517, 0.277540]), atol=1e-6, rtol=0)


def test_attention_tables_learn_through_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights detached they get nothing, and the representation gets what it got."""
    model = scrambled(ranker(auxiliary=0.0))
    batch = clicks(model)
    model.loss(batch).backward()
    through = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert through["tables.attention.items.weight"].abs().max() > 1e-3
    model.zero_grad()
    monkeypatch.setattr(dare, "masked_softmax", lambda *given: masked_softmax(*given).detach())
    model.loss(batch).backward()
    for name, weight in model.named_parameters():
        if name.startswith("tables.attention"):
            assert weight.grad is None or not weight.grad.any()
        else:
            assert_close(weight.grad, through[name])


@pytest.mark.parametrize("auxiliary", [0.0, 1.0])
def test_events_that_are_not_kept_teach_attention_only_through_the_second_head(auxiliary: float) -> None:
    model = scrambled(ranker(auxiliary=auxiliary, positives=1, negatives=1))
    history = list(range(1, 12))
    batch = model.training_batch(windows_of([[*history, 20]]), np.random.default_rng(0))
    batch = replace(batch, target=torch.zeros_like(batch.target).index_fill(1, torch.tensor([10]), 20))
    batch.negatives.items[:] = 21  # type: ignore[union-attr]
    model.loss(batch).backward()
    seen = Seen.before(torch.tensor([[11, 11]]), batch.timestamps, 11, 9)
    lookup = model._lookup(batch.history, torch.tensor([[20, 21]]), seen)
    places = model._attended(lookup, model.search(lookup)).places  # type: ignore[misc]
    found = {history[place] for place in places.flatten().tolist()}  # type: ignore[union-attr]
    touched = set(model._tables("key").items.weight.grad.any(dim=1).nonzero().flatten().tolist())  # type: ignore[union-attr]
    assert 4 <= len(found) < 11
    assert touched == ({*history, 20, 21} if auxiliary else {*found, 20, 21})


@pytest.mark.parametrize("settings", [{}, {"recent": 2}, {"num_categories": 0, "time_buckets": 0}])
def test_dare_with_one_set_of_tables_is_twin_bit_for_bit(settings: dict[str, Any]) -> None:
    ours, twin = scrambled(ranker("dare", **settings)), ranker("twin", **settings)
    ours.tables["attention"] = ours.tables["representation"]
    twin.load_state_dict(ours.state_dict(), strict=False)
    assert torch.equal(ours.score(*asked()), twin.score(*asked()))
    batch = clicks(ours)
    losses = [model.loss(batch) for model in (ours, twin)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    tied = dict(ours.named_parameters(remove_duplicate=False))
    assert [name for name, weight in twin.named_parameters() if not torch.equal(weight.grad, tied[name].grad)] == []


@pytest.mark.parametrize(
    "method", ["dare", "twin", "twin-projected", "twin-4e", "sim-hard", "sim-soft", "eta", "random-k"]
)
@torch.no_grad()
def test_keeping_all_events_is_full_attention(method: str) -> None:
    """And a second head with the first one's weights says the same."""
    model = scrambled(ranker(method, kept=11))
    histories, candidates = asked()
    seen = Seen.before(histories.lengths[:, None], histories.timestamps, 11, 9)
    lookup = model._lookup(histories.items, candidates, seen)
    attended = model._attended(lookup, model.search(lookup))  # type: ignore[misc]
    dense = torch.zeros_like(lookup.scores).scatter_add(2, attended.places, attended.weights)  # type: ignore[arg-type]
    assert_close(dense, masked_softmax(lookup.scores, seen.visible), rtol=1e-5, atol=1e-6)
    fewer = scrambled(ranker(method, kept=4))
    assert (fewer.score(histories, candidates) - model.score(histories, candidates)).abs().max() > 1e-3


@torch.no_grad()
def test_the_order_of_storage_does_not_matter() -> None:
    """Shuffled events with their own positions give the same answers."""
    model = scrambled(ranker())
    items, candidates = torch.tensor([[3, 9, 4, 22, 7, 11]]), torch.tensor([[5, 6, 8]])
    seen = Seen.before(torch.tensor([[6]]), torch.arange(6)[None] * 10**7, 11, 9)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = Seen(*(part[:, :, order] for part in (seen.visible, seen.positions, seen.ages)))
    first = model._answers(items, candidates, seen).clicks
    assert_close(model._answers(items[:, order], candidates, shuffled).clicks, first)


def by_numpy(model: DARE, items: np.ndarray, seconds: np.ndarray, candidate: int) -> float:
    """DARE, TWIN (with or without matrices), TWIN-4E and DIN, event by event, from the formulas."""
    config = model.config
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    category_of = weights["category_of"].astype(int)

    def vector(role: str, item: int, position: int, age: int) -> tuple[np.ndarray, np.ndarray]:
        fields = {"items": item, "categories": category_of[item], "positions": position, "ages": age}
        parts = {}
        for field, row in fields.items():
            parts[field] = weights[f"tables.{model.tables_of[role]}.{field}.weight"][row]
            if config.method == "twin-projected":
                parts[field] = weights[f"maps.{role}.{field}.weight"] @ parts[field]
        return np.r_[parts["items"], parts["categories"]], np.r_[parts["positions"], parts["ages"]]

    def at(event: int) -> tuple[int, int, int]:
        bucket = 1 + int(np.floor(np.log2(1 + seconds[-1] - seconds[event])))
        return int(items[event]), len(items) - event, min(bucket, config.time_buckets - 1)

    (query, now), scores = vector("query", candidate, 0, 0), []
    for event in range(len(items)):
        key, then = vector("key", *at(event))
        if config.method == "din":
            q, k = np.r_[query, now], np.r_[key, then]
            x = weights["unit.inner.weight"] @ np.r_[q, k, q - k, q * k] + weights["unit.inner.bias"]
            scores.append((weights["unit.logit.weight"] @ prelu(x, weights["unit.activation.weight"])).item())
        else:
            scores.append(query @ key / np.sqrt(len(key)) + now @ then / np.sqrt(len(then)))
    most = len(items) if config.method == "din" else config.kept
    chosen = np.argsort(scores)[::-1][:most]
    share = np.exp(np.array(scores)[chosen])
    share /= share.sum()
    target = np.concatenate(vector("candidate", candidate, 0, 0))
    pooled = sum(part * np.concatenate(vector("event", *at(event))) for part, event in zip(share, chosen, strict=True))
    x = np.concatenate([normed(part, weights, number) for number, part in enumerate([target, pooled, pooled * target])])
    for layer in range(2):
        x = weights[f"head.layers.{layer}.weight"] @ x + weights[f"head.layers.{layer}.bias"]
        x = prelu(x, weights[f"head.activations.{layer}.weight"])
    return (weights["head.logit.weight"] @ x + weights["head.logit.bias"]).item()


def prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """x, or slope times x below zero."""
    return np.where(x > 0, x, slope * x)


def normed(part: np.ndarray, weights: dict[str, np.ndarray], number: int) -> np.ndarray:
    """LayerNorm of the head's part."""
    deviation = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return deviation * weights[f"head.norms.{number}.weight"] + weights[f"head.norms.{number}.bias"]


@pytest.mark.parametrize("method", ["dare", "twin", "twin-projected", "twin-4e", "din"])
@torch.no_grad()
def test_scores_are_those_of_the_formulas(method: str) -> None:
    model = scrambled(ranker(method)).double()
    histories, candidates = asked()
    scores = model.score(histories, candidates)
    for row, length in enumerate(histories.lengths.tolist()):
        items = histories.items[row, :length].numpy()
        seconds = histories.timestamps[row, :length].numpy() // 1_000_000
        seconds = seconds - np.maximum(0, seconds - seconds[-1])  # a clock that went back counts as no time
        for column, candidate in enumerate(candidates[row].tolist()):
            assert scores[row, column].item() == pytest.approx(by_numpy(model, items, seconds, candidate), rel=1e-9)


def test_pooling_all_events_alike_is_their_mean() -> None:
    model = scrambled(ranker("mean"))
    histories, candidates = asked(rows=1, candidates=1)
    seen = Seen.before(histories.lengths[:, None], histories.timestamps, 11, 9)
    lookup = model._lookup(histories.items, candidates, seen)
    assert_close(model._attended(lookup, None).weights[0, 0], torch.full((11,), 1 / 11))


def test_ages_count_from_the_newest_event_that_is_seen() -> None:
    times = torch.tensor([[0, 3, 4, 20]]) * 1_000_000
    seen = Seen.before(torch.tensor([[4, 3, 1, 0]]), times, 3, 9)
    assert seen.positions[0].tolist() == [[0, 3, 2, 1], [3, 2, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert seen.ages[0].tolist() == [[0, 5, 5, 1], [3, 2, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert log_buckets(torch.tensor([0, 1, 2, 3, 10**9]), 9).tolist() == [1, 2, 2, 3, 8]


def test_narrow_attention_leaves_the_representation_wide() -> None:
    wide, narrow = ranker(embedding_dim=8), ranker(embedding_dim=8, attention_dim=4)
    assert (wide._tables("key").semantic_width, narrow._tables("key").semantic_width) == (16, 8)
    assert narrow._tables("event").semantic_width == 16
    removed = 4 * (NUM_ITEMS + 1 + NUM_CATEGORIES + 1 + 12 + 9)
    assert count(wide) - count(narrow) == removed


def count(model: DARE) -> int:
    """Parameters."""
    return sum(weight.numel() for weight in model.parameters())


def test_tables_have_the_sheets_size() -> None:
    """Taobao: item, category and time rows at width 16; time has 2,000 rows there."""
    config = DAREConfig(num_items=4_068_790, num_categories=9_407, max_len=1_999)
    with torch.device("meta"):
        tables = DARE(config)._tables("key")
    assert isinstance(tables, FieldTables)
    assert sum(weight.numel() for weight in tables.parameters()) == (4_068_791 + 9_408 + 2_000) * 16 == 65_283_184


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kept": 0}, "kept=0 must be at least 1"),
        ({"recent": -1}, "recent=-1 must be at least 0"),
        ({"method": "twin", "attention_dim": 2}, "attention_dim=2 needs tables of its own, and method=twin has none"),
        ({"hash_bits": 13}, "hash_bits=13 cannot be split into groups of hash_width=3"),
        ({"method": "sim-soft", "auxiliary": 0.0}, "method=sim-soft learns to search by model.auxiliary alone"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DAREConfig(**SMALL | settings)
