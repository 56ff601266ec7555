"""Whether a candidate becomes champion: by the comparison, and before there is a champion by the floors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.compare import CompareConfig, Comparison, compare
from pipelines.evaluate import Evaluation, lost_to
from pipelines.pipeline_config import CompareSection
from recsys.steps import write_json, writing_step

Action = Literal["replace", "keep", "refuse"]

DECISION, REPORT_PAGE, EVALUATION = "decision.json", "report.html", "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to happen to the alias, why in one sentence, and the comparison behind it."""

    action: Action
    sentence: str
    comparison: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Decision":
        """What `decide` wrote."""
        return cls(**json.loads((folder / DECISION).read_text(encoding="utf-8")))


def gate(comparison: Comparison) -> tuple[Action, str]:
    """Better within the guardrails replaces the champion; worse or a guardrail broken is refused; else it stays."""
    sentence = comparison.sentence()
    if comparison.may_replace:
        return "replace", f"{sentence} It becomes champion."
    if comparison.verdict == "worse" or comparison.broken:
        return "refuse", f"{sentence} The champion stays, and the candidate is refused."
    return "keep", f"{sentence} The champion stays."


def first_gate(comparison: Comparison, evaluation: Mapping[str, Any]) -> tuple[Action, str]:
    """Without a champion a candidate has to beat every floor; the comparison is with the best of them."""
    lost = lost_to(evaluation["runs"]["candidate"], evaluation["floors"])
    if lost:
        return "refuse", (
            f"{comparison.sentence()} There is no champion yet, and the candidate does not beat {', '.join(lost)}: it "
            "is refused."
        )
    return "replace", f"{comparison.sentence()} There is no champion yet, and every floor is beaten: it becomes one."


def best_floor(evaluation: Mapping[str, Any]) -> str:
    """The floor with the highest first metric."""
    floors = evaluation["floors"]
    return max(floors, key=lambda name: next(iter(floors[name]["metrics"].values())))


def decide(
    out: Path, evaluated: Path, candidate: Path, champion: Path | None, floors: Path, section: CompareSection
) -> Decision:
    """Compares, decides and writes `decision.json` and `report.html`; `floors` holds the floors' evaluations."""
    evaluation = json.loads((evaluated / EVALUATION).read_text(encoding="utf-8"))
    base = floors / best_floor(evaluation) if champion is None else champion
    with writing_step("decide", out, config=asdict(section), inputs=[evaluated], overwrite=True) as step:
        [comparison] = compare(
            CompareConfig(
                base=base,
                runs=(candidate,),
                part=section.part,
                draws=section.draws,
                seed=section.seed,
                margin=section.margin,
                guardrails=() if champion is None else section.guardrails,  # floors list few or many by their nature
            )
        )
        if section.report:
            from pipelines.comparison_report import write_report  # plots are an extra

            write_report(step.folder / REPORT_PAGE, [comparison], section.part)
        action, sentence = first_gate(comparison, evaluation) if champion is None else gate(comparison)
        decision = Decision(action=action, sentence=sentence, comparison=comparison.as_dict())
        write_json(step.folder / DECISION, asdict(decision))
        step.counts.update(action=action, verdict=comparison.verdict)
    return decision


def write_evaluation(out: Path, evaluation: Evaluation, inputs: list[Path]) -> None:
    """Keeps the table of all models beside the cycle."""
    with writing_step("evaluate", out, config={"part": evaluation.part}, inputs=inputs, overwrite=True) as step:
        write_json(step.folder / EVALUATION, evaluation.as_dict())
