"""Transformer blocks shared by the sequence models: post-LN as published, or pre-LN; causal or with a key mask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block: width D, H heads, hidden width of the feed-forward part."""

    embedding_dim: int
    num_heads: int
    ffn_dim: int
    dropout: float
    activation: Literal["relu", "gelu"]
    norm_first: bool
    norm_eps: float


@dataclass(frozen=True)
class KeyValues:
    """What attention remembers of the events so far."""

    keys: Float[Tensor, "B H T Dh"]
    values: Float[Tensor, "B H T Dh"]

    def extended(self, other: "KeyValues") -> "KeyValues":
        """With the keys and values of later events appended."""
        return KeyValues(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention; no dropout on the weights (a third of a CPU step for no gain)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.out = nn.Linear(config.embedding_dim, config.embedding_dim)

    def project(self, x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B H L Dh"], KeyValues]:
        """Queries, and keys with values, of every event."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        return query, KeyValues(key, value)

    def attend(
        self,
        query: Float[Tensor, "B H L Dh"],
        memory: KeyValues,
        key_mask: Bool[Tensor, "B 1 1 T"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """Mixes the values; `key_mask` is true where a key may be looked at."""
        mixed = F.scaled_dot_product_attention(query, memory.keys, memory.values, attn_mask=key_mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward, each with residual, dropout and LayerNorm."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.ffn_in = nn.Linear(config.embedding_dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, config.embedding_dim)
        self.ffn_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B L D"], key_mask: Bool[Tensor, "B 1 1 L"] | None = None, causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """States of the whole window."""
        return self._with_memory(x, None, key_mask, causal)[0]

    def prefill(self, x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B L D"], KeyValues]:
        """Causal states of the whole window, and what later events need of it."""
        return self._with_memory(x, None, None, causal=True)

    def step(self, x: Float[Tensor, "B 1 D"], past: KeyValues) -> tuple[Float[Tensor, "B 1 D"], KeyValues]:
        """Causal state of one further event."""
        return self._with_memory(x, past, None, causal=False)

    def _with_memory(
        self,
        x: Float[Tensor, "B L D"],
        past: KeyValues | None,
        key_mask: Bool[Tensor, "B 1 1 T"] | None,
        causal: bool,
    ) -> tuple[Float[Tensor, "B L D"], KeyValues]:
        query, memory = self.attention.project(self.attention_norm(x) if self.norm_first else x)
        if past is not None:
            memory = past.extended(memory)
        x = x + self.dropout(self.attention.attend(query, memory, key_mask, causal))
        if not self.norm_first:
            x = self.attention_norm(x)
        x = x + self.dropout(self._feed_forward(self.ffn_norm(x) if self.norm_first else x))
        return (x if self.norm_first else self.ffn_norm(x)), memory

    def _feed_forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.ffn_out(self.activation(self.ffn_in(x)))


class BlockStack(nn.Module):
    """Blocks one after the other."""

    def __init__(self, config: BlockConfig, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_blocks))

    def __iter__(self) -> Iterator[Block]:
        return (cast("Block", block) for block in self.blocks)

    def forward(
        self, x: Float[Tensor, "B L D"], key_mask: Bool[Tensor, "B 1 1 L"] | None = None, causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """States of the whole window."""
        for block in self:
            x = block(x, key_mask, causal)
        return x

    def prefill(self, x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B L D"], tuple[KeyValues, ...]]:
        """Causal states of the whole window, and each block's memory of it."""
        memory = []
        for block in self:
            x, cached = block.prefill(x)
            memory.append(cached)
        return x, tuple(memory)

    def step(
        self, x: Float[Tensor, "B 1 D"], memory: tuple[KeyValues, ...]
    ) -> tuple[Float[Tensor, "B 1 D"], tuple[KeyValues, ...]]:
        """Causal state of one further event, and the longer memory."""
        longer = []
        for block, past in zip(self, memory, strict=True):
            x, cached = block.step(x, past)
            longer.append(cached)
        return x, tuple(longer)


def last_valid(states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """The state of each row's last event."""
    last = (lengths.long() - 1)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, last).squeeze(1)


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights (cut at two deviations), zero biases: `model.apply(init_weights)`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
