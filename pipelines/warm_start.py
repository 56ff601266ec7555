"""`recsys train --init RUN`: the weights of a finished run, and rows for items that it did not know."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from safetensors.torch import load_file
from torch import Tensor

from models.registry import ModelConfig
from recsys.errors import DataError
from recsys.item_text import has_text, item_texts
from recsys.new_rows import rows_from_texts
from recsys.prepared import Prepared
from recsys.runs import WEIGHTS, Run, open_run
from recsys.sequences import IntArray
from recsys.text_vectors import default_store, named_encoder, text_vectors

OWN_ROWS_OF_TEXT = frozenset({"table", "initialised"})
"""Item vectors whose table has to know what a text means; in others the text speaks for itself."""


@dataclass(frozen=True)
class NewRows:
    """How many items got a row that no training had made."""

    items: int = 0
    from_texts: int = 0


def item_weights(model: ModelConfig) -> list[str]:
    """Names of the weights with a row an item: those whose shape changes with the catalogue's size."""
    with torch.device("meta"):
        shapes = [
            {name: weight.shape for name, weight in model.model_class(values).named_parameters()}
            for values in (model.values, replace(model.values, num_items=model.values.num_items + 1))
        ]
    return [name for name, shape in shapes[0].items() if shape != shapes[1][name]]


def check_catalogue(start: Run, model: ModelConfig, prepared: Prepared) -> None:
    """Refuses a run whose items are others than the first ones here, where weights have a row an item."""
    theirs, ours = start.prepared().catalog.item_ids, prepared.catalog.item_ids
    of_items = item_weights(model)
    if of_items and not ours.head(len(theirs)).equals(theirs):
        raise DataError(
            f"train --init {start.folder}: weight {of_items[0]} has a row an item, and the items of "
            f"{start.prepared().folder} are not the first ones of {prepared.folder}; prepare it with --extend "
            f"{start.prepared().folder}, or train from scratch."
        )


def start_from(net: torch.nn.Module, model: ModelConfig, run: Run, prepared: Prepared) -> NewRows:
    """Gives a fresh network the weights of a run, and says how many items are new in it.

    What is not learned (an item matrix, counts) is taken only where the data is the same. Weights over whitened texts
    mean nothing without their whitening, so that always comes along.
    """
    stored, own = load_file(run.folder / WEIGHTS), net.state_dict()
    learned = [name for name, _ in net.named_parameters()]
    same, of_items = run.config["data"] == prepared.fingerprint, item_weights(model)
    added = NewRows() if same or not of_items else add_rows(stored, own, of_items, model, run, prepared)
    for name in learned:
        if name not in stored or stored[name].shape != own[name].shape:
            theirs = tuple(stored[name].shape) if name in stored else "none"
            raise DataError(
                f"train --init {run.folder}: weight {name} is {tuple(own[name].shape)} here and {theirs} there; start "
                "from a run of the same model and sizes."
            )
    kept = [name for name in own if name in stored and stored[name].shape == own[name].shape]
    taken = [name for name in kept if same or name in learned or "whitening." in name]
    net.load_state_dict({name: stored[name] for name in taken}, strict=False)
    return added


def add_rows(
    stored: dict[str, Tensor],
    own: dict[str, Tensor],
    of_items: list[str],
    model: ModelConfig,
    run: Run,
    prepared: Prepared,
) -> NewRows:
    """Makes the stored weights of items as long as the catalogue; items without a training event there are new.

    But for those of a run that began with another itself: it had them learned, or guessed them as is done here.
    """
    before = run.prepared()
    old, rows = before.catalog.num_rows, prepared.catalog.num_rows
    trained = torch.zeros(rows, dtype=torch.bool)
    trained[:old] = torch.from_numpy(before.training_events(run.fit_on).item_counts() > 0)
    new = ~trained
    new[0] = False
    if "init" in run.config:
        new[:old] = False
    if not new.any():
        return NewRows()
    texts = described(model, prepared)
    for name in of_items:
        if name not in stored or stored[name].shape[1:] != own[name].shape[1:]:
            continue  # of other sizes altogether: refused by the caller, with its name
        items, private = own[name][:rows].clone(), stored[name][old:]
        items[:old] = stored[name][:old]
        items[new] = items[trained].mean(dim=0)
        if texts is not None:
            fill_from_texts(items, texts, trained, new)
        stored[name] = torch.cat([items, private])
    return NewRows(int(new.sum()), 0 if texts is None else int((new & texts.any(dim=1)).sum()))


def fill_from_texts(table: Tensor, texts: Tensor, trained: Bool[Tensor, " V"], new: Bool[Tensor, " V"]) -> None:
    """Sets the new rows of items with a text."""
    has_words = texts.any(dim=1)
    known, wanted = (trained & has_words).nonzero().squeeze(1), (new & has_words).nonzero().squeeze(1)
    if len(known) and len(wanted):
        rows = table[known].reshape(len(known), -1)
        found = rows_from_texts(texts[known], rows, texts[wanted])
        table[wanted] = found.reshape(len(wanted), *table.shape[1:])


def counts_learned_by(run: Run) -> IntArray:
    """Training events of each item row of a run, [V]; of one that is another run as it was, that one's."""
    begun = run.config.get("init")
    if begun is not None and run.config["training"]["epochs"] == 0:
        before = counts_learned_by(open_run(Path(begun)))
        return np.pad(before, (0, run.prepared().catalog.num_rows - len(before)))
    return run.prepared().training_events(run.fit_on).item_counts()


def described(model: ModelConfig, prepared: Prepared) -> Tensor | None:
    """Text vectors [V, F] of all items, where there are texts and rows that have to be guessed from them."""
    values: Any = model.values
    if getattr(values, "items", "table") not in OWN_ROWS_OF_TEXT or not has_text(prepared.items):
        return None
    encoder = named_encoder(
        getattr(values, "text_encoder", None),
        getattr(values, "text_revision", None),
        getattr(values, "text_pooling", "mean"),
    )
    return torch.from_numpy(text_vectors(["", *item_texts(prepared.items)], encoder, default_store()))
