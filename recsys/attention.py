"""Scaled dot-product attention with a bias by distance and a key mask: torch's kernels, and our own for CPU training.

torch's fused CPU kernel spends most of its time in the backward pass (at 200 events and two heads of 32 it takes
three times as long as ours in bfloat16, docs/speed.md). Ours works in chunks that a processor's cache holds, in base 2,
and skips blocks of keys that lie in the future.
Dimensions: B batch, H heads, L queries, T keys, Dh width of a head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SCORES = 1 << 19
QUERY_BLOCK = 128
LOG2_E = math.log2(math.e)


def attention(
    query: Float[Tensor, "B H L Dh"],
    keys: Float[Tensor, "B H T Dh"],
    values: Float[Tensor, "B H T Dh"],
    key_mask: Bool[Tensor, "B 1 q T"] | None = None,
    causal: bool = False,
    recency: float = 0.0,
    sink: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H L Dh"]:
    """Each query's mix of values.

    `key_mask` is true where a key may be looked at, by all queries alike (q = 1) or not (q = L).
    `recency`: see `distance_penalty`. `sink` is the logit of looking at nothing: softmax over T + 1 places, the last of
    which has the value zero.
    """
    penalty = distance_penalty(query, keys, recency) if recency else None
    own = query.dtype == torch.bfloat16 or sink is not None  # torch's has no fused form whose bias gets a gradient
    if query.device.type == "cpu" and query.requires_grad and own:
        mask = None if key_mask is None else torch.where(key_mask, 0.0, -torch.inf).to(query.dtype)
        mixed: Tensor = _ChunkedAttention.apply(query, keys, values, penalty, mask, sink, causal)  # type: ignore[no-untyped-call]
        return mixed
    if penalty is None and sink is None and (key_mask is None or not causal):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=key_mask, is_causal=causal)
    bias = query.new_zeros(1, query.shape[1], query.shape[2], keys.shape[2]) if penalty is None else penalty
    bias = bias if key_mask is None else torch.where(key_mask, bias, -torch.inf)
    bias = torch.where(offsets(query, keys) < 0, -torch.inf, bias) if causal else bias
    return _attention_with_bias(query, keys, values, bias, sink)


def attention_of_last(
    query: Float[Tensor, "B H 1 Dh"],
    keys: Float[Tensor, "B H T Dh"],
    values: Float[Tensor, "B H T Dh"],
    lengths: Int[Tensor, " B"],
    recency: float = 0.0,
    sink: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H 1 Dh"]:
    """The mix of each row's last event alone, over the row's `lengths` first keys."""
    behind = (lengths[:, None] - 1 - torch.arange(keys.shape[2], device=keys.device))[:, None, None]
    bias = -slopes(query, recency)[None, :, None, None] * behind.to(query.dtype)
    return _attention_with_bias(query, keys, values, bias.masked_fill(behind < 0, -torch.inf), sink)


def attention_of_chains(
    query: Float[Tensor, "B H P Dh"],
    keys: tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B H P K Dh"]],
    values: tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B H P K Dh"]],
    places: Int[Tensor, "B P"],
    visible: Bool[Tensor, "B Q T"],
    recency: float = 0.0,
    sink: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H P Dh"]:
    """The mix of the K-th step of P chains a row: over the `visible` of T events, and over the chain's own K steps.

    Step k of a chain stands k behind its place, whatever events stand there: chains do not see each other.
    """
    (events, own), (event_values, own_values) = keys, values
    total, steps = events.shape[2], own.shape[3]
    places_of_events = torch.arange(total, device=query.device)
    distance = torch.cat(
        [
            (places[:, :, None] + steps - places_of_events).abs(),
            torch.arange(steps - 1, -1, -1, device=query.device).expand(*places.shape, -1),
        ],
        dim=2,
    )
    scores = torch.cat([query @ events.transpose(2, 3), (query[:, :, :, None] * own).sum(dim=4)], dim=3)
    scores = scores / math.sqrt(query.shape[3]) - slopes(query, recency)[:, None, None] * distance[:, None]
    hidden = F.pad(~visible, (0, steps))
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    if sink is not None:
        nothing = sink.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, nothing], dim=3)
    shares = scores.softmax(dim=3).to(event_values.dtype)
    of_own = shares[..., total : total + steps, None]
    return shares[..., :total] @ event_values + (of_own * own_values).sum(dim=3)


def _attention_with_bias(
    query: Float[Tensor, "B H L Dh"],
    keys: Float[Tensor, "B H T Dh"],
    values: Float[Tensor, "B H T Dh"],
    bias: Float[Tensor, "b H L T"],
    sink: Float[Tensor, " H"] | None,
) -> Float[Tensor, "B H L Dh"]:
    """torch's kernel; the sink is one key more, of zeros."""
    if sink is not None:
        keys, values = F.pad(keys, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))
        nothing = sink.to(bias.dtype)[None, :, None, None].expand(*bias.shape[:3], 1)
        bias = torch.cat([bias, nothing], dim=3)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


def distance_penalty(
    query: Float[Tensor, "B H L Dh"], keys: Float[Tensor, "B H T Dh"], steepest: float
) -> Float[Tensor, "1 H L T"]:
    """-slope * events between query and key, slope = steepest ** (1 + head) (ALiBi, Press et al., ICLR 2022).

    Published slopes start flatter (1/16 for two heads); histories reward recency more than text does.
    """
    return -slopes(query, steepest)[None, :, None, None] * offsets(query, keys).abs().to(query.dtype)


def slopes(query: Float[Tensor, "B H L Dh"], steepest: float) -> Float[Tensor, " H"]:
    """Penalty per event of distance, head by head."""
    heads = torch.arange(1, query.shape[1] + 1, device=query.device, dtype=query.dtype)
    return torch.pow(torch.full_like(heads, steepest), heads)


def offsets(query: Float[Tensor, "B H L Dh"], keys: Float[Tensor, "B H T Dh"]) -> Int[Tensor, "L T"]:
    """How many events each query comes after each key; the last query stands at the last key."""
    length, total = query.shape[2], keys.shape[2]
    places = torch.arange(total, device=query.device)
    return places[total - length :, None] - places


@dataclass(frozen=True)
class _Scores:
    """Attention scores in base 2, made chunk by chunk: some batch rows, some queries, the keys that these may see."""

    query: Float[Tensor, "B H L Dh"]
    keys: Float[Tensor, "B H T Dh"]
    penalty: Float[Tensor, "1 H L T"] | None
    mask: Float[Tensor, "B 1 q T"] | None
    causal: bool

    def chunks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of batch rows, queries and keys; causal ones leave the future out."""
        batch, heads, length, _ = self.query.shape
        total = self.keys.shape[2]
        for first in range(0, length, QUERY_BLOCK):
            queries = slice(first, min(first + QUERY_BLOCK, length))
            seen = slice(0, total - length + queries.stop if self.causal else total)
            step = max(1, CHUNK_SCORES // (heads * (queries.stop - first) * seen.stop))
            for row in range(0, batch, step):
                yield slice(row, row + step), queries, seen

    def of(self, rows: slice, queries: slice, seen: slice) -> Float[Tensor, "b H l t"]:
        """One chunk: log2(e) * (q . k / sqrt(Dh) + bias), in at least float32."""
        scale = LOG2_E / math.sqrt(self.query.shape[3])
        scores = (self.query[rows, :, queries] * scale) @ self.keys[rows, :, seen].transpose(2, 3)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.penalty is not None:
            scores += self.penalty[:, :, queries, seen] * LOG2_E
        if self.mask is not None:
            scores += self.mask[rows, :, queries if self.mask.shape[2] > 1 else slice(None), seen]
        if self.causal:
            late = torch.full(scores.shape[2:], -torch.inf, dtype=scores.dtype)
            scores += late.triu(self.keys.shape[2] - self.query.shape[2] + queries.start + 1)
        return scores


class _ChunkedAttention(torch.autograd.Function):
    """Attention that keeps one number a query for its backward pass, as FlashAttention does (Dao et al., 2022)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "B H L Dh"],
        keys: Float[Tensor, "B H T Dh"],
        values: Float[Tensor, "B H T Dh"],
        penalty: Float[Tensor, "1 H L T"] | None,
        mask: Float[Tensor, "B 1 q T"] | None,
        sink: Float[Tensor, " H"] | None,
        causal: bool,
    ) -> Float[Tensor, "B H L Dh"]:
        scores = _Scores(query, keys, penalty, mask, causal)
        mixed = torch.empty(query.shape, dtype=query.dtype)
        log_sum = torch.empty((*query.shape[:3], 1), dtype=torch.promote_types(query.dtype, torch.float32))
        nothing = None if sink is None else (sink.to(log_sum.dtype) * LOG2_E)[None, :, None, None]
        for rows, queries, seen in scores.chunks():
            chunk = scores.of(rows, queries, seen)
            top = chunk.amax(dim=3, keepdim=True)
            top = top if nothing is None else top.maximum(nothing)
            mass = chunk.sub_(top).exp2_()
            whole = mass.sum(dim=3, keepdim=True)
            whole = whole if nothing is None else whole + (nothing - top).exp2()
            mixed[rows, :, queries] = (mass.to(values.dtype) @ values[rows, :, seen]) / whole
            log_sum[rows, :, queries] = top + whole.log2()
        ctx.save_for_backward(query, keys, values, penalty, mask, sink, mixed, log_sum)
        ctx.causal = causal
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "B H L Dh"]) -> tuple[Tensor | None, ...]:
        query, keys, values, penalty, mask, sink, mixed, log_sum = ctx.saved_tensors
        scores = _Scores(query, keys, penalty, mask, ctx.causal)
        scale = 1 / math.sqrt(query.shape[3])
        drift = (grad.to(log_sum.dtype) * mixed).sum(dim=3, keepdim=True)
        grad_query = torch.empty(query.shape, dtype=query.dtype)
        grad_keys, grad_values = torch.zeros(keys.shape, dtype=keys.dtype), torch.zeros(values.shape, dtype=keys.dtype)
        for rows, queries, seen in scores.chunks():
            part = grad[rows, :, queries]
            share = scores.of(rows, queries, seen).sub_(log_sum[rows, :, queries]).exp2_().to(query.dtype)
            grad_values[rows, :, seen] += share.transpose(2, 3) @ part
            slope = (part @ values[rows, :, seen].transpose(2, 3)).to(drift.dtype)
            slope = slope.sub_(drift[rows, :, queries]).mul_(share).to(query.dtype)
            grad_query[rows, :, queries] = (slope @ keys[rows, :, seen]).mul_(scale)
            grad_keys[rows, :, seen] += (slope.transpose(2, 3) @ query[rows, :, queries]).mul_(scale)
        grad_sink = None
        if sink is not None:
            share = (sink.to(log_sum.dtype)[None, :, None, None] * LOG2_E - log_sum).exp2_()
            grad_sink = -(share * drift).sum(dim=(0, 2, 3)).to(sink.dtype)
        return grad_query, grad_keys, grad_values, None, None, grad_sink, None
