"""The bundle: one folder with all that serving may read, and nothing that serving needs torch for.

manifest.json         SHA-256 of every file; a bundle that differs from it is refused
model.json            model name, resolved config, `max_len`, the seen rule
model.safetensors     weights
encoder.onnx          items [B, L] i64 (and lengths [B] i32) -> vectors [B, D]; of a model that reasons also answers
                      [S, B, D], those after 0, 1, ... steps; of one that can go on also its memory: keys, values
                      [N, B, H, L, Dh] of its N blocks
step.onnx             of such a model: item [B] i64 and the memory of shorter histories -> the same for the longer
                      ones; new_keys, new_values [N, B, H, 1, Dh] are those of the item alone
sentences.npz         of a model that reads texts: ids, kinds, starts [V, W] of all items; ids and kinds are inputs of
                      its encoder.onnx: a service adds rows of its own
tokenizer.json        what made them
features.npy          of a model over a teacher's item vectors: those, f32[V, F], an input of its graphs, to which a
                      service adds rows
items.onnx            what reads new items for it: tokens, kinds [N, W] -> features [N, F], vectors [N, D]; with
                      tokenizer.json
index.faiss           inner products with item vectors, exact
approximate.faiss     of a large catalogue: another index of the same, see `recsys.approximate`
catalog.parquet       item_id <-> item_idx
items.parquet         what an answer may show of an item, in catalogue order
no_history.npy        f32[V]: scores for users without history (recent popularity)
metrics.json          what `recsys evaluate` measured, where it did
ranker.*              of a bundle of two stages: the second one, see `recsys.stored_ranker`
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.catalog import Catalog
from recsys.errors import BundleError, DataError
from recsys.index import FloatArray, ItemIndex
from recsys.item_sentences import ItemSentences
from recsys.prepared import SeenRule
from recsys.steps import MANIFEST, read_manifest, sha256
from recsys.stored_ranker import RANKER_FILES, StoredRanker

ENCODER, STEP = "encoder.onnx", "step.onnx"
SENTENCES, TOKENIZER = "sentences.npz", "tokenizer.json"
FEATURES, ITEM_READER = "features.npy", "items.onnx"
INDEX, APPROXIMATE_INDEX = "index.faiss", "approximate.faiss"
BUNDLE_FILES = (
    "model.json",
    "model.safetensors",
    ENCODER,
    INDEX,
    "catalog.parquet",
    "items.parquet",
    "no_history.npy",
    "metrics.json",
)
BUNDLE_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class SentenceCard:
    """How a model reads items: which attributes, in order, how much of them, and the temperature of its scores.

    `takes_new_items`: whether its item vectors are what its weights make of the texts, so that new ones compare; not so
    where the item matrix was frozen and training went on.
    """

    takes_new_items: bool
    attributes: list[str]
    max_attributes: int
    attribute_tokens: int
    temperature: float


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of `model.json`."""

    name: str
    config: dict[str, Any]
    max_len: int
    seen: SeenRule
    no_history: str
    sentences: SentenceCard | None = None
    bundle_format: int = BUNDLE_FORMAT


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, loaded but for its encoder."""

    folder: Path
    version: str
    card: ModelCard
    catalog: Catalog
    items: pl.DataFrame
    index: ItemIndex
    no_history: FloatArray
    sentences: ItemSentences | None
    features: FloatArray | None
    ranker: StoredRanker | None
    metrics: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def encoder(self) -> Path:
        """The ONNX graph."""
        return self.folder / ENCODER

    @property
    def item_reader(self) -> Path | None:
        """The graph that reads new items, of a model over a teacher's item vectors."""
        return self.folder / ITEM_READER if ITEM_READER in self.manifest["files"] else None

    @property
    def tokenizer(self) -> Path:
        """Of a model that reads texts."""
        return self.folder / TOKENIZER

    @property
    def step(self) -> Path | None:
        """The graph that goes on from an encoded history, where the model can."""
        return self.folder / STEP if STEP in self.manifest["files"] else None


def open_bundle(folder: Path) -> Bundle:
    """Verifies every file against the manifest, then loads; any difference is a `BundleError`."""
    manifest = verify_bundle(folder)
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if card["bundle_format"] != BUNDLE_FORMAT:
        raise BundleError(
            f"{folder}: bundle format {card['bundle_format']}, but this version reads {BUNDLE_FORMAT}; "
            "export the run again."
        )
    over_features = ITEM_READER in manifest["files"]
    return Bundle(
        folder=folder,
        version=bundle_version(folder),
        card=ModelCard(**card | {"sentences": SentenceCard(**card["sentences"]) if card.get("sentences") else None}),
        catalog=Catalog.load(folder / "catalog.parquet"),
        items=pl.read_parquet(folder / "items.parquet"),
        index=ItemIndex.load(
            folder / INDEX, folder / APPROXIMATE_INDEX if APPROXIMATE_INDEX in manifest["files"] else None
        ),
        no_history=np.load(folder / "no_history.npy"),
        sentences=_load_sentences(folder) if card.get("sentences") and not over_features else None,
        features=np.load(folder / FEATURES) if over_features else None,
        ranker=_load_ranker(folder, manifest["files"]),
        metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        manifest=manifest,
    )


def bundle_version(folder: Path) -> str:
    """What a bundle is called: the first digits of its manifest's SHA-256."""
    return sha256(folder / MANIFEST)[:12]


def save_sentences(path: Path, sentences: ItemSentences) -> None:
    """Writes the tokens that serving reads."""
    np.savez(path, ids=sentences.ids, kinds=sentences.kinds, starts=sentences.starts)


def _load_ranker(folder: Path, files: Collection[str]) -> StoredRanker | None:
    """The second stage, where there is one."""
    present = [name for name in RANKER_FILES if name in files]
    if not present:
        return None
    if missing := [name for name in RANKER_FILES if name not in present]:
        raise BundleError(f"{folder}: lacks {', '.join(missing)} of its ranker; export the runs again.")
    return StoredRanker.load(folder)


def _load_sentences(folder: Path) -> ItemSentences:
    if missing := [name for name in (SENTENCES, TOKENIZER) if not (folder / name).exists()]:
        raise BundleError(f"{folder}: lacks {', '.join(missing)}, which a model that reads texts needs; export again.")
    with np.load(folder / SENTENCES) as arrays:
        return ItemSentences(ids=arrays["ids"], kinds=arrays["kinds"], starts=arrays["starts"])


def verify_bundle(folder: Path) -> dict[str, Any]:
    """The manifest, once every file in it was found unaltered and none beside it."""
    try:
        manifest = read_manifest(folder, "export")
    except DataError as error:
        raise BundleError(str(error)) from None
    listed: dict[str, str] = manifest.get("files", {})
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if missing := sorted(set(BUNDLE_FILES) - present | listed.keys() - present):
        raise BundleError(f"{folder}: lacks {', '.join(missing)}; export the run again.")
    if extra := sorted(present - listed.keys()):
        raise BundleError(
            f"{folder}: holds {', '.join(extra)}, which its manifest does not list; remove what was added."
        )
    for name, digest in listed.items():
        if sha256(folder / name) != digest:
            raise BundleError(
                f"{folder / name}: was altered after export (SHA-256 differs from the manifest); "
                "copy the bundle again or export the run again."
            )
    return manifest
