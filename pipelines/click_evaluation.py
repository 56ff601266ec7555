"""Rankers evaluated by clicks: the same items beside every target for all of them, and for the floors."""

from pathlib import Path
from typing import Any

from pipelines.reporter import Reporter
from recsys.click_metrics import click_metrics, order_metrics
from recsys.clicks import NEGATIVES, SEED, ClickCases, by_catalog, click_scores
from recsys.contracts import CatalogScorer, Ranker
from recsys.evaluation import SCORES_PER_BATCH
from recsys.prepared import Prepared
from recsys.runs import REPORT
from recsys.splits import Part
from recsys.steps import write_json, writing_step

CLICKS = "clicks.parquet"


def click_settings(prepared: Prepared, part: Part) -> dict[str, Any]:
    """What two evaluations must share to be compared."""
    return {"data": prepared.fingerprint, "part": part, "clicks": {"negatives": NEGATIVES, "seed": SEED}}


def ranker_clicks(
    out: Path, name: str, ranker: Ranker, prepared: Prepared, part: Part, reporter: Reporter
) -> dict[str, Any]:
    """Evaluates a ranker; writes `clicks.parquet` (one row an item) and `report.json`."""
    settings = click_settings(prepared, part)
    with writing_step("evaluate", out, config=settings, inputs=[prepared.folder], overwrite=True) as step:
        clicks = part_clicks(prepared, part)
        with reporter.task(f"evaluate {name}", len(clicks.users)) as advance:
            scores = click_scores(ranker.score, ranker.max_len, prepared.store, clicks, progress=advance)
        report = {"cases": len(clicks.users), "metrics": click_metrics(*clicks.flat(scores))}
        clicks.rows(scores).write_parquet(step.folder / CLICKS)
        write_json(step.folder / REPORT, report)
        step.counts["cases"] = len(clicks.users)
    return report


def floor_clicks(scorer: CatalogScorer, prepared: Prepared, part: Part) -> dict[str, Any]:
    """What a floor's order is worth; its scores are no probabilities."""
    clicks = part_clicks(prepared, part)
    most = max(1, SCORES_PER_BATCH // prepared.catalog.num_rows)
    scores = click_scores(by_catalog(scorer), scorer.max_len, prepared.store, clicks, most)
    return {"cases": len(clicks.users), "metrics": order_metrics(*clicks.flat(scores))}


def part_clicks(prepared: Prepared, part: Part) -> ClickCases:
    """The part's cases with a history, beside items as popular as in training."""
    cases = prepared.cases(part)
    return ClickCases.of(
        cases.filter(cases["history_length"] > 0), prepared.store, prepared.training_events().item_counts()
    )
