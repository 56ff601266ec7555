"""How fast item texts become vectors: `python -m benchmarks.item_encoding DIR`, on a quiet machine; writes a page.

DIR is prepared data with item texts. The compact Recformer as MiniLM has it reads every distinct sentence, in float32,
in bfloat16, and as ONNX graph in float32 and with weights of int8; each one's 100 nearest items of every item are
compared with those in float32.
"""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from models.hierarchical import Hierarchical, HierarchicalConfig, Teacher
from models.recformer import Recformer
from models.registry import model_config, preset
from pipelines.loading import language, sentences, text_network
from recsys.export import export_item_reader
from recsys.index import FloatArray, ItemIndex
from recsys.prepared import Prepared, open_prepared
from recsys.steps import git_commit, write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "item-encoding.md"
NEIGHBOURS = 100
ITEMS_AT_ONCE = 32


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    prepared = open_prepared(parser.parse_args().prepared)
    model = compact(prepared)
    exact, seconds = timed(lambda: by_torch(model, torch.float32))
    rows = [row("torch, float32", seconds, exact, exact, model)]
    halved, seconds = timed(lambda: by_torch(model, torch.bfloat16))
    rows.append(row("torch, bfloat16 (what training uses)", seconds, halved, exact, model))
    with TemporaryDirectory() as folder:
        graph, small = Path(folder) / "items.onnx", Path(folder) / "items-int8.onnx"
        export_item_reader(model, student(model), graph)
        quantize_dynamic(graph, small, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
        for name, path in (("ONNX graph, float32", graph), ("ONNX graph, weights of int8", small)):
            vectors, seconds = timed(lambda path=path: by_graph(model, path))  # type: ignore[misc]
            rows.append(row(name, seconds, vectors, exact, model))
    tokens = (model.token_kinds[distinct(model)] != 0).sum(dim=1).double().mean()
    write_text(PAGE, page(prepared, rows, float(tokens)))
    print(PAGE.read_text(encoding="utf-8"))


def compact(prepared: Prepared) -> Recformer:
    """The default preset before any training."""
    config = model_config("recformer", preset("recformer")["model"], prepared.catalog.num_items)
    network = text_network(config, prepared)
    assert network is not None
    model = Recformer(config.values).eval()
    model.learn_sentences(sentences(config, prepared, network), network.special_tokens)
    model.learn_network(language(network))
    return model


def student(teacher: Recformer) -> Hierarchical:
    """Any: its part of the graph costs nothing beside the teacher's."""
    model = Hierarchical(HierarchicalConfig(num_items=teacher.config.num_items))
    model.learn_from(Teacher(teacher))
    return model.eval()


def distinct(model: Recformer) -> torch.Tensor:
    """Rows of the sentences that are read, shortest first."""
    rows = torch.arange(len(model.tokens))[1:]
    rows = rows[model.first_with_text[1:] == rows]
    return rows[(model.token_kinds[rows] != 0).sum(dim=1).argsort(stable=True)]


def timed(work: Callable[[], FloatArray]) -> tuple[FloatArray, float]:
    """What it gave, and seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def by_torch(model: Recformer, dtype: torch.dtype) -> FloatArray:
    """The whole item matrix."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model.make_item_matrix()
    vectors: FloatArray = model.item_matrix[distinct(model)].numpy().copy()
    return vectors


def by_graph(model: Recformer, path: Path) -> FloatArray:
    """The same by ONNX Runtime, which reads every sentence at full length."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [
        session.run(["features"], {"tokens": model.tokens[rows].numpy(), "kinds": model.token_kinds[rows].numpy()})[0]
        for rows in distinct(model).split(ITEMS_AT_ONCE)
    ]
    return np.concatenate(parts)


def row(name: str, seconds: float, vectors: FloatArray, exact: FloatArray, model: Recformer) -> str:
    """Of the table."""
    texts = len(distinct(model))
    shared = [len(np.intersect1d(*pair)) for pair in zip(nearest(vectors), nearest(exact), strict=True)]
    cosine = float((vectors * exact).sum(axis=1).mean())
    return f"| {name} | {texts / seconds:.0f} | {np.mean(shared) / NEIGHBOURS:.4f} | {cosine:.5f} |"


def nearest(vectors: FloatArray) -> np.ndarray:
    """Of each its nearest items, itself among them."""
    found, _ = ItemIndex.build(np.concatenate([np.zeros_like(vectors[:1]), vectors])).search(vectors, NEIGHBOURS)
    return found


def page(prepared: Prepared, rows: list[str], tokens: float) -> str:
    """Table and provenance."""
    return "\n".join([
        "# How fast item texts become vectors",
        "",
        "Written by `python -m benchmarks.item_encoding`; do not edit. The compact Recformer (MiniLM, six layers of",
        f"width 384) reads the distinct sentences of {prepared.catalog.num_items} items, {tokens:.1f} tokens each on",
        "average; the 100 nearest items of each are compared with those in float32. Torch reads sentences of like",
        "length together; the graph of a bundle reads each at full length.",
        "",
        "| encoder | sentences a second | recall@100 | mean cosine |",
        "|---|---|---|---|",
        *rows,
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {torch.get_num_threads()} threads, commit {(git_commit() or 'unknown')[:12]}, "
        f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}.",
        "",
    ])


if __name__ == "__main__":
    main()
