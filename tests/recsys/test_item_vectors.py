"""Ids and texts in one vector: the gate by hand numbers, what rare and unseen items get, who learns what."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recsys.errors import ConfigError
from recsys.item_vectors import (
    GatedItems,
    InitialisedItems,
    ItemsConfig,
    ItemTable,
    WithPrivateRow,
    learn_texts,
    make_items,
)

ITEMS, TEXT, WIDTH, COMPONENTS = 9, 7, 4, 3
COUNTS = np.array([0, 1, 10, 100, 0, 3, 4, 7, 2, 1])
UNSEEN, WITHOUT_TEXT = 4, 6
SHAPE: dict[str, Any] = {"num_items": ITEMS, "embedding_dim": WIDTH, "text_width": TEXT}


def texts() -> torch.Tensor:
    """Padding has none, nor has one item."""
    vectors = torch.randn(ITEMS + 1, TEXT, generator=torch.Generator().manual_seed(1))
    vectors[[0, WITHOUT_TEXT]] = 0
    return vectors


def made(private_row: bool = False, **settings: Any) -> Any:
    """Items that know their texts and counts; weights drawn anew, so that none is a fresh zero."""
    torch.manual_seed(0)
    items = make_items(ItemsConfig(**SHAPE | settings), private_row)
    with torch.no_grad():
        for parameter in items.parameters():
            parameter.copy_(torch.randn_like(parameter))
    learn_texts(items, texts(), COUNTS)
    return items.eval()


def gated(**settings: Any) -> GatedItems:
    """With gates n / (n + 10)."""
    items = made(items="gated", **settings)
    assert isinstance(items, GatedItems)
    with torch.no_grad():
        items.gate_bias.fill_(-math.log(10))
        items.gate_slope.fill_(1)
    return items


@pytest.mark.parametrize(("settings", "half"), [({}, 10), ({"half_trusted": 3.0}, 3)])
def test_a_fresh_gate_is_a_share_of_squared_events(settings: dict[str, float], half: int) -> None:
    """sigmoid(2 log n - 2 log h) = n² / (n² + h²); never seen is 0."""
    fresh = make_items(ItemsConfig(**SHAPE | settings, items="gated"))
    learn_texts(fresh, texts(), COUNTS)
    expected = torch.tensor(COUNTS**2 / (COUNTS**2 + half**2)).float()
    assert_close(fresh.eval().gates(torch.arange(ITEMS + 1)), expected)


def test_a_vector_is_the_gated_sum_by_hand() -> None:
    items = gated()
    with torch.no_grad():
        items.gate_bias.fill_(0.5)
        items.gate_slope.fill_(-0.3)
    for row in (1, 2, 3, 5):
        gate = 1 / (1 + math.exp(-(0.5 - 0.3 * math.log(COUNTS[row]))))
        text = texts()[row] @ items.texts.adaptor.weight.T + items.texts.adaptor.bias
        assert_close(items(torch.tensor(row)), text + gate * items.ids.weight[row])


def test_an_item_never_seen_is_its_text_alone() -> None:
    items = gated(text_components=COMPONENTS)
    before = items(torch.tensor(UNSEEN))
    assert_close(before, items.texts(torch.tensor(UNSEEN)))
    with torch.no_grad():
        items.ids.weight[UNSEEN] = 1e6
        items.gate_slope.neg_()
    assert_close(items(torch.tensor(UNSEEN)), before)


def test_the_id_of_an_item_never_seen_learns_nothing() -> None:
    items = gated(id_dropout=0.0).train()
    items.weight.square().sum().backward()
    gradient = items.ids.weight.grad
    assert not gradient[[0, UNSEEN]].any()
    assert gradient[[1, 2, 3, 5, WITHOUT_TEXT]].any(dim=1).all()
    assert items.gate_bias.grad != 0
    assert items.gate_slope.grad != 0


def test_gradients_are_those_of_differences() -> None:
    items = gated(id_dropout=0.0).double()
    rows = torch.tensor([1, 2, 3, UNSEEN, WITHOUT_TEXT])

    def vectors(bias: torch.Tensor, slope: torch.Tensor, ids: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        state = {"gate_bias": bias, "gate_slope": slope, "ids.weight": ids, "texts.adaptor.weight": linear}
        return torch.func.functional_call(items, state, (rows,))

    given = [items.gate_bias, items.gate_slope, items.ids.weight, items.texts.adaptor.weight]
    free = [weight.detach().clone().requires_grad_() for weight in given]
    assert torch.autograd.gradcheck(vectors, tuple(free))


def test_items_without_text_lean_on_a_vector_they_share() -> None:
    items = gated()
    expected = items.texts.without_text + 4 / 14 * items.ids.weight[WITHOUT_TEXT]
    assert_close(items(torch.tensor(WITHOUT_TEXT)), expected)


def test_in_training_some_items_pass_for_unseen_ones() -> None:
    items = gated(id_dropout=0.3).train()
    row = torch.full((20_000,), 3)
    vectors, alone = items(row), items.texts(torch.tensor(3))
    dropped = (vectors - alone).abs().sum(dim=1) < 1e-5
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.02)
    items.eval()
    assert_close(vectors[~dropped][0], items(torch.tensor(3)), msg="what is kept is not scaled up")
    assert torch.equal(items(row), items(row))


def test_a_table_starts_from_whitened_texts_and_is_free_then() -> None:
    items = made(items="initialised")
    assert isinstance(items, InitialisedItems)
    described = [row for row in range(1, ITEMS + 1) if row != WITHOUT_TEXT]
    expected = items.whitening(texts())[described]
    assert_close(items.weight[described], 0.02 * 2 * expected)  # 2 is the root of the width
    of_training = [row for row in described if COUNTS[row]]
    assert_close(items.weight[of_training].square().mean(), torch.tensor(0.02**2), rtol=1e-3, atol=0)
    items.weight.square().sum().backward()
    assert items.weight.grad[described].any(dim=1).all()


def test_an_initialised_item_without_text_starts_as_any() -> None:
    torch.manual_seed(0)
    items = make_items(ItemsConfig(**SHAPE, items="initialised"))
    before = items.weight.clone()
    learn_texts(items, texts(), COUNTS)
    assert torch.equal(items.weight[[0, WITHOUT_TEXT]], before[[0, WITHOUT_TEXT]])
    assert (items.weight[[1, UNSEEN]] != before[[1, UNSEEN]]).any(dim=1).all()


def test_a_table_that_was_trained_does_not_start_again() -> None:
    """Weights of an earlier run, its whitening among them, then texts: the weights stay."""
    items = made(items="initialised")
    with torch.no_grad():
        items.weight += 1
    trained = items.weight.clone()
    learn_texts(items, texts(), COUNTS)
    assert torch.equal(items.weight, trained)


@pytest.mark.parametrize("source", ["frozen", "gated", "initialised"])
def test_whitening_knows_items_of_training_alone(source: str) -> None:
    """Another text of an item that was never seen, or of padding, moves nobody else."""
    settings = {"text_components": COMPONENTS} if source == "gated" else {}
    other = texts()
    other[[0, UNSEEN]] = 50.0
    torch.manual_seed(0)
    items = make_items(ItemsConfig(**SHAPE, items=source, **settings))  # type: ignore[arg-type]
    before = make_items(ItemsConfig(**SHAPE, items=source, **settings))  # type: ignore[arg-type]
    before.load_state_dict(items.state_dict())
    learn_texts(before, texts(), COUNTS)
    learn_texts(items, other, COUNTS)
    seen = np.flatnonzero(COUNTS)
    assert_close(items.eval().weight[seen], before.eval().weight[seen])
    assert (items.weight[UNSEEN] != before.weight[UNSEEN]).any()


def test_frozen_items_are_whitened_texts_and_learn_nothing() -> None:
    items = made(items="frozen")
    assert {name for name, _ in items.named_parameters()} == {"without_text"}
    rows = torch.tensor([1, 2, 3])
    assert_close(items(rows), items.whitening(texts())[rows])


@pytest.mark.parametrize("source", ["table", "frozen", "morec", "unisrec", "initialised", "gated"])
@pytest.mark.parametrize("private_row", [False, True])
def test_rows_and_table_agree_and_padding_is_zero(source: str, private_row: bool) -> None:
    torch.manual_seed(0)
    items: ItemTable = make_items(ItemsConfig(**SHAPE, items=source), private_row).eval()  # type: ignore[arg-type]
    if source != "table":
        learn_texts(items, texts(), COUNTS)
    rows = torch.tensor([[3, 0, 9], [1, 3, ITEMS + private_row]])
    assert items.weight.shape == (ITEMS + 1 + private_row, WIDTH)
    assert_close(items(rows), items.weight[rows])
    assert not items.weight[0].any()
    assert items.weight[1:].any(dim=1).all()


def test_a_private_row_is_no_item() -> None:
    items = made(items="gated", private_row=True)
    assert isinstance(items, WithPrivateRow)
    assert_close(items(torch.tensor(ITEMS + 1)), items.private)
    assert_close(items.weight[: ITEMS + 1], items.items.weight)
    items(torch.tensor([ITEMS + 1, ITEMS + 1])).sum().backward()
    assert_close(items.private.grad, torch.full((WIDTH,), 2.0))
    others = {name: weight for name, weight in items.named_parameters() if name != "private"}
    assert not any(weight.grad.any() for weight in others.values() if weight.grad is not None)


@pytest.mark.parametrize("source", ["frozen", "morec", "unisrec", "initialised", "gated"])
def test_vectors_are_those_of_the_stored_state(source: str) -> None:
    """Counts, whitening and features are all in it: nothing has to be encoded to serve."""
    items = made(items=source)
    other = make_items(ItemsConfig(**SHAPE, items=source)).eval()  # type: ignore[arg-type]
    other.load_state_dict(items.state_dict())
    assert torch.equal(other.weight, items.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_control": "random"}, "text_control=random needs items made of texts, not items=table"),
        ({"text_components": 3}, "text_components=3 needs items made of texts, not items=table"),
        ({"items": "gated", "text_width": 0}, "text_width=0 must be at least 1"),
        ({"items": "gated", "id_dropout": 1.0}, r"id_dropout=1.0 must lie in \[0, 1\)"),
        ({"items": "gated", "half_trusted": 0.0}, r"half_trusted=0.0 must be above 0 training events"),
        (
            {"items": "gated", "text_components": 8},
            "items=gated would need 8 components of text vectors of text_width=7",
        ),
        ({"items": "morec", "text_components": -1}, "would need -1 components"),
        ({"items": "frozen", "embedding_dim": 8}, "items=frozen would need 8 components of text vectors of text_width"),
        ({"items": "initialised", "text_components": 3}, "embedding_dim=4, not text_components=3; leave that at 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ItemsConfig(**SHAPE | settings)
