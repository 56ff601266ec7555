"""The bare matrix products of an epoch, as a plain implementation of this model has them on these batches.

For a batch of B windows, L events long at most, N events in all (no padding) and M targets; D width, H heads, F inner
width, I items with vectors of E numbers (E = D + 1 where a bias is folded in):

    queries, keys, values   [N, D]         x [D, 3D]           in every block
    attention scores        BH x [L, D/H]  x [D/H, L]
    attention mix           BH x [L, L]    x [L, D/H]          whole squares, causal or not
    attention output        [N, D]         x [D, D]
    feed-forward            [N, D]         x [D, F]    and    [N, F] x [F, D]
    head of BERT4Rec        [M, D]         x [D, D]
    output layer            [M, E]         x [E, I]

Backward, each takes two more of the same size, one for either operand's gradient: 6 x rows x inner x columns
floating-point operations a product. Nothing else runs: no softmax, norm, dropout, gather, optimiser or copy.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Numbers of a result made at a time, so that it stays in a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What of a batch decides the size of its products: B, L, N and M."""

    windows: int
    length: int
    events: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """D, H, F, blocks, I, E, and whether a head stands before the output layer."""

    width: int
    heads: int
    inner: int
    blocks: int
    items: int
    vector: int
    head: bool


@dataclass(frozen=True)
class Product:
    """`copies` times [rows, inner] x [inner, columns]."""

    copies: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return 6 * self.copies * self.rows * self.inner * self.columns

    def chunks(self) -> Iterator["Product"]:
        """The same product in parts whose results hold at most `CHUNK` numbers: of copies, or of rows."""
        if self.copies > 1:
            step = max(1, CHUNK // (self.rows * self.columns))
            for first in range(0, self.copies, step):
                yield Product(min(step, self.copies - first), self.rows, self.inner, self.columns)
            return
        step = max(1, CHUNK // self.columns)
        for first in range(0, self.rows, step):
            yield Product(1, min(step, self.rows - first), self.inner, self.columns)


def step_products(batch: BatchShape, model: ModelShape) -> list[Product]:
    """The products of one training step, as listed above."""
    attention, per_head = batch.windows * model.heads, model.width // model.heads
    block = [
        Product(1, batch.events, model.width, 3 * model.width),
        Product(attention, batch.length, per_head, batch.length),
        Product(attention, batch.length, batch.length, per_head),
        Product(1, batch.events, model.width, model.width),
        Product(1, batch.events, model.width, model.inner),
        Product(1, batch.events, model.inner, model.width),
    ]
    head = [Product(1, batch.targets, model.width, model.width)] if model.head else []
    return block * model.blocks + head + [Product(1, batch.targets, model.vector, model.items)]


def epoch_seconds(batches: Iterable[BatchShape], model: ModelShape, dtype: torch.dtype) -> float:
    """Seconds that the products of these batches take, forward and backward."""
    steps = [step_products(batch, model) for batch in batches]
    parts = [[part for product in step for part in product.chunks()] for step in steps]
    memory = Memory([part for step in parts for part in step], dtype)
    run(parts[0], memory)  # warms up
    return sum(run(step, memory) for step in parts)


class Memory:
    """Operands and results of any of `products`, in buffers that are used again: no allocation is timed."""

    def __init__(self, products: Iterable[Product], dtype: torch.dtype) -> None:
        sizes = [
            (p.copies * p.rows * p.inner, p.copies * p.inner * p.columns, p.copies * p.rows * p.columns)
            for p in products
        ]
        left, right, result = (max(size) for size in zip(*sizes, strict=True))
        generator = torch.Generator().manual_seed(0)
        self.buffers = [torch.randn(size, generator=generator).to(dtype) for size in (left, right, result, left, right)]

    def operands(self, product: Product) -> list[Tensor]:
        """Left, right (transposed, as a layer keeps its weights), result, and the gradients of the first two."""
        left, right = (product.rows, product.inner), (product.columns, product.inner)
        shapes = (left, right, (product.rows, product.columns), left, right)
        copies = () if product.copies == 1 else (product.copies,)
        return [
            buffer[: product.copies * shape[0] * shape[1]].view(*copies, *shape)
            for buffer, shape in zip(self.buffers, shapes, strict=True)
        ]


def run(products: list[Product], memory: Memory) -> float:
    """Seconds of the products, each forward and twice backward."""
    ready = [memory.operands(product) for product in products]
    began = time.perf_counter()
    for left, right, result, grad_left, grad_right in ready:
        multiply = torch.mm if left.ndim == 2 else torch.bmm
        multiply(left, right.transpose(-1, -2), out=result)
        multiply(result, right, out=grad_left)
        multiply(result.transpose(-1, -2), left, out=grad_right)
    return time.perf_counter() - began
