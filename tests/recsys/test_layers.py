"""Transformer blocks against plain formulas in float64; whole networks are compared in tests/parity."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recsys.layers import (
    ROTARY_BASE,
    Block,
    BlockStack,
    Dropout,
    FeedForward,
    KeyValues,
    SelfAttention,
    TransformerConfig,
    init_weights,
    last_valid,
    rotated,
)

NORM_EPS = 1e-8
BATCH, LENGTH, WIDTH = 3, 5, 12
LAYOUTS: dict[str, dict[str, Any]] = {
    "pre": {"norm": "pre", "activation": "relu"},
    "post": {"norm": "post", "activation": "gelu"},
    "both": {"norm": "both", "activation": "relu"},
    "gated both": {"norm": "both", "gated": True, "activation": "swiglu"},
    "gated pre": {"norm": "pre", "gated": True, "activation": "gelu"},
    "gated post": {"norm": "post", "gated": True, "activation": "relu"},
    "swiglu": {"activation": "swiglu"},
    "rotary": {"positions": "rotary"},
    "recency": {"positions": "none", "recency": 0.25},
    "sink": {"positions": "none", "recency": 0.25, "sink": True},
    "LiGR, rotary, recency": {"gated": True, "activation": "swiglu", "positions": "rotary", "recency": 0.7},
}


def config(**settings: Any) -> TransformerConfig:
    """Two heads of six numbers; the number of items plays no part."""
    small = {"num_items": 1, "embedding_dim": WIDTH, "num_heads": 2, "ffn_dim": 10, "dropout": 0.0}
    return TransformerConfig(**small | settings)


def scrambled(module: Any) -> Any:
    """All weights drawn anew, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


def events(length: int = LENGTH, seed: int = 1) -> Tensor:
    """Input [B, L, D]."""
    return torch.randn(BATCH, length, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looking_back() -> Tensor:
    """What each query may see, [B, L, L]."""
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, -1, -1)


def turned_by_hand(x: Tensor) -> Tensor:
    """Numbers i and i + 3 of six as one complex number, turned by position * base^(-i / 3); [B, L, 6]."""
    number = torch.complex(x[..., :3], x[..., 3:])
    speeds = torch.tensor([ROTARY_BASE ** (-place / 3) for place in range(3)], dtype=torch.float64)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speeds
    turned = number * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attention_by_hand(module: SelfAttention, x: Tensor, allowed: Tensor) -> Tensor:
    """softmax(QK^T / sqrt(Dh) - slope * distance) V, head by head and row by row; a sink counts in the sum alone.

    `allowed` is [B, L, L].
    """
    query, key, value = (x @ module.qkv.weight.T + module.qkv.bias).split(WIDTH, dim=-1)
    size = WIDTH // 2
    mixed = torch.zeros_like(x)
    for head in range(2):
        part = slice(head * size, (head + 1) * size)
        own, others = query[..., part], key[..., part]
        if module.rotary:
            own, others = turned_by_hand(own), turned_by_hand(others)
        slope = module.recency ** (head + 1)
        for row in range(BATCH):
            for place in range(LENGTH):
                seen = allowed[row, place].nonzero().flatten()
                logits = others[row, seen] @ own[row, place] / math.sqrt(size) - slope * (place - seen).abs().double()
                nothing = 0 if module.sink is None else module.sink[head].exp()
                share = logits.exp() / (logits.exp().sum() + nothing)
                mixed[row, place, part] = share @ value[row, seen][:, part]
    return mixed @ module.out.weight.T + module.out.bias


def feed_forward_by_hand(module: FeedForward, x: Tensor, activation: str) -> Tensor:
    """W2 act(W1 x), or W2 (silu(Wg x) * W1 x)."""
    inner = x @ module.inner.weight.T + module.inner.bias
    if activation == "relu":
        active = inner.clamp(min=0)
    elif activation == "gelu":
        active = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    else:
        gate = x @ module.gate.weight.T + module.gate.bias
        active = gate / (1 + torch.exp(-gate)) * inner
    return active @ module.outer.weight.T + module.outer.bias


def norm_by_hand(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + eps), scaled and shifted."""
    deviation = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + NORM_EPS).sqrt()
    return deviation * norm.weight + norm.bias


def block_by_hand(block: Block, settings: TransformerConfig, x: Tensor, allowed: Tensor) -> Tensor:
    """x + g * f(LN x), LN x + g * f(LN x), or LN(x + g * f(x)); g = sigmoid(W x), or of LN x."""
    for residual, branch in (
        (block.attention_residual, lambda y: attention_by_hand(block.attention, y, allowed)),
        (block.ffn_residual, lambda y: feed_forward_by_hand(block.ffn, y, settings.activation)),
    ):
        read = x if settings.norm == "post" else norm_by_hand(residual.norm, x)
        added = branch(read)
        if settings.gated:
            start = read if settings.norm == "both" else x
            added = added / (1 + torch.exp(-(start @ residual.gate.weight.T + residual.gate.bias)))
        x = (read if settings.norm == "both" else x) + added
        if settings.norm == "post":
            x = norm_by_hand(residual.norm, x)
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_is_its_formula_looking_back(layout: str) -> None:
    settings = config(**LAYOUTS[layout])
    block, x = scrambled(Block(settings, NORM_EPS)), events()
    expected = block_by_hand(block, settings, x, looking_back())
    assert expected.std() > 0.3
    assert_close(block(x, causal=True)[0], expected, rtol=1e-6, atol=1e-6)  # angles are float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_is_its_formula_with_a_key_mask(layout: str) -> None:
    settings = config(**LAYOUTS[layout])
    block, x = scrambled(Block(settings, NORM_EPS)), events()
    keys = torch.arange(LENGTH) < torch.tensor([5, 2, 3])[:, None]
    expected = block_by_hand(block, settings, x, keys[:, None, :].expand(-1, LENGTH, -1))
    assert_close(block(x, key_mask=keys[:, None, None, :])[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["pre", "post", "both"])
def test_a_stack_is_its_blocks_and_where_norms_come_first_one_more(norm: str) -> None:
    settings = config(norm=norm, num_blocks=3)
    stack, x = scrambled(BlockStack(settings, NORM_EPS)), events()
    expected = x
    for block in stack:
        expected = block_by_hand(block, settings, expected, looking_back())
    expected = norm_by_hand(stack.norm, expected) if norm != "post" else expected
    assert_close(stack(x, causal=True), expected, rtol=1e-9, atol=1e-9)


def test_a_gate_that_is_shut_leaves_the_state_alone() -> None:
    block, x = scrambled(Block(config(gated=True), NORM_EPS)), events()
    with torch.no_grad():
        for residual in (block.attention_residual, block.ffn_residual):
            residual.gate.weight.zero_()
            residual.gate.bias.fill_(-100)
    assert_close(block(x)[0], x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stack_steps_as_it_reads_the_whole_window(layout: str) -> None:
    stack, x = scrambled(BlockStack(config(**LAYOUTS[layout], num_blocks=3), NORM_EPS)), events()
    whole = stack(x, causal=True)
    states, memory = stack.prefill(x[:, :2], causal=True)
    assert_close(states, whole[:, :2])
    for place in range(2, LENGTH):
        state, memory = stack.step(x[:, place : place + 1], memory)
        assert_close(state, whole[:, place : place + 1])
    assert [part.keys.shape for part in memory] == [(BATCH, 2, LENGTH, 6)] * 3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_blocks", [0, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_state_alone_is_that_of_the_whole_window(layout: str, num_blocks: int, causal: bool) -> None:
    """Each row's own last event, whatever the padding after it holds."""
    stack = scrambled(BlockStack(config(**LAYOUTS[layout], num_blocks=num_blocks), NORM_EPS))
    lengths, x = torch.tensor([5, 1, 3], dtype=torch.int32), events()
    for row, length in enumerate(lengths.tolist()):
        expected = stack(x[row : row + 1, :length], causal=causal)[:, -1]
        state, memory = stack.last(x, lengths, causal=causal)
        assert_close(state[row : row + 1], expected)
        _, whole = stack.prefill(x[row : row + 1, :length], causal=causal)
        for part, other in zip(memory, whole, strict=True):
            assert_close(part.keys[row : row + 1, :, :length], other.keys)
            assert_close(part.values[row : row + 1, :, :length], other.values)


def test_recency_counts_from_the_newest_key_when_events_come_one_by_one() -> None:
    attention = scrambled(SelfAttention(config(positions="none", recency=0.25)))
    query, memory = attention.project(events())
    whole = attention.attend(query, memory, causal=True)
    past = KeyValues(memory.keys[:, :, :4], memory.values[:, :, :4])
    assert_close(attention.attend(query[:, :, 3:4], past), whole[:, 3:4])


def test_a_turn_is_a_complex_product() -> None:
    x = events(length=200)[:, :, :6]
    places = torch.arange(200)
    assert_close(rotated(x[:, None], places)[:, 0], turned_by_hand(x), rtol=1e-5, atol=1e-5)
    assert_close(rotated(x[:, None, 40:60], places[40:60])[:, 0], turned_by_hand(x)[:, 40:60], rtol=1e-5, atol=1e-5)
    by_row = rotated(x[:, None, [7, 9]], torch.tensor([[7, 9]] * len(x)))[:, 0]
    assert_close(by_row, turned_by_hand(x)[:, [7, 9]], rtol=1e-5, atol=1e-5)


def test_turned_scores_depend_on_distances_alone() -> None:
    """And so does the whole attention: a window's place changes nothing, the order in it does."""
    query, key = events(seed=2)[:, None, :, :6], events(seed=3)[:, None, :, :6]
    places = torch.arange(LENGTH)
    scores = rotated(query, places) @ rotated(key, places).transpose(2, 3)
    for moved in (places + 1, places + 17, places + 300):
        assert_close(rotated(query, moved) @ rotated(key, moved).transpose(2, 3), scores, rtol=1e-4, atol=1e-4)
    assert (rotated(query, places + 1) @ rotated(key, places).transpose(2, 3) - scores).abs().max() > 0.1
    attention, x = scrambled(SelfAttention(config(positions="rotary"))), events()
    mixed = [attention.attend(*attention.project(x, moved), causal=True) for moved in (places, places + 50)]
    assert_close(mixed[0], mixed[1], rtol=1e-4, atol=1e-4)
    swapped = x[:, [1, 0, 2, 3, 4]]
    assert (attention.attend(*attention.project(swapped))[:, 4] - attention.attend(*attention.project(x))[:, 4]).any()


def test_blocks_do_not_share_weights() -> None:
    first, second = BlockStack(config(num_blocks=2), NORM_EPS)
    assert not {id(weight) for weight in first.parameters()} & {id(weight) for weight in second.parameters()}


def test_only_a_gated_layout_has_gates() -> None:
    names = {name for name, _ in Block(config(), NORM_EPS).named_parameters()}
    gated = {name for name, _ in Block(config(gated=True, activation="swiglu"), NORM_EPS).named_parameters()}
    assert not any("gate" in name for name in names)
    assert {name.rpartition(".")[0] for name in gated - names} == {
        "attention_residual.gate",
        "ffn_residual.gate",
        "ffn.gate",
    }


def test_last_valid_takes_each_rows_last_event() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    last = last_valid(states, torch.tensor([4, 1], dtype=torch.int32))
    assert last.flatten(1).tolist() == [[9, 10, 11], [12, 13, 14]]


def test_weights_start_small_and_cut_and_biases_at_zero() -> None:
    module = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 64), nn.LayerNorm(64))
    module.apply(init_weights)
    for layer in module[:2]:
        assert layer.weight.std().item() == pytest.approx(0.0176, rel=0.03)  # 0.02 cut at two deviations: x 0.880
        assert layer.weight.abs().max() <= 0.04
    assert not module[1].bias.any()
    assert (module[2].weight == 1).all()


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    """The rate is rounded to a 256th, at least one and at most 255; what is kept grows to fit."""
    torch.manual_seed(0)
    count = 400_000
    dropped = min(255, max(1, round(256 * rate)))
    out = Dropout(rate)(torch.full((count,), 3.0))
    assert out.unique().tolist() == pytest.approx([0.0, 3 * 256 / (256 - dropped)])
    share = dropped / 256
    assert (out == 0).double().mean().item() == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / count))
    assert out.double().mean().item() == pytest.approx(3, abs=15 * math.sqrt(share / (1 - share) / count))


def test_dropout_takes_any_shape_and_neighbours_fall_alone() -> None:
    """Eight bytes come from one number; no two of them agree more often than chance."""
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(50_001, 7))[:50_000].reshape(-1, 8) > 0
    together = (kept.double().T @ kept.double()) / len(kept)
    off = together[~torch.eye(8, dtype=torch.bool)]
    assert off.tolist() == pytest.approx([0.25] * 56, abs=5 * math.sqrt(0.25 * 0.75 / len(kept)))


def test_dropout_follows_torchs_seed() -> None:
    module, x = Dropout(0.3), torch.ones(4, 9, 5)

    def dropped(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([module(x), module(x)])

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    first, second = dropped(1)
    assert not torch.equal(first, second)


def test_dropout_is_nothing_in_use_and_at_rate_zero() -> None:
    x = torch.ones(3, 4)
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_a_dropped_number_has_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(6, 50, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    assert 0 < int((out == 0).sum()) < out.numel()


def test_dropout_of_a_branch_and_not_of_the_state() -> None:
    """A branch that is dropped whole leaves x; half of what attention adds is gone, none of x."""
    torch.manual_seed(0)
    block, x = scrambled(Block(config(dropout=0.5), NORM_EPS)), events()
    with torch.no_grad():
        block.ffn.outer.weight.zero_()
        block.ffn.outer.bias.zero_()
    whole = block(x)[0] - x
    block.train()
    part = block(x)[0] - x
    dropped = part.abs() < 1e-12
    assert 0.3 < dropped.double().mean() < 0.7
    assert_close(part[~dropped], 2 * whole[~dropped])
