"""A trained retriever becomes the files of a bundle (see `recsys.bundle`); needs torch, unlike reading them."""

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor, nn

from recsys.batches import Histories
from recsys.bundle import ModelCard
from recsys.catalog import Catalog
from recsys.contracts import Reasoner, TrainableRetriever
from recsys.errors import BundleError
from recsys.index import FloatArray, ItemIndex

ENCODER_TOLERANCE = 1e-5


class _Encoder(nn.Module):
    """`encode` with plain tensors, as ONNX wants it; models that read no times get none.

    Of a `Reasoner` also its answers after fewer steps, as a second output.
    """

    model: TrainableRetriever

    def __init__(self, model: TrainableRetriever) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> tuple[Tensor, ...]:
        """Vectors of the histories [B, D], and of a `Reasoner` its answers [S, B, D]."""
        batch = Histories(items, torch.zeros_like(items), lengths)
        if not isinstance(self.model, Reasoner):
            return (self.model.encode(batch),)
        answers = self.model.answers(batch)
        return answers[-1], answers


def write_bundle_files(
    folder: Path,
    model: TrainableRetriever,
    card: ModelCard,
    catalog: Catalog,
    items: pl.DataFrame,
    no_history: FloatArray,
    metrics: dict[str, Any],
) -> None:
    """Writes every file of `recsys.bundle.BUNDLE_FILES` into an existing folder."""
    model.cpu().eval()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    export_encoder(model, card.max_len, folder / "encoder.onnx")
    with torch.no_grad():
        ItemIndex.build(model.item_vectors().numpy()).save(folder / "index.faiss")
    catalog.save(folder / "catalog.parquet")
    items.write_parquet(folder / "items.parquet")
    np.save(folder / "no_history.npy", no_history.astype(np.float32))
    (folder / "model.json").write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def export_encoder(model: TrainableRetriever, max_len: int, path: Path) -> None:
    """Writes the ONNX graph of `encode` for any batch size and any length up to `max_len`."""
    length = min(max_len, 7)
    example = (torch.ones((2, length), dtype=torch.int64), torch.tensor([length, 1], dtype=torch.int32))
    batch = torch.export.Dim("batch", min=1, max=65_536)
    events = torch.export.Dim("events", min=1, max=max_len) if max_len > 1 else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        torch.onnx.export(
            _Encoder(model),
            example,
            path,
            input_names=["items", "lengths"],
            output_names=["vectors", "answers"] if isinstance(model, Reasoner) else ["vectors"],
            dynamic_shapes=({0: batch, 1: events} if events else {0: batch}, {0: batch}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def check_encoder(model: TrainableRetriever, path: Path, batch: Histories) -> float:
    """Largest difference between torch and the ONNX graph on `batch`; a `BundleError` beyond the tolerance."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {"items": batch.items.numpy(), "lengths": batch.lengths.numpy()}
    vectors, *answers = session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})
    with torch.no_grad():
        difference = float(np.abs(model.encode(batch).numpy() - vectors).max())
        if isinstance(model, Reasoner):
            difference = max(difference, float(np.abs(model.answers(batch).numpy() - answers[0]).max()))
    if not difference <= ENCODER_TOLERANCE:
        raise BundleError(
            f"{path}: the ONNX encoder differs from torch by {difference:.2g} on {len(batch.lengths)} histories "
            f"(allowed: {ENCODER_TOLERANCE:.0e}); this model cannot be exported with the installed onnx."
        )
    return difference
