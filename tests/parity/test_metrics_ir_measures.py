"""Each case's NDCG, hit rate and MRR equal those of `ir_measures` (trec_eval's) on the same scores."""

import ir_measures
import pytest
import torch
from ir_measures import RR, Qrel, ScoredDoc, Success, nDCG

from recsys.metrics import case_metrics
from recsys.ranking import allowed_scores, target_ranks

CUTOFFS = (1, 5, 10, 20)
NAMES = {"nDCG": "ndcg", "Success": "hit_rate", "RR": "mrr"}


def test_every_case_agrees() -> None:
    generator = torch.Generator().manual_seed(8)
    scores = torch.randn(97, 61, generator=generator)
    target = torch.randint(1, 61, (97,), generator=generator)
    allowed = allowed_scores(scores, torch.rand(97, 61, generator=generator) < 0.3)
    ours = case_metrics(target_ranks(allowed, target).numpy(), CUTOFFS)

    truth = [Qrel(str(case), str(item), 1) for case, item in enumerate(target.tolist())]
    lists = [
        ScoredDoc(str(case), str(item), score)
        for case, row in enumerate(allowed.tolist())
        for item, score in enumerate(row)
        if score > float("-inf")
    ]
    measures = [measure @ k for measure in (nDCG, Success, RR) for k in CUTOFFS]
    checked = 0
    for entry in ir_measures.iter_calc(measures, truth, lists):
        name, k = str(entry.measure).split("@")
        assert ours[f"{NAMES[name]}@{k}"][int(entry.query_id)] == pytest.approx(entry.value, abs=1e-9)
        checked += entry.value > 0
    assert checked > 100
