"""Transformer blocks of the sequence models, one implementation for every layout.

    norm="post"  x = LN(x + f(x))                     as published (Vaswani et al., 2017; BERT)
    norm="pre"   x = x + f(LN(x)), LN after the last  trains deeper and at higher rates
    norm="both"  y = LN(x), x = y + f(y), LN at last  near to SASRec's release, where keys and values read x
    gated        x = x + sigmoid(W x) * f(LN(x))      LiGR (Borisyuk et al., 2025); with "both", y in place of x
    swiglu       f(x) = W2 (silu(W1 x) * W3 x)        Shazeer, 2020

Attention is causal or has a key mask; its dropout is left out (a third of a CPU step for no gain).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.attention import attention, attention_of_chains, attention_of_last
from recsys.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swiglu": F.silu}
SMALLEST = {
    "max_len": 1,
    "embedding_dim": 1,
    "num_blocks": 0,
    "num_heads": 1,
    "ffn_dim": 1,
    "recency": 0,
    "time_buckets": 0,
}
Norm = Literal["pre", "post", "both"]
Count: TypeAlias = Any
"""A number of events: an int, or in a graph that is exported a `torch.SymInt`, which torch's stubs do not know."""
SINK_START = 2.0
"""First logit of attending to nothing: as much as seven events that a head is indifferent to."""
ROTARY_BASE = 100.0
"""Slowest turn in events: histories are shorter than texts (10,000)."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Architecture; `num_items` comes from the catalogue.

    `positions` are learned vectors, rotations of queries and keys, or none. `recency` above 0 adds a penalty on
    attention by distance (its steepest slope). With `sink` each head may look at nothing, by a learned logit: short
    histories then add little to their last event. `time_buckets` above 0 adds to each event the logarithm of the
    time since the one before it, in so many buckets. Scores are inner products divided by `temperature`.
    """

    num_items: int
    max_len: int = 200
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    dropout: float = 0.2
    norm: Norm = "pre"
    gated: bool = False
    activation: Literal["relu", "gelu", "swiglu"] = "gelu"
    positions: Literal["learned", "rotary", "none"] = "learned"
    recency: float = 0.0
    sink: bool = False
    time_buckets: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name, smallest in SMALLEST.items():
            if not getattr(self, name) >= smallest:
                raise ConfigError(f"{where}: {name}={getattr(self, name)} must be at least {smallest}.")
        if not self.temperature > 0:
            raise ConfigError(f"{where}: temperature={self.temperature} must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{where}: dropout={self.dropout} must lie in [0, 1).")
        if self.embedding_dim % self.num_heads:
            raise ConfigError(
                f"{where}: embedding_dim={self.embedding_dim} cannot be split over num_heads={self.num_heads}; "
                "make the first a multiple of the second."
            )
        if self.positions == "rotary" and (self.embedding_dim // self.num_heads) % 2:
            raise ConfigError(
                f"{where}: positions=rotary turns pairs of numbers, and a head of embedding_dim={self.embedding_dim} / "
                f"num_heads={self.num_heads} has an odd width; make it even."
            )


@dataclass(frozen=True)
class KeyValues:
    """What attention remembers of the events so far."""

    keys: Float[Tensor, "B H T Dh"]
    values: Float[Tensor, "B H T Dh"]

    @property
    def length(self) -> Count:
        """T, the events remembered."""
        return self.keys.shape[2]

    def extended(self, other: "KeyValues") -> "KeyValues":
        """With the keys and values of later events appended."""
        return KeyValues(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))


@dataclass(frozen=True)
class Remembered:
    """Of histories of one common length: each block's keys and values, and the last event's time [B]."""

    memory: tuple[KeyValues, ...]
    timestamp: Int[Tensor, " B"]

    @property
    def length(self) -> Count:
        """Events of each history."""
        return self.memory[0].length


@dataclass(frozen=True)
class Chains:
    """P chains of reasoning a row: behind which event of the window each begins, and which events it sees."""

    places: Int[Tensor, "B P"]
    visible: Bool[Tensor, "B Q T"]


@dataclass(frozen=True)
class Thoughts:
    """What attention remembers of chains: K steps so far, each chain alone with its own."""

    keys: Float[Tensor, "B H P K Dh"]
    values: Float[Tensor, "B H P K Dh"]

    @classmethod
    def begun(cls, step: KeyValues) -> "Thoughts":
        """After the first step of every chain."""
        return cls(step.keys[:, :, :, None], step.values[:, :, :, None])

    def extended(self, step: KeyValues) -> "Thoughts":
        """With one further step of every chain."""
        other = Thoughts.begun(step)
        return Thoughts(torch.cat([self.keys, other.keys], dim=3), torch.cat([self.values, other.values], dim=3))


class Dropout(nn.Module):
    """Dropout whose random numbers are bytes on a CPU, an eighth of the draws of `torch.nn.Dropout`.

    There the rate is rounded to a 256th and the scale fits the rounded rate, so the expectation is exact in float32.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`x` with a share of its numbers zero and the others scaled up; in evaluation, `x`."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        dropped = min(255, max(1, round(self.rate * 256)))
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.recency = config.recency
        self.rotary = config.positions == "rotary"
        self.qkv = nn.Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.out = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.sink = nn.Parameter(torch.full((config.num_heads,), SINK_START)) if config.sink else None

    def project(
        self, x: Float[Tensor, "B L D"], places: Int[Tensor, "*B L"] | None = None
    ) -> tuple[Float[Tensor, "B H L Dh"], KeyValues]:
        """Queries, and keys with values, of events at `places` of their window; by default 0, 1, ..."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.rotary:
            places = torch.arange(x.shape[1], device=x.device) if places is None else places
            query, key = rotated(query, places), rotated(key, places)
        return query, KeyValues(key, value)

    def attend_last(
        self, query: Float[Tensor, "B H L Dh"], memory: KeyValues, lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B 1 D"]:
        """Mixes the values for each row's last event alone."""
        place = (lengths.long() - 1)[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3])
        mixed = attention_of_last(query.gather(2, place), memory.keys, memory.values, lengths, self.recency, self.sink)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def attend(
        self,
        query: Float[Tensor, "B H L Dh"],
        memory: KeyValues,
        key_mask: Bool[Tensor, "B 1 1 T"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """Mixes the values; `key_mask` is true where a key may be looked at."""
        mixed = attention(query, memory.keys, memory.values, key_mask, causal, self.recency, self.sink)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def attend_in_chains(
        self, query: Float[Tensor, "B H P Dh"], memory: KeyValues, own: Thoughts, chains: Chains
    ) -> Float[Tensor, "B P D"]:
        """Mixes the values of the events that each chain sees and of the chain's own steps."""
        keys, values = (memory.keys, own.keys), (memory.values, own.values)
        mixed = attention_of_chains(query, keys, values, chains.places, chains.visible, self.recency, self.sink)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotated(x: Float[Tensor, "B H L Dh"], places: Int[Tensor, "*B L"]) -> Float[Tensor, "B H L Dh"]:
    """Pairs of numbers turned by an angle that grows with the position (RoPE, Su et al., 2021)."""
    half = x.shape[-1] // 2
    speeds = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = places.to(torch.float32)[..., None, :, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class FeedForward(nn.Module):
    """Position by position: D to F to D."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(config.embedding_dim, config.ffn_dim) if config.activation == "swiglu" else None
        self.inner = nn.Linear(config.embedding_dim, config.ffn_dim)
        self.outer = nn.Linear(config.ffn_dim, config.embedding_dim)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The new states, without a residual."""
        if self.gate is None:
            return self.outer(self.activation(self.inner(x)))
        return self.outer(self.activation(self.gate(x)) * self.inner(x))


class Residual(nn.Module):
    """What surrounds attention and feed-forward: norm, gate, dropout and the sum."""

    def __init__(self, config: TransformerConfig, norm_eps: float) -> None:
        super().__init__()
        self.layout = config.norm
        self.norm = nn.LayerNorm(config.embedding_dim, eps=norm_eps)
        self.gate = nn.Linear(config.embedding_dim, config.embedding_dim) if config.gated else None
        self.dropout = Dropout(config.dropout)

    def before(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """What the branch reads."""
        return x if self.layout == "post" else self.norm(x)

    def after(
        self, x: Float[Tensor, "B L D"], read: Float[Tensor, "B L D"], branch: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B L D"]:
        """The sum, of `x` or of what the branch `read` of it, with the branch's result."""
        start = read if self.layout == "both" else x
        added = self.dropout(branch)
        total = start + (added if self.gate is None else torch.sigmoid(self.gate(start)) * added)
        return self.norm(total) if self.layout == "post" else total


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: TransformerConfig, norm_eps: float) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_residual = Residual(config, norm_eps)
        self.ffn = FeedForward(config)
        self.ffn_residual = Residual(config, norm_eps)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        past: KeyValues | None = None,
        key_mask: Bool[Tensor, "B 1 1 T"] | None = None,
        causal: bool = False,
    ) -> tuple[Float[Tensor, "B L D"], KeyValues]:
        """New states, and what later events need of these and the `past` ones."""
        read = self.attention_residual.before(x)
        first = 0 if past is None else past.length
        query, memory = self.attention.project(read, torch.arange(first, first + x.shape[1], device=x.device))
        memory = memory if past is None else past.extended(memory)
        x = self.attention_residual.after(x, read, self.attention.attend(query, memory, key_mask, causal))
        return self._feed_forward(x), memory

    def _feed_forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        read = self.ffn_residual.before(x)
        return self.ffn_residual.after(x, read, self.ffn(read))

    def last(self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 D"], KeyValues]:
        """The state of each row's last event; for the others nothing after keys and values is computed."""
        read = self.attention_residual.before(x)
        query, memory = self.attention.project(read)
        mixed = self.attention.attend_last(query, memory, lengths)
        x = self.attention_residual.after(last_valid(x, lengths), last_valid(read, lengths), mixed)
        return self._feed_forward(x), memory

    def think(
        self, x: Float[Tensor, "B P D"], memory: KeyValues, chains: Chains, past: Thoughts | None
    ) -> tuple[Float[Tensor, "B P D"], Thoughts]:
        """One step of each chain: its new state, and what its later steps need."""
        read = self.attention_residual.before(x)
        step = 1 if past is None else past.keys.shape[3] + 1
        query, new = self.attention.project(read, chains.places + step)
        own = Thoughts.begun(new) if past is None else past.extended(new)
        x = self.attention_residual.after(x, read, self.attention.attend_in_chains(query, memory, own, chains))
        return self._feed_forward(x), own


class BlockStack(nn.Module):
    """Blocks one after the other, and the norm after the last where blocks begin with theirs."""

    def __init__(self, config: TransformerConfig, norm_eps: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, norm_eps) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.embedding_dim, eps=norm_eps) if config.norm != "post" else nn.Identity()

    def __iter__(self) -> Iterator[Block]:
        return (cast("Block", block) for block in self.blocks)

    def forward(
        self, x: Float[Tensor, "B L D"], key_mask: Bool[Tensor, "B 1 1 L"] | None = None, causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """States of the whole window."""
        for block in self:
            x, _ = block(x, key_mask=key_mask, causal=causal)
        return self.norm(x)

    def last(
        self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], causal: bool = False
    ) -> tuple[Float[Tensor, "B D"], tuple[KeyValues, ...]]:
        """The state of each row's last event, and each block's memory; the last block computes no other state."""
        key_mask = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None, :]
        blocks, memory = list(self), []
        for block in blocks[:-1]:
            x, cached = block(x, key_mask=None if causal else key_mask, causal=causal)
            memory.append(cached)
        if not blocks:
            return self.norm(last_valid(x, lengths)).squeeze(1), ()
        final, cached = blocks[-1].last(x, lengths)
        return self.norm(final).squeeze(1), (*memory, cached)

    def prefill(
        self, x: Float[Tensor, "B L D"], key_mask: Bool[Tensor, "B 1 1 L"] | None = None, causal: bool = False
    ) -> tuple[Float[Tensor, "B L D"], tuple[KeyValues, ...]]:
        """States of the whole window, and each block's memory of it."""
        memory = []
        for block in self:
            x, cached = block(x, key_mask=key_mask, causal=causal)
            memory.append(cached)
        return self.norm(x), tuple(memory)

    def think(
        self,
        x: Float[Tensor, "B P D"],
        memory: tuple[KeyValues, ...],
        chains: Chains,
        past: tuple[Thoughts, ...] | None,
    ) -> tuple[Float[Tensor, "B P D"], tuple[Thoughts, ...]]:
        """One step of every chain; the memory of the events stays as it is."""
        longer = []
        for number, (block, remembered) in enumerate(zip(self, memory, strict=True)):
            x, own = block.think(x, remembered, chains, None if past is None else past[number])
            longer.append(own)
        return self.norm(x), tuple(longer)

    def step(
        self, x: Float[Tensor, "B 1 D"], memory: tuple[KeyValues, ...]
    ) -> tuple[Float[Tensor, "B 1 D"], tuple[KeyValues, ...]]:
        """Causal state of one further event, and the longer memory."""
        longer = []
        for block, past in zip(self, memory, strict=True):
            x, cached = block(x, past)
            longer.append(cached)
        return self.norm(x), tuple(longer)


def last_valid(states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B 1 D"]:
    """The state of each row's last event."""
    return states.gather(1, (lengths.long() - 1)[:, None, None].expand(-1, 1, states.shape[2]))


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights (cut at two deviations), zero biases: `model.apply(init_weights)`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
