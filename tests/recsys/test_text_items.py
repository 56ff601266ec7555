"""Item vectors of text against UniSRec's formula, expert by expert, and what an item table promises."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch.testing import assert_close

from recsys.text_items import EXPERTS, TextAdaptor, TextItems, WhiteningExperts

ITEMS, TEXT, WIDTH = 7, 5, 6


def text_items(adaptor: TextAdaptor) -> TextItems:
    """Random weights and features, those of padding too; item 5 has no text."""
    torch.manual_seed(0)
    items = TextItems(ITEMS, TEXT, WIDTH, adaptor)
    with torch.no_grad():
        for tensor in [*items.parameters(), items.features]:
            tensor.copy_(torch.randn_like(tensor))
        items.features[5] = 0
    return items


@pytest.mark.parametrize("adaptor", ["morec", "unisrec"])
def test_rows_and_table_agree_and_padding_is_zero(adaptor: TextAdaptor) -> None:
    items = text_items(adaptor).eval()
    rows = torch.tensor([[3, 0, 7], [1, 3, 3]])
    assert items.weight.shape == (ITEMS + 1, WIDTH)
    assert_close(items(rows), items.weight[rows])
    assert not items.weight[0].any()
    assert items.weight[1:].any(dim=1).all()


def test_morec_is_a_projection() -> None:
    items = text_items("morec")
    expected = items.features[2] @ items.adaptor.weight.T + items.adaptor.bias
    assert_close(items(torch.tensor(2)), expected)


def test_unisrec_is_its_formula() -> None:
    """Outside training: no dropout and no noise."""
    experts = text_items("unisrec").adaptor.eval()
    assert isinstance(experts, WhiteningExperts)
    x = torch.randn(4, TEXT)
    shares = torch.softmax(x @ experts.gate, dim=1)
    expected = torch.zeros(4, WIDTH)
    for number in range(EXPERTS):
        matrix = experts.experts.weight[number * WIDTH : (number + 1) * WIDTH]
        expected += shares[:, number, None] * F.linear(x - experts.shift[number], matrix)
    assert_close(experts(x), expected)


def test_gates_are_noisy_and_texts_drop_out_in_training_alone() -> None:
    items = text_items("unisrec")
    rows = torch.arange(1, ITEMS + 1)
    assert not torch.equal(items(rows), items(rows))
    items.adaptor.dropout.rate = 0.0
    assert not torch.equal(items(rows), items(rows)), "the gates' noise"
    items.eval()
    assert torch.equal(items(rows), items(rows))


def test_the_noise_of_gates_has_the_published_deviation() -> None:
    """softplus(x N) + .01, found again in the spread of the gates' logits."""
    experts = text_items("unisrec").adaptor
    assert isinstance(experts, WhiteningExperts)
    seen: list[torch.Tensor] = []
    x = torch.randn(1, TEXT).expand(4000, -1)
    softmax = torch.Tensor.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", lambda logits, dim: seen.append(logits.detach()) or softmax(logits, dim))
        experts(x)
    expected = F.softplus(x[0] @ experts.gate_noise) + 0.01
    assert_close(seen[0].std(dim=0), expected, rtol=0.06, atol=0)
    assert_close(seen[0].mean(dim=0), x[0] @ experts.gate, rtol=0, atol=0.2)


@pytest.mark.parametrize("adaptor", ["morec", "unisrec"])
def test_items_without_text_share_a_learned_vector(adaptor: TextAdaptor) -> None:
    items = text_items(adaptor).eval()
    assert torch.equal(items(torch.tensor(5)), items.without_text)
    assert (items(torch.tensor(4)) != items.without_text).any()


@pytest.mark.parametrize("adaptor", ["morec", "unisrec"])
def test_an_item_without_text_does_not_take_the_gradient_of_cosines(adaptor: TextAdaptor) -> None:
    """Fresh weights map no text to zero, where a direction has no bounded gradient."""
    torch.manual_seed(0)
    items = TextItems(ITEMS, TEXT, WIDTH, adaptor)
    items.features.copy_(torch.randn(ITEMS + 1, TEXT))
    sizes = []
    for missing in (False, True):
        items.features[5] *= 0 if missing else 1
        items.zero_grad()
        (F.normalize(items.weight[1:], dim=1) * torch.arange(WIDTH)).sum().backward()
        sizes.append(sum(weight.grad.norm().item() for weight in items.adaptor.parameters() if weight.grad is not None))
    assert sizes[1] < 2 * sizes[0]


@pytest.mark.parametrize("adaptor", ["morec", "unisrec"])
def test_texts_are_frozen_and_kept_with_the_weights(adaptor: TextAdaptor) -> None:
    items = text_items(adaptor)
    assert "features" in items.state_dict()
    assert "features" not in dict(items.named_parameters())
    other = TextItems(ITEMS, TEXT, WIDTH, adaptor)
    other.load_state_dict(items.state_dict())
    assert torch.equal(other.eval().weight, items.eval().weight)
