"""One number per model and loss on a small committed data set, in a narrow band: what moves metrics shows here.

`tests/golden/histories.txt`: 60 users, one a line, who follow next = 7x+3 (mod 31) four times in five.
Remake the figures, after a change that is meant to move them, with

    PYTHONPATH=.:tests python tests/parity/test_golden.py
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PRIME, item_table, store_of

from models.hierarchical import Teacher
from models.recformer import Recformer
from models.registry import MODELS, model_config
from recsys.batches import TrainingWindows
from recsys.click_metrics import auc
from recsys.clicks import ClickCases, click_scores
from recsys.contracts import CatalogScorer, SentenceReader, Student, TextTrainer
from recsys.evaluation import mean_metrics, rank_cases
from recsys.item_sentences import KEY, VALUE, ItemSentences
from recsys.ranking import RetrieverScorer
from recsys.splits import TrainingEvents, build_cases, split_last_item
from recsys.training import Trainer, TrainingConfig

GOLDEN = Path(__file__).parent.parent / "golden"
SETTINGS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "popularity-recent": {"share": 0.1},
    "markov": {},
    "item-knn": {},
    "tfidf": {},
    "text-similarity": {},
    "sasrec": {"max_len": 8, "embedding_dim": 16, "ffn_dim": 32},
    "bert4rec": {"max_len": 4, "embedding_dim": 16, "ffn_dim": 32, "last_item_share": 0.5},
    "rearec": {"max_len": 8, "embedding_dim": 16, "ffn_dim": 32},
    "recformer": {
        "max_len": 4,
        "max_tokens": 9,
        "max_attributes": 1,
        "attribute_tokens": 2,
        "vocab_size": PRIME + 5,
        "embedding_dim": 16,
        "num_blocks": 1,
        "num_heads": 2,
        "ffn_dim": 32,
        "pooling": "mean",
    },
    "hierarchical": {"max_len": 8, "embedding_dim": 16, "ffn_dim": 32, "text_width": 16},
    "lite-llm4rec": {"max_len": 8, "embedding_dim": 16, "ffn_dim": 32, "text_width": 12, "text_components": 6},
    "dare": {"max_len": 8, "kept": 3, "embedding_dim": 8, "positives": 4},
}
LOSSES: dict[str, dict[str, Any]] = {
    "sampled-softmax": {"negatives": 12, "sampling": "mixed"},
    "gbce": {"negatives": 12},
    "bce": {},
}
CASES = [
    *MODELS,
    *(f"{name} {kind}" for name in ("sasrec", "bert4rec") for kind in LOSSES),
]
"""A model's name, and after it the loss where it is not the model's own."""
BANDS = {"first loss": 1e-3, "last loss": 5e-3, "ndcg@10": 0.02, "auc": 0.01}
"""Of trained models, relative: processors round differently. Counting models have none."""
STORE = store_of([
    [int(row) for row in line.split()] for line in (GOLDEN / "histories.txt").read_text(encoding="utf-8").splitlines()
])


def measured(case: str) -> dict[str, float]:
    """NDCG@10 of leave-one-out, of a ranker AUC; of what learns by gradient also the losses of first and last epoch."""
    split = split_last_item(STORE)
    events = TrainingEvents(STORE, split.train_stop, PRIME + 1)
    name, _, kind = case.partition(" ")
    loss = {"loss": {"kind": kind, **LOSSES[kind]}} if kind else {}
    config = model_config(name, SETTINGS[name] | loss, PRIME)
    losses: dict[str, float] = {}
    if issubclass(config.model_class, torch.nn.Module):
        torch.manual_seed(0)
        build: Any = config.model_class
        model = build(config.values)
        model.learn_popularity(events.item_counts())
        if isinstance(model, SentenceReader):
            model.learn_sentences(words(PRIME), (1, 0, 2))
        if isinstance(model, Student):
            model.learn_from(teacher())
        if isinstance(model, TextTrainer):
            model.learn_texts(torch.randn(PRIME + 1, 12), events.item_counts())
        losses = train(model, events)
        if config.ranks:
            clicks = ClickCases.of(build_cases(STORE, split, "test", PRIME + 1), STORE, events.item_counts())
            _, labels, scores = clicks.flat(click_scores(model.eval().score, model.max_len, STORE, clicks))
            return {"auc": round(auc(labels, scores), 5), **losses}
        scorer: CatalogScorer = RetrieverScorer(model.eval(), torch.zeros(PRIME + 1))
    else:
        scorer = config.model_class.fit(config.values, events, item_table(PRIME))
    ranked = rank_cases(scorer, STORE, build_cases(STORE, split, "test", PRIME + 1), PRIME + 1, "keep", (10,))
    return {"ndcg@10": round(mean_metrics(ranked.cases, (10,))["ndcg@10"], 5), **losses}


def teacher() -> Teacher:
    """An untrained Recformer."""
    model = Recformer(model_config("recformer", SETTINGS["recformer"], PRIME).values)
    model.learn_sentences(words(PRIME), (1, 0, 2))
    model.refresh_items()
    return Teacher(model)


def words(num_items: int) -> ItemSentences:
    """Of each item a key and a word of its own."""
    rows = np.arange(num_items + 1, dtype=np.int32)
    ids = np.stack([np.full_like(rows, 3), rows + 4], axis=1)
    kinds = np.tile(np.array([KEY, VALUE], dtype=np.int8), (num_items + 1, 1))
    ids[0] = kinds[0] = 0
    return ItemSentences(ids, kinds, kinds > 0)


def train(model: Any, events: TrainingEvents) -> dict[str, float]:
    """Fifteen epochs, dropout and masks included."""
    windows = TrainingWindows.cut(events.stops, model.window)
    config = TrainingConfig(epochs=15, batch_size=16, learning_rate=1e-2, warmup_steps=5)
    with TemporaryDirectory() as folder:
        trainer = Trainer(model, STORE, windows, config, seed=0, folder=Path(folder))
        trainer.fit(None, "ndcg@10", on_epoch=lambda _: None, on_batch=lambda: None)
    losses = [epoch["loss"] for epoch in trainer.progress.epochs]
    return {"first loss": round(losses[0], 5), "last loss": round(losses[-1], 5)}


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_recorded(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "vectors.sqlite"))
    recorded = json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))[case]
    figures = measured(case)
    assert figures.keys() == recorded.keys()
    for figure, value in figures.items():
        band = BANDS[figure] if len(figures) > 1 else 1e-4
        assert value == pytest.approx(recorded[figure], rel=band), figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = {case: measured(case) for case in CASES}
    (GOLDEN / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
