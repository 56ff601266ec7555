"""`recsys evaluate`: runs and floors rank the same cases; one row a case is kept, and a table is shown.

Rankers are judged by clicks (`pipelines.click_evaluation`), or with `rerank` by what they make of a retriever's lists.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from models.registry import FLOORS, is_ranker, model_config, preset
from pipelines.click_evaluation import floor_clicks, ranker_clicks
from pipelines.loading import fit_floor, floors_for, run_ranker, run_scorer
from pipelines.reporter import Reporter
from pipelines.reranking import TwoStages, check_stages, stage_settings, two_stages
from pipelines.validation import CANDIDATES
from recsys import __version__
from recsys.comparison import Difference, compare_cases
from recsys.contracts import CatalogScorer
from recsys.errors import ConfigError, DataError
from recsys.evaluation import rank_cases, summarise
from recsys.prepared import Prepared, SeenRule
from recsys.runs import REPORT, Run, open_run
from recsys.splits import Part
from recsys.steps import read_manifest, write_json, writing_step

CASES = "cases.parquet"
HEADLINE = "ndcg@10"
RERANKING_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `recsys evaluate`; `seen` None means the rule that `recsys prepare` wrote down.

    `rerank`: the run of a retriever, to whose scores of the best `candidates` (500 where None) every run, a ranker
    then, adds its own times `rank_weight` (None: what is best on the validation part; inf: the ranker alone).
    `segments`: whether a table by segment will be asked for, which clicks have not.
    """

    runs: tuple[Path, ...]
    part: Part = "test"
    cutoffs: tuple[int, ...] = (10, 20)
    seen: SeenRule | None = None
    rerank: Path | None = None
    candidates: int | None = None
    rank_weight: float | None = None
    segments: bool = False

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ConfigError(f"evaluate: cutoffs {self.cutoffs} must be whole numbers from 1.")
        if self.candidates is not None and self.rerank is None:
            raise ConfigError(
                f"evaluate: candidates={self.candidates} are re-ranked with --rerank alone; drop one or add it."
            )
        if self.rank_weight is not None and (self.rerank is None or not self.rank_weight >= 0):
            raise ConfigError(
                f"evaluate: rank_weight={self.rank_weight} weighs a ranker over the lists of --rerank RETRIEVER, "
                "from 0 (not at all) to inf (alone)."
            )
        if self.rerank is not None and self.num_candidates < max(self.cutoffs):
            raise ConfigError(
                f"evaluate: candidates={self.num_candidates} fill no list of {max(self.cutoffs)} items; re-rank more."
            )

    @property
    def num_candidates(self) -> int:
        """How many of a retriever's items are re-ranked."""
        return CANDIDATES if self.candidates is None else self.candidates


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Reports of all models on the same cases, floors among them; with re-ranking, what it changed."""

    part: Part
    seen: SeenRule | None
    cutoffs: tuple[int, ...]
    runs: Mapping[str, dict[str, Any]]
    floors: Mapping[str, dict[str, Any]]
    protocol: Literal["full ranking", "clicks"] = "full ranking"
    retriever: str = ""
    changes: Mapping[str, Sequence[Difference]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"verdicts": self.verdicts()}

    def losers(self) -> list[str]:
        """Runs that some floor beats or equals."""
        return [name for name, report in self.runs.items() if lost_to(report, self.floors)]

    def weights(self) -> list[str]:
        """One sentence a ranker: how much it adds to the retriever's scores, and who says so."""
        found = {name: report for name, report in self.runs.items() if "weight" in report}
        return [
            f"{name}: "
            + ("ranked alone" if report["weight"] is None else f"the ranker adds {report['weight']:g} times its scores")
            + (" (best on the validation part)." if report["validation_ndcg@10"] else " (as given).")
            for name, report in found.items()
        ]

    def verdicts(self) -> list[str]:
        """One sentence a run: does it beat every floor?"""
        floors = [verdict(name, report, self.floors) for name, report in self.runs.items()]
        return [*floors, *self.weights()] + [
            change.sentence(self.retriever, name)
            for name, changes in self.changes.items()
            for change in changes
            if change.segment == "all"
        ]


def evaluate(config: EvaluateConfig, reporter: Reporter) -> Evaluation:
    """Ranks the part's cases by every run and every floor."""
    runs = [open_run(folder) for folder in config.runs]
    check_names(runs)
    prepared = common_data(runs)
    if config.rerank is not None:
        return evaluate_reranked(runs, open_run(config.rerank), prepared, config, reporter)
    kinds = {"ranker" if is_ranker(run.model) else "scorer" for run in runs}
    if len(kinds) > 1:
        raise ConfigError(
            "evaluate: rankers are judged by clicks and the other runs by full ranking; name one kind at a time, or "
            "the retriever by --rerank."
        )
    if "ranker" in kinds:
        if config.seen is not None or config.cutoffs != EvaluateConfig.cutoffs or config.segments:
            raise ConfigError(
                "evaluate: clicks are told apart without lists, so --seen, --cutoffs and --segments have no meaning; "
                "drop them, or name a retriever by --rerank."
            )
        return evaluate_clicks(runs, prepared, config, reporter)
    seen = config.seen or prepared.seen
    reports = {run.name: run_report(run, prepared, config, seen, reporter) for run in runs}
    floors = floor_reports(prepared, config, seen, reporter)
    return Evaluation(part=config.part, seen=seen, cutoffs=config.cutoffs, runs=reports, floors=floors)


def evaluate_clicks(runs: Sequence[Run], prepared: Prepared, config: EvaluateConfig, reporter: Reporter) -> Evaluation:
    """Clicks and other items told apart by rankers; floors by their order alone."""
    reports = {}
    for run in runs:
        refuse_known_events(run, config.part)
        if "retriever" in run.config:
            raise ConfigError(
                f"evaluate: {run.folder} learned to correct {run.config['retriever']}, so its clicks mean nothing "
                "without; name that run by --rerank."
            )
    for run in runs:
        out, ranker = run.evaluation(config.part), run_ranker(run, prepared)
        reports[run.name] = ranker_clicks(out, run.name, ranker, prepared, config.part, reporter)
    floors = {
        name: floor_clicks(fit_floor(name, prepared, config.part), prepared, config.part)
        for name in floors_for(prepared, FLOORS)
    }
    return Evaluation(part=config.part, seen=None, cutoffs=(), runs=reports, floors=floors, protocol="clicks")


def evaluate_reranked(
    runs: Sequence[Run], retriever: Run, prepared: Prepared, config: EvaluateConfig, reporter: Reporter
) -> Evaluation:
    """The retriever alone, and its best candidates in the order of each ranker, paired case by case."""
    common_data([retriever, *runs])
    for run in runs:
        refuse_known_events(run, config.part)
        check_stages(run, retriever, config.part, config.rank_weight)
    seen = config.seen or prepared.seen
    settings = evaluation_settings(prepared, config, seen)
    reports = {retriever.name: run_report(retriever, prepared, config, seen, reporter)}
    base = pl.read_parquet(retriever.evaluation(config.part) / CASES)
    changes: dict[str, Sequence[Difference]] = {}
    for run in runs:
        name, out = f"{run.name} over {retriever.name}", run.reranking(config.part, retriever.name)
        stage = two_stages(run, retriever, prepared, config.num_candidates, seen, config.rank_weight)
        stages = stage_settings(run, retriever, config.num_candidates, config.rank_weight)
        inputs = [prepared.folder, retriever.folder, run.folder]
        reports[name] = rank_into(out, name, stage.scorer, prepared, settings | stages, reporter, stage, inputs)
        changes[name] = compare_cases(base, pl.read_parquet(out / CASES), config.cutoffs, RERANKING_DRAWS, seed=0)
    return Evaluation(
        part=config.part,
        seen=seen,
        cutoffs=config.cutoffs,
        runs=reports,
        floors=floor_reports(prepared, config, seen, reporter),
        retriever=retriever.name,
        changes=changes,
    )


def check_names(runs: Sequence[Run]) -> None:
    """Reports go by the runs' names, so no two may share one."""
    for name, times in Counter(run.name for run in runs).items():
        if times > 1:
            raise ConfigError(f"evaluate: {times} runs are called {name!r}; give their folders different names.")


def common_data(runs: Sequence[Run]) -> Prepared:
    """The one prepared dataset of all runs."""
    if not runs:
        raise ConfigError("evaluate: name at least one run.")
    first = runs[0].prepared()
    for run in runs[1:]:
        if run.prepared().fingerprint != first.fingerprint:
            raise DataError(
                f"evaluate: {run.folder} was trained on {run.prepared().folder}, {runs[0].folder} on {first.folder}; "
                "only runs on the same prepared data can stand in one table."
            )
    return first


def run_report(
    run: Run, prepared: Prepared, config: EvaluateConfig, seen: SeenRule, reporter: Reporter
) -> dict[str, Any]:
    """Evaluates a run into its folder."""
    refuse_known_events(run, config.part)
    scorer = run_scorer(run, prepared)
    settings = evaluation_settings(prepared, config, seen)
    return rank_into(run.evaluation(config.part), run.name, scorer, prepared, settings, reporter)


def refuse_known_events(run: Run, part: Part) -> None:
    """A run on training and validation events knows the validation part."""
    if part == "validation" and run.fit_on != "train":
        raise DataError(f"evaluate: {run.folder} was trained on the validation events; only --part test can judge it.")


def floor_reports(
    prepared: Prepared, config: EvaluateConfig, seen: SeenRule, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Reports of every floor that the data allows."""
    return {name: floor_report(name, prepared, config, seen, reporter) for name in floors_for(prepared, FLOORS)}


def floor_report(
    name: str, prepared: Prepared, config: EvaluateConfig, seen: SeenRule, reporter: Reporter
) -> dict[str, Any]:
    """Evaluates a floor into the prepared data's folder, once: nobody ranks twice."""
    out = prepared.folder / "floors" / config.part / name
    settings = evaluation_settings(prepared, config, seen) | floor_settings(name, prepared)
    if out.exists() and read_manifest(out, "evaluate")["config"] == settings:
        report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return report
    return rank_into(out, name, fit_floor(name, prepared, config.part), prepared, settings, reporter)


def evaluation_settings(prepared: Prepared, config: EvaluateConfig, seen: SeenRule) -> dict[str, Any]:
    """What two evaluations must share to be compared."""
    return {"data": prepared.fingerprint, "part": config.part, "seen": seen, "cutoffs": list(config.cutoffs)}


def floor_settings(name: str, prepared: Prepared) -> dict[str, Any]:
    """What a floor's figures depend on besides: its own settings and this version's code."""
    config = model_config(name, preset(name)["model"], prepared.catalog.num_items)
    return {"floor": config.as_dict(), "recsys": __version__}


def rank_into(
    out: Path,
    name: str,
    scorer: CatalogScorer,
    prepared: Prepared,
    settings: dict[str, Any],
    reporter: Reporter,
    stage: TwoStages | None = None,
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Ranks all cases of the part by `evaluation_settings`; writes `cases.parquet` and `report.json`."""
    cases, seen, cutoffs = prepared.cases(settings["part"]), settings["seen"], settings["cutoffs"]
    num_rows = prepared.catalog.num_rows
    counts = prepared.training_events().item_counts()
    with writing_step(
        "evaluate", out, config=settings, inputs=list(inputs) or [prepared.folder], overwrite=True
    ) as step:
        with reporter.task(f"evaluate {name}", len(cases)) as advance:
            ranked = rank_cases(
                scorer,
                prepared.store,
                cases,
                num_rows,
                seen,
                cutoffs,
                retired=prepared.catalog.retired_rows,
                progress=advance,
                reranker=None if stage is None else stage.reranker,
            )
        report = {"seen": seen, **summarise(ranked, counts, cutoffs), **({} if stage is None else stage.report())}
        ranked.cases.write_parquet(step.folder / CASES)
        write_json(step.folder / REPORT, report)
        step.counts["cases"] = len(cases)
    return report


def verdict(name: str, report: Mapping[str, Any], floors: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether a run beats every floor on the headline metric, and by how much or by which not."""
    metric = headline(report)
    own = report["metrics"][metric]
    if lost := lost_to(report, floors):
        worse_than = ", ".join(f"{floor} ({value:.4f})" for floor, value in lost.items())
        return f"{name}: {metric} {own:.4f} does NOT beat {worse_than}."
    values = {floor: entry["metrics"][metric] for floor, entry in floors.items()}
    best = max(values, key=lambda floor: values[floor])
    return f"{name}: {metric} {own:.4f} beats all {len(values)} floors (best: {best}, {values[best]:.4f})."


def lost_to(report: Mapping[str, Any], floors: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The floors that are as good as the run or better on the headline metric, with their figures."""
    metric = headline(report)
    own = report["metrics"][metric]
    values = {floor: entry["metrics"][metric] for floor, entry in floors.items()}
    return {floor: value for floor, value in values.items() if value >= own}


def headline(report: Mapping[str, Any]) -> str:
    """NDCG@10, or the first metric where that was not asked for."""
    return HEADLINE if HEADLINE in report["metrics"] else next(iter(report["metrics"]))


def open_evaluation(folder: Path, part: Part) -> Path:
    """The folder with `cases.parquet` of a run, or of an evaluation folder (a floor's) itself."""
    for candidate in (folder / "evaluation" / part, folder):
        if (candidate / CASES).is_file():
            held = read_manifest(candidate, "evaluate")["config"]["part"]
            if held != part:
                raise DataError(f"{candidate}: holds an evaluation of the {held} cases, not of the {part} cases.")
            return candidate
    raise DataError(f"{folder}: holds no evaluation of the {part} cases; run `recsys evaluate {folder} --part {part}`.")


def table_rows(evaluation: Evaluation) -> Iterable[tuple[str, dict[str, float]]]:
    """Names and metrics, floors first."""
    yield from ((f"{name} (floor)", report["metrics"]) for name, report in evaluation.floors.items())
    yield from ((name, report["metrics"]) for name, report in evaluation.runs.items())
