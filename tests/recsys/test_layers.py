"""Transformer blocks against plain formulas; whole networks are compared in tests/parity."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recsys.layers import Block, BlockConfig, BlockStack, KeyValues, SelfAttention, init_weights, last_valid

CONFIG = BlockConfig(
    embedding_dim=6, num_heads=2, ffn_dim=10, dropout=0.0, activation="relu", norm_first=True, norm_eps=1e-8
)
BATCH, LENGTH, WIDTH = 3, 5, 6


def scrambled(module: nn.Module) -> nn.Module:
    """All weights drawn anew, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


def events() -> Tensor:
    """Input [B, L, D]."""
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attention_by_hand(module: SelfAttention, x: Tensor, allowed: Tensor) -> Tensor:
    """softmax(QK^T / sqrt(Dh)) V, head by head and row by row; `allowed` [B, L, L]."""
    query, key, value = (x @ module.qkv.weight.T + module.qkv.bias).split(WIDTH, dim=-1)
    size = WIDTH // CONFIG.num_heads
    mixed = torch.zeros_like(x)
    for row in range(BATCH):
        for head in range(CONFIG.num_heads):
            part = slice(head * size, (head + 1) * size)
            for place in range(LENGTH):
                others = allowed[row, place].nonzero().flatten()
                logits = key[row, others][:, part] @ query[row, place, part] / math.sqrt(size)
                mixed[row, place, part] = logits.softmax(0) @ value[row, others][:, part]
    return mixed @ module.out.weight.T + module.out.bias


def test_attention_is_its_formula_with_a_key_mask() -> None:
    module, x = scrambled(SelfAttention(CONFIG)), events()
    lengths = torch.tensor([5, 2, 3])
    keys = torch.arange(LENGTH) < lengths[:, None]
    query, memory = module.project(x)
    ours = module.attend(query, memory, key_mask=keys[:, None, None, :])
    assert_close(ours, attention_by_hand(module, x, keys[:, None, :].expand(-1, LENGTH, -1)))


def test_attention_is_its_formula_looking_back() -> None:
    module, x = scrambled(SelfAttention(CONFIG)), events()
    query, memory = module.project(x)
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, -1, -1)
    assert_close(module.attend(query, memory, causal=True), attention_by_hand(module, x, past))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_block_normalises_and_adds_in_the_order_it_says(norm_first: bool, activation: str) -> None:
    block = scrambled(Block(replace(CONFIG, norm_first=norm_first, activation=activation)))
    x, past = events(), torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, -1, -1)

    def attention(y: Tensor) -> Tensor:
        return attention_by_hand(block.attention, y, past)

    def feed_forward(y: Tensor) -> Tensor:
        hidden = block.ffn_in(y)
        active = hidden.clamp(min=0) if activation == "relu" else hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return block.ffn_out(active)

    if norm_first:
        expected = x + attention(block.attention_norm(x))
        expected = expected + feed_forward(block.ffn_norm(expected))
    else:
        expected = block.attention_norm(x + attention(x))
        expected = block.ffn_norm(expected + feed_forward(expected))
    assert_close(block(x, causal=True), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_stack_steps_as_it_reads_the_whole_window(norm_first: bool) -> None:
    stack, x = scrambled(BlockStack(replace(CONFIG, norm_first=norm_first), 3)), events()
    whole = stack(x, causal=True)
    states, memory = stack.prefill(x[:, :2])
    assert_close(states, whole[:, :2])
    for place in range(2, LENGTH):
        state, memory = stack.step(x[:, place : place + 1], memory)
        assert_close(state, whole[:, place : place + 1])
    assert [part.keys.shape for part in memory] == [(BATCH, CONFIG.num_heads, LENGTH, 3)] * 3


def test_blocks_do_not_share_weights() -> None:
    first, second = BlockStack(CONFIG, 2)
    assert not {id(weight) for weight in first.parameters()} & {id(weight) for weight in second.parameters()}


def test_last_valid_takes_each_rows_last_event() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    assert last_valid(states, torch.tensor([4, 1], dtype=torch.int32)).tolist() == [[9, 10, 11], [12, 13, 14]]


def test_weights_start_small_and_cut_and_biases_at_zero() -> None:
    module = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 64), nn.LayerNorm(64))
    module.apply(init_weights)
    for layer in module[:2]:
        assert layer.weight.std().item() == pytest.approx(0.0176, rel=0.03)  # 0.02 cut at two deviations: x 0.880
        assert layer.weight.abs().max() <= 0.04
    assert not module[1].bias.any()
    assert (module[2].weight == 1).all()


@pytest.mark.parametrize("causal", [True, False])
def test_recency_subtracts_slope_times_distance_before_the_softmax(causal: bool) -> None:
    attention = scrambled(SelfAttention(replace(CONFIG, recency=0.25)))
    assert isinstance(attention, SelfAttention)
    query, memory = attention.project(events())
    mixed = torch.zeros(BATCH, 2, LENGTH, 3, dtype=torch.float64)
    for head, slope in enumerate((0.25, 0.0625)):
        for last in range(LENGTH):
            seen = range(last + 1) if causal else range(LENGTH)
            logits = torch.stack(
                [
                    (query[:, head, last] * memory.keys[:, head, place]).sum(-1) / math.sqrt(3)
                    - slope * abs(last - place)
                    for place in seen
                ],
                dim=-1,
            )
            mixed[:, head, last] = (logits.softmax(-1)[..., None] * memory.values[:, head, : len(seen)]).sum(1)
    expected = attention.out(mixed.transpose(1, 2).flatten(2))
    assert_close(attention.attend(query, memory, causal=causal), expected)


def test_recency_counts_from_the_newest_key_when_events_come_one_by_one() -> None:
    attention = scrambled(SelfAttention(replace(CONFIG, recency=0.25)))
    assert isinstance(attention, SelfAttention)
    query, memory = attention.project(events())
    whole = attention.attend(query, memory, causal=True)
    past = KeyValues(memory.keys[:, :, :4], memory.values[:, :, :4])
    assert_close(attention.attend(query[:, :, 3:4], past), whole[:, 3:4])
