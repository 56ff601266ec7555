"""NDCG, hit rate and MRR equal those of RecBole's own collector and evaluator on the same scores."""

import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy as np
import pytest
import torch

from recsys.metrics import case_metrics
from recsys.ranking import allowed_scores, target_ranks

NAMES = {"ndcg": "ndcg", "hit": "hit_rate", "mrr": "mrr"}
CUTOFFS = (1, 5, 10, 20)
CONFIG = {
    "topk": list(CUTOFFS),
    "metrics": ["NDCG", "Hit", "MRR"],
    "metric_decimal_place": 12,
    "eval_args": {"mode": "full"},
    "device": torch.device("cpu"),
}


@pytest.fixture
def recbole(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`recbole.evaluator` of 1.2.1, with the numpy aliases it was written for."""
    try:
        installed = version("recbole")
    except PackageNotFoundError:
        pytest.skip("RecBole is not installed (extra `recbole`, Python 3.11)")
    assert installed == "1.2.1"
    monkeypatch.setattr(np, "float", float, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import recbole.evaluator
    return recbole.evaluator


@pytest.mark.parametrize("excluded_share", [0.0, 0.4])
def test_metrics_agree(recbole: ModuleType, excluded_share: float) -> None:
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(311, 83, generator=generator)
    target = torch.randint(1, 83, (311,), generator=generator)
    mask = torch.rand(311, 83, generator=generator) < excluded_share
    allowed = allowed_scores(scores, mask)

    collector = recbole.Collector(CONFIG)
    for rows in torch.arange(311).split(100):
        collector.eval_batch_collect(allowed[rows].clone(), None, torch.arange(len(rows)), target[rows])
    theirs = recbole.Evaluator(CONFIG).evaluate(collector.get_data_struct())

    ours = case_metrics(target_ranks(allowed, target).numpy(), CUTOFFS)
    assert theirs.keys() == {f"{name}@{k}" for name in NAMES for k in CUTOFFS}
    assert 0 < theirs["ndcg@20"] < 1
    for name, value in theirs.items():
        metric, k = name.split("@")
        assert ours[f"{NAMES[metric]}@{k}"].mean() == pytest.approx(value, abs=1e-10)
