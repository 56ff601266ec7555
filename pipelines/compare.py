"""`recsys compare BASE RUN…`: does any run do better than the base on the same cases, and at what price?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipelines.evaluate import CASES, open_evaluation
from pipelines.guardrails import GUARDRAILS, Check, Guardrail, checked
from recsys.comparison import MIN_USERS, Difference, compare_cases, corrected
from recsys.errors import ConfigError, DataError
from recsys.runs import REPORT
from recsys.splits import Part
from recsys.steps import read_manifest

Verdict = Literal["better", "worse", "no winner", "not enough data"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `recsys compare`; base and runs are runs, or evaluation folders such as a floor's.

    `margin`: how much worse than the base, as a share of its figure, a run may at most be to count as not inferior.
    """

    base: Path
    runs: tuple[Path, ...]
    part: Part = "test"
    draws: int = 10_000
    seed: int = 0
    margin: float = 0.01
    guardrails: tuple[Guardrail, ...] = GUARDRAILS

    def __post_init__(self) -> None:
        if len({path.resolve() for path in self.runs}) < len(self.runs):
            raise ConfigError(f"compare: {', '.join(map(str, self.runs))}: one of these is named twice; leave it out.")
        if not 0 <= self.margin < 1:
            raise ConfigError(f"compare: margin={self.margin} must lie in [0, 1); it is a share of the base's figure.")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run against the base: differences (the first decides), guardrails, and where both evaluations lie."""

    name: str
    base: str
    differences: list[Difference]
    checks: list[Check]
    margin: float
    folders: tuple[Path, Path]

    @property
    def headline(self) -> Difference:
        """The difference that decides: the first metric over all cases."""
        return self.differences[0]

    @property
    def verdict(self) -> Verdict:
        """Of the headline alone."""
        if self.headline.users < MIN_USERS:
            return "not enough data"
        if not self.headline.decided:
            return "no winner"
        return "better" if self.headline.difference > 0 else "worse"

    @property
    def not_inferior(self) -> bool:
        """Whether even the lower end of the interval is no further below the base than the margin."""
        enough = self.headline.users >= MIN_USERS
        return enough and self.headline.low >= -self.margin * self.headline.mean_a

    @property
    def broken(self) -> list[Check]:
        """Guardrails that do not hold."""
        return [check for check in self.checks if not check.holds]

    @property
    def may_replace(self) -> bool:
        """Better than the base, and every guardrail holds."""
        return self.verdict == "better" and not self.broken

    def sentence(self) -> str:
        """The decision."""
        text = self.headline.sentence(self.base, self.name)
        if self.verdict == "no winner" and self.not_inferior:
            text += f" {self.name} is not worse by more than {self.margin:.0%}."
        if self.broken:
            text += " Guardrails broken: " + "; ".join(check.sentence() for check in self.broken) + "."
        return text

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": self.name,
            "verdict": self.verdict,
            "not_inferior": self.not_inferior,
            "may_replace": self.may_replace,
            "sentence": self.sentence(),
            "guardrails": [asdict(check) | {"holds": check.holds} for check in self.checks],
            "differences": [
                asdict(entry)
                | {"decided": entry.decided, "detectable": entry.detectable, "users_needed": entry.users_needed}
                for entry in self.differences
            ],
        }


def compare(config: CompareConfig) -> list[Comparison]:
    """Each run against the base, on the same cases; p-values corrected for their number."""
    base = open_evaluation(config.base, config.part)
    folders = [open_evaluation(run, config.part) for run in config.runs]
    settings = check_settings([(config.base, base), *zip(config.runs, folders, strict=True)])
    base_cases = pl.read_parquet(base / CASES)
    found = [
        compare_cases(base_cases, pl.read_parquet(folder / CASES), settings["cutoffs"], config.draws, config.seed)
        for folder in folders
    ]
    figures = figures_of(base)
    base_name, *names = short_names([config.base, *config.runs])
    return [
        Comparison(
            name=name,
            base=base_name,
            differences=differences,
            checks=checked(config.guardrails, figures, figures_of(folder)),
            margin=config.margin,
            folders=(base, folder),
        )
        for name, folder, differences in zip(names, folders, corrected(found), strict=True)
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell different ones apart: mostly one."""
    full = [path.resolve() for path in paths]
    depth = 1
    while len({path.parts[-depth:] for path in full}) < len(set(full)):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in full]


def check_settings(evaluations: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
    """The settings that all were evaluated with."""
    (first, _), settings = evaluations[0], [read_manifest(folder, "evaluate")["config"] for _, folder in evaluations]
    for (asked, _), own in zip(evaluations, settings, strict=True):
        for key in ("data", "part", "seen", "cutoffs"):
            if settings[0][key] != own[key]:
                raise DataError(
                    f"compare: {first} was evaluated with {key}={settings[0][key]}, {asked} with {own[key]}; "
                    "evaluate both the same way."
                )
    return settings[0]


def figures_of(folder: Path) -> dict[str, float]:
    """What guardrails may name: metrics over all cases, `SEGMENT/METRIC`, and seconds of ranking a case."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    manifest = read_manifest(folder, "evaluate")
    by_segment = {
        f"{segment}/{metric}": value
        for segment, entry in report["segments"].items()
        for metric, value in entry["metrics"].items()
    }
    return {**report["metrics"], **by_segment, "seconds": manifest["seconds"] / max(1, report["cases"])}
