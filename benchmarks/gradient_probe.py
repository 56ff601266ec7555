"""Do attention and representation pull one table in different directions? DARE's probe of TWIN.

TWIN is DARE whose two sets of tables are equal: with both kept apart, and each moved by the sum of the two gradients,
it is exactly TWIN, and the gradient of attention can be told from that of the representation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.dare import DARE, DAREConfig
from recsys.batches import TrainBatch, TrainingWindows
from recsys.prepared import Prepared
from recsys.sequences import IntArray

FIELDS = ("items", "categories", "positions", "ages")


@dataclass(frozen=True)
class Conflict:
    """Of one table and one batch: cosine of the two gradients, their lengths, and rows whose cosine is below 0."""

    cosine: float
    attention: float
    representation: float
    opposed: int
    rows: int


def apart(model: DARE) -> DARE:
    """A TWIN as DARE with two equal sets of tables."""
    config: DAREConfig = replace(model.config, method="dare")
    weights = model.state_dict()
    for name in [name for name in weights if name.startswith("tables.representation.")]:
        weights[name.replace("representation", "attention")] = weights[name].clone()
    split = DARE(config)
    split.load_state_dict(weights)
    return split


def pairs(model: DARE) -> dict[str, tuple[Tensor, Tensor]]:
    """Attention's and representation's table of each field."""
    own = dict(model.named_parameters())
    names = {field: [f"tables.{role}.{field}.weight" for role in ("attention", "representation")] for field in FIELDS}
    return {field: (own[one], own[two]) for field, (one, two) in names.items() if one in own}


def conflicts(model: DARE, batch: TrainBatch) -> dict[str, Conflict]:
    """After a backward pass, whose gradients stay for who wants to take a step."""
    model.zero_grad()
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    return {field: conflict(one.grad, two.grad) for field, (one, two) in pairs(model).items()}  # type: ignore[arg-type]


def conflict(attention: Tensor, representation: Tensor) -> Conflict:
    """Of two gradients of a table; rows that only one of them moves are not opposed."""
    products = (attention * representation).sum(dim=1)
    both = attention.any(dim=1) & representation.any(dim=1)
    lengths = attention.norm().item(), representation.norm().item()
    cosine = products.sum().item() / max(lengths[0] * lengths[1], torch.finfo(torch.float32).tiny)
    return Conflict(cosine, *lengths, int((products[both] < 0).sum()), int(both.sum()))


def batches(model: DARE, prepared: Prepared, batch_size: int, seed: int) -> Iterator[TrainBatch]:
    """Training batches without end."""
    rng = np.random.default_rng(seed)
    model.learn_popularity(prepared.training_events().item_counts())
    windows = TrainingWindows.cut(prepared.split.train_stop, model.window)
    while True:
        for chosen in windows.epoch(batch_size, rng):
            yield model.training_batch(windows.load(prepared.store, chosen), rng)


def probe(model: DARE, prepared: Prepared, batch_size: int, number: int, seed: int = 0) -> list[dict[str, Conflict]]:
    """Of a trained DARE or TWIN, which is left as it is."""
    split = apart(model) if model.config.method == "twin" else model
    stream = batches(split, prepared, batch_size, seed)
    return [conflicts(split, next(stream)) for _ in range(number)]


def probe_training(
    config: DAREConfig,
    categories: IntArray,
    prepared: Prepared,
    batch_size: int,
    steps: int,
    rate: float,
    seed: int = 0,
) -> list[dict[str, Conflict]]:
    """Of every step of a TWIN that is trained from nothing."""
    torch.manual_seed(seed)
    twin = DARE(replace(config, method="twin"))
    twin.learn_categories(torch.from_numpy(categories))
    split = apart(twin)
    optimizer = torch.optim.Adam(split.parameters(), lr=rate)
    stream, found = batches(split, prepared, batch_size, seed), []
    for _ in range(steps):
        found.append(conflicts(split, next(stream)))
        share_gradients(split)
        optimizer.step()
    return found


def share_gradients(model: DARE) -> None:
    """Each of the two tables gets the sum, so that equal tables stay equal."""
    for one, two in pairs(model).values():
        total = one.grad + two.grad  # type: ignore[operator]
        one.grad, two.grad = total, total.clone()


def figures(found: list[dict[str, Conflict]]) -> dict[str, dict[str, float]]:
    """By field: share of batches and of rows that are opposed, mean cosine, median of representation over attention."""
    summaries = {}
    for field in found[0]:
        of_field = [batch[field] for batch in found]
        cosines = np.array([each.cosine for each in of_field])
        lengths = [(each.representation, each.attention) for each in of_field if each.attention]
        summaries[field] = {
            "batches": len(of_field),
            "opposed_batches": float((cosines < 0).mean()),
            "opposed_rows": sum(each.opposed for each in of_field) / max(1, sum(each.rows for each in of_field)),
            "cosine": float(cosines.mean()),
            "length_ratio": float(np.median([one / two for one, two in lengths])) if lengths else float("nan"),
        }
    return summaries
