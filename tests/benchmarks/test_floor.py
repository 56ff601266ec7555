"""The floor counts the products that our models' training steps make."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import CHUNK, BatchShape, Memory, ModelShape, Product, run, step_products
from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import TrainBatch

ITEMS, WIDTH, HEADS, INNER, BLOCKS = 37, 8, 2, 20, 3
WINDOWS, LENGTH = 5, 11


def multiplications(model: SASRec | BERT4Rec, target: torch.Tensor) -> int:
    """Floating-point operations of matrix products in one step, counted by torch."""
    batch = TrainBatch(
        history=torch.randint(1, ITEMS + 1, (WINDOWS, LENGTH)),
        timestamps=torch.zeros((WINDOWS, LENGTH), dtype=torch.int64),
        target=target,
        lengths=torch.full((WINDOWS,), LENGTH, dtype=torch.int32),
    )
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(batch).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_floor_counts_what_a_training_step_multiplies(bidirectional: bool) -> None:
    shape = {"num_items": ITEMS, "max_len": LENGTH, "embedding_dim": WIDTH, "num_heads": HEADS, "num_blocks": BLOCKS}
    target = torch.randint(1, ITEMS + 1, (WINDOWS, LENGTH))
    if bidirectional:
        model: SASRec | BERT4Rec = BERT4Rec(BERT4RecConfig(**shape, ffn_dim=INNER))
        target[:, 3:] = 0
    else:
        model = SASRec(SASRecConfig(**shape, ffn_dim=INNER))
    products = step_products(
        BatchShape(windows=WINDOWS, length=LENGTH, events=WINDOWS * LENGTH, targets=int((target != 0).sum())),
        ModelShape(
            width=WIDTH,
            heads=HEADS,
            inner=INNER,
            blocks=BLOCKS,
            items=ITEMS,
            vector=WIDTH + bidirectional,
            head=bidirectional,
        ),
    )
    assert sum(product.flops for product in products) == multiplications(model, target)


@pytest.mark.parametrize("product", [Product(1, 700_001, 3, 5), Product(301, 90, 2, 110)])
def test_parts_are_the_whole_and_fit_the_cache(product: Product) -> None:
    parts = list(product.chunks())
    assert len(parts) > 1
    assert sum(part.flops for part in parts) == product.flops
    assert max(part.copies * part.rows * part.columns for part in parts) <= CHUNK


@pytest.mark.parametrize("copies", [1, 4])
def test_both_gradients_are_products_of_the_right_operands(copies: int) -> None:
    product = Product(copies, rows=3, inner=5, columns=7)
    memory = Memory([product, Product(2, 11, 13, 17)], torch.float32)
    run([product], memory)
    left, right, result, grad_left, grad_right = memory.operands(product)
    assert_close(result, left @ right.mT)
    assert_close(grad_left, result @ right)
    assert_close(grad_right, result.mT @ left)
