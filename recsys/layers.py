"""Transformer blocks shared by the sequence models: post-LN as published, or pre-LN; causal or with a key mask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
SMALLEST = {"embedding_dim": 1, "num_blocks": 0, "num_heads": 1, "ffn_dim": 1, "recency": 0}


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
    recency: float = 0.0
    """Steepest slope of the distance penalty on attention (ALiBi); 0 is none."""


def check_transformer(config: Any) -> None:
    """Refuses a model's config with settings (those of `SMALLEST`, `dropout`) that no transformer can have."""
    where = type(config).__name__
    for name, smallest in SMALLEST.items():
        if not getattr(config, name) >= smallest:
            raise ConfigError(f"{where}: {name}={getattr(config, name)} must be at least {smallest}.")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"{where}: dropout={config.dropout} must lie in [0, 1).")
    if config.embedding_dim % config.num_heads:
        raise ConfigError(
            f"{where}: embedding_dim={config.embedding_dim} cannot be split over num_heads={config.num_heads}; "
            "make the first a multiple of the second."
        )


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
        self.recency = config.recency
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
        mask: Tensor | None = key_mask
        if self.recency:
            mask = distance_penalty(query, memory.keys, self.recency)
            mask = mask if key_mask is None else mask.masked_fill(~key_mask, -torch.inf)
            mask = mask.masked_fill(future(query, memory.keys), -torch.inf) if causal else mask
        mixed = F.scaled_dot_product_attention(
            query, memory.keys, memory.values, attn_mask=mask, is_causal=causal and not self.recency
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


def distance_penalty(
    query: Float[Tensor, "B H L Dh"], keys: Float[Tensor, "B H T Dh"], steepest: float
) -> Float[Tensor, "1 H L T"]:
    """-slope * events between query and key, slope = steepest ** (1 + head) (ALiBi, Press et al., ICLR 2022).

    Published slopes start flatter (1/16 for two heads); histories reward recency more than text does.
    """
    heads = torch.arange(1, query.shape[1] + 1, device=query.device, dtype=query.dtype)
    slopes = torch.pow(torch.full_like(heads, steepest), heads)
    return -slopes[None, :, None, None] * offsets(query, keys).abs().to(query.dtype)


def future(query: Float[Tensor, "B H L Dh"], keys: Float[Tensor, "B H T Dh"]) -> Bool[Tensor, "L T"]:
    """True where the key comes after the query."""
    return offsets(query, keys) < 0


def offsets(query: Float[Tensor, "B H L Dh"], keys: Float[Tensor, "B H T Dh"]) -> Int[Tensor, "L T"]:
    """How many events each query comes after each key; the last query stands at the last key."""
    length, total = query.shape[2], keys.shape[2]
    places = torch.arange(total, device=query.device)
    return places[total - length :, None] - places


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
