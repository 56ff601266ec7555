"""A trained retriever becomes the files of a bundle (see `recsys.bundle`); needs torch, unlike reading them."""

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import onnxruntime
import polars as pl
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from recsys.batches import Histories
from recsys.bundle import ENCODER, FEATURES, ITEM_READER, SENTENCES, STEP, ModelCard, save_sentences
from recsys.catalog import Catalog
from recsys.contracts import Incremental, Reasoner, SentenceReader, Student, Tables, TrainableRetriever
from recsys.errors import BundleError
from recsys.index import FloatArray, ItemIndex
from recsys.language_models import merged
from recsys.layers import KeyValues, Remembered

ENCODER_TOLERANCE = 1e-5
CHECKED_STEPS = 16
MOST_ROWS = 2**24
BATCH = torch.export.Dim("batch", min=1, max=65_536)


class _Encoder(nn.Module):
    """`encode` with plain tensors, as ONNX wants it; models that read no times get none.

    Of a `Reasoner` also its answers after fewer steps; of an `Incremental` one its memory, all blocks' in one tensor.
    """

    model: TrainableRetriever

    def __init__(self, model: TrainableRetriever) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> tuple[Tensor, ...]:
        """Named by `outputs_of`."""
        batch = Histories(items, torch.zeros_like(items), lengths)
        if goes_on(self.model):
            answers, past = self.model.encode_and_remember(batch)
            return _outputs(self.model, answers, past.memory)
        if isinstance(self.model, Reasoner):
            return _outputs(self.model, self.model.answers(batch), ())
        return (self.model.encode(batch),)


class _Reader(nn.Module):
    """`encode` of a `SentenceReader`, whose item sentences are inputs: a service may bring items of its own."""

    model: SentenceReader

    def __init__(self, model: SentenceReader) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        tokens: Int[Tensor, "V W"],
        kinds: Int[Tensor, "V W"],
    ) -> Float[Tensor, "B D"]:
        """Vectors of the histories."""
        return self.model.encode(Histories(items, torch.zeros_like(items), lengths), Tables(tokens, kinds))


class _OverFeatures(nn.Module):
    """A graph of a `Student`, whose items' features are its last input: a service may bring items of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the graph gives."""
        outputs: tuple[Tensor, ...] = functional_call(self.inner, {"model.items.features": inputs[-1]}, inputs[:-1])
        return outputs


class _ItemReader(nn.Module):
    """Sentences of items to the student's features and vectors of them."""

    def __init__(self, teacher: SentenceReader, student: Student) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(
        self, tokens: Int[Tensor, "N W"], kinds: Int[Tensor, "N W"]
    ) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N D"]]:
        """Inputs of the encoder, and what histories are compared with."""
        features = self.teacher.read_items(Tables(tokens, kinds))
        return features, self.student.vectors_of(features)


class _Step(nn.Module):
    """`encode_next` with plain tensors; only the new event's keys and values come out."""

    model: Incremental

    def __init__(self, model: Incremental) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, item: Int[Tensor, " B"], keys: Float[Tensor, "N B H T Dh"], values: Float[Tensor, "N B H T Dh"]
    ) -> tuple[Tensor, ...]:
        """Named by `step_outputs_of`."""
        memory = tuple(KeyValues(*pair) for pair in zip(keys.unbind(0), values.unbind(0), strict=True))
        no_time = torch.zeros_like(item)
        answers, after = self.model.encode_next(Remembered(memory, no_time), item, no_time)
        new = tuple(KeyValues(block.keys[:, :, -1:], block.values[:, :, -1:]) for block in after.memory)
        return _outputs(self.model, answers, new)


def goes_on(model: TrainableRetriever) -> TypeGuard[Incremental]:
    """Whether a longer history can be encoded from what a shorter one left."""
    return isinstance(model, Incremental) and model.goes_on


def outputs_of(model: TrainableRetriever) -> list[str]:
    """Of a bundle's graphs: vectors [B, D]; answers [S, B, D] of a `Reasoner`; memory [N, B, H, T, Dh] of N blocks."""
    answers = ["answers"] if isinstance(model, Reasoner) else []
    return ["vectors", *answers, *(["keys", "values"] if goes_on(model) else [])]


def step_outputs_of(model: Incremental) -> list[str]:
    """The same of a step's graph; its memory is that of the new event."""
    return [{"keys": "new_keys", "values": "new_values"}.get(name, name) for name in outputs_of(model)]


def _outputs(
    model: TrainableRetriever, answers: Float[Tensor, "S B D"], memory: tuple[KeyValues, ...]
) -> tuple[Tensor, ...]:
    keys_values = (torch.stack([m.keys for m in memory]), torch.stack([m.values for m in memory])) if memory else ()
    return (answers[-1], *((answers,) if isinstance(model, Reasoner) else ()), *keys_values)


def tables_of(model: TrainableRetriever) -> dict[str, Tensor]:
    """Inputs of a model's graphs with a row an item, by name: what a service has to grow for new items."""
    if isinstance(model, SentenceReader):
        return {"tokens": model.tables.tokens, "kinds": model.tables.kinds}
    return {"features": model.features} if isinstance(model, Student) else {}


def write_bundle_files(
    folder: Path,
    model: TrainableRetriever,
    card: ModelCard,
    catalog: Catalog,
    items: pl.DataFrame,
    no_history: FloatArray,
    metrics: dict[str, Any],
    teacher: SentenceReader | None = None,
) -> None:
    """Writes every file of `recsys.bundle.BUNDLE_FILES` into an existing folder, and those that `model` has besides.

    `teacher`: what a `Student` learned from; it reads new items.
    """
    model.cpu().eval()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    export_encoder(model, card.max_len, folder / ENCODER)
    if goes_on(model) and card.max_len > 1:
        export_step(model, card.max_len, folder / STEP)
    if isinstance(model, SentenceReader):
        save_sentences(folder / SENTENCES, model.sentences())
    if isinstance(model, Student) and teacher is not None:
        np.save(folder / FEATURES, model.features.numpy())
        export_item_reader(teacher, model, folder / ITEM_READER)
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
    events = {1: torch.export.Dim("events", min=1, max=max_len)} if max_len > 1 else {}
    graph = _Reader(model) if isinstance(model, SentenceReader) else _Encoder(model)
    shapes = ({0: BATCH} | events, {0: BATCH})
    with merged(graph):
        _export(_with_features(model, graph), model, example, ["items", "lengths"], outputs_of(model), shapes, path)


def export_item_reader(teacher: SentenceReader, student: Student, path: Path) -> None:
    """Writes the ONNX graph that reads new items, any number at once."""
    graph = _ItemReader(teacher, student)
    rows = {0: torch.export.Dim("new", min=1, max=BATCH.max)}
    example = (teacher.tables.tokens[1:3], teacher.tables.kinds[1:3])
    write_graph(graph, example, ["tokens", "kinds"], ["features", "vectors"], (rows, rows), path)


def _with_features(model: TrainableRetriever, graph: nn.Module) -> nn.Module:
    return _OverFeatures(graph) if isinstance(model, Student) else graph


def export_step(model: Incremental, max_len: int, path: Path) -> None:
    """Writes the ONNX graph of `encode_next`: memory of 1 to `max_len` - 1 events, and the next one."""
    length = min(max_len - 1, 5)
    with torch.no_grad():
        items = torch.ones((2, length), dtype=torch.int64)
        _, past = model.encode_and_remember(Histories(items, items, torch.tensor([length, length])))
    keys, values = ([getattr(block, name) for block in past.memory] for name in ("keys", "values"))
    events = {1: BATCH} | ({3: torch.export.Dim("events", min=1, max=max_len - 1)} if max_len > 2 else {})
    shapes = ({0: BATCH}, events, events)
    example = (torch.ones(2, dtype=torch.int64), torch.stack(keys), torch.stack(values))
    graph = _with_features(model, _Step(model))
    _export(graph, model, example, ["item", "keys", "values"], step_outputs_of(model), shapes, path)


def _export(
    graph: nn.Module,
    model: TrainableRetriever,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
    path: Path,
) -> None:
    """Writes a graph whose last inputs are the model's tables."""
    tables, rows = tables_of(model), {0: torch.export.Dim("rows", min=2, max=MOST_ROWS)}
    shapes = (*shapes, *[rows] * len(tables))
    given = (shapes,) if isinstance(graph, _OverFeatures) else shapes  # of `*inputs` as one
    write_graph(graph, (*example, *tables.values()), [*inputs, *tables], outputs, given, path)


def write_graph(
    graph: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], shapes: Any, path: Path
) -> None:
    """Writes an ONNX graph; `shapes` names the dimensions that may differ from the example's."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def check_encoder(
    model: TrainableRetriever, folder: Path, batch: Histories, teacher: SentenceReader | None = None
) -> float:
    """Largest difference between torch and a bundle's graphs on `batch`; a `BundleError` beyond the tolerance."""
    encoder = _session(folder / ENCODER)
    vectors = encoder.run(["vectors"], _inputs(model, encoder, batch))[0]
    difference = _agreed(folder / ENCODER, _encoded(model, batch)[-1], vectors)
    if isinstance(model, Reasoner):
        answers = encoder.run(["answers"], _inputs(model, encoder, batch))[0]
        difference = max(difference, _agreed(folder / ENCODER, _encoded(model, batch), answers))
    if (folder / STEP).exists():
        difference = max(difference, _check_step(model, folder, batch))
    if isinstance(model, Student) and teacher is not None:
        difference = max(difference, _check_item_reader(teacher, model, folder / ITEM_READER))
    return difference


@torch.no_grad()
def _check_item_reader(teacher: SentenceReader, student: Student, path: Path) -> float:
    """The first items of the catalogue, read anew."""
    tables = Tables(*(table[1 : 1 + CHECKED_STEPS] for table in (teacher.tables.tokens, teacher.tables.kinds)))
    found = _session(path).run(None, {"tokens": tables.tokens.numpy(), "kinds": tables.kinds.numpy()})
    expected = _ItemReader(teacher, student)(tables.tokens, tables.kinds)
    return max(_agreed(path, *pair) for pair in zip(expected, found, strict=True))


def _check_step(model: TrainableRetriever, folder: Path, batch: Histories) -> float:
    """Each history, but for its last event, goes through the encoder, and the last event through the step."""
    encoder, step = _session(folder / ENCODER), _session(folder / STEP)
    differences = [0.0]
    for row in (batch.lengths > 1).nonzero().flatten()[-CHECKED_STEPS:].tolist():
        length = int(batch.lengths[row])
        items = batch.items[row : row + 1, :length]
        shorter = Histories(
            items[:, :-1], torch.zeros_like(items[:, :-1]), torch.tensor([length - 1], dtype=torch.int32)
        )
        memory = encoder.run(["keys", "values"], _inputs(model, encoder, shorter))
        output = "answers" if isinstance(model, Reasoner) else "vectors"
        given = {"item": items[:, -1].numpy(), "keys": memory[0], "values": memory[1]}
        (found,) = step.run([output], given | {name: table.numpy() for name, table in tables_of(model).items()})
        expected = _encoded(model, Histories(items, torch.zeros_like(items), batch.lengths[row : row + 1]))
        differences.append(_agreed(folder / STEP, expected if output == "answers" else expected[-1], found))
    return max(differences)


def _inputs(model: TrainableRetriever, graph: onnxruntime.InferenceSession, batch: Histories) -> dict[str, Any]:
    """What the graph asks for."""
    inputs = {"items": batch.items, "lengths": batch.lengths} | tables_of(model)
    return {entry.name: inputs[entry.name].numpy() for entry in graph.get_inputs()}


@torch.no_grad()
def _encoded(model: TrainableRetriever, batch: Histories) -> Float[Tensor, "S B D"]:
    return model.answers(batch) if isinstance(model, Reasoner) else model.encode(batch)[None]


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _agreed(path: Path, expected: Tensor, found: FloatArray) -> float:
    """The difference, of vectors longer than 1 relative to their largest number."""
    difference = float(np.abs(expected.numpy() - found).max() / max(1.0, float(expected.abs().max())))
    if not difference <= ENCODER_TOLERANCE:
        raise BundleError(
            f"{path}: the ONNX graph differs from torch by {difference:.2g} on {expected.shape[-2]} histories "
            f"(allowed: {ENCODER_TOLERANCE:.0e}); this model cannot be exported with the installed onnx."
        )
    return difference
