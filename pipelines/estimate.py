"""`recsys estimate LOG… --policy RUN`: what would a model have earned, by what others showed?"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from pipelines.exposed import UNITS, Period, Reward, chosen_variants, impressions_of, read_logs, rewards_of, shares_at
from pipelines.policy_lists import Lister, Policy
from pipelines.reporter import Reporter
from recsys.errors import ConfigError, DataError
from recsys.exposures import Attribution
from recsys.metrics import FloatArray, IntArray
from recsys.off_policy import LOGGED, Estimate, Logged, Overlap, estimate, overlap
from recsys.reward_model import cross_fitted
from recsys.slate_policy import Reading, joint, row_weights

EstimatorName = Literal["ips", "snips", "clipped", "dm", "dr", "switch-dr"]
Verdict = Literal["better", "worse", "no winner", "not enough overlap"]
SHOWING = {"k", "why", "fields"}
"""Wishes that change how much is shown, and not which item stands where."""


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """Settings of `recsys estimate`.

    `variants`: only their answers are read. `shown_by`: the models of variants that rank without chance, by name; the
    chance that an item had to be shown is then that of the split.
    """

    logs: tuple[Path, ...]
    policy: Path
    variants: tuple[str, ...] = ()
    shown_by: Mapping[str, Path] = field(default_factory=dict)
    reading: Reading = "independent"
    reward: Reward = "any"
    attribution: Attribution = field(default_factory=Attribution)
    period: Period = field(default_factory=Period)
    estimator: EstimatorName = "dr"
    clip: float = 10.0
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise ConfigError(f"estimate: clip={self.clip:g} must be above 0; weights beyond it are cut.")


@dataclass(frozen=True, kw_only=True)
class PolicyEstimate:
    """Every estimate (`logged` first), how far the log speaks of the policy, and how many answers were left out."""

    policy: str
    reward: Reward
    estimator: EstimatorName
    estimates: Sequence[Estimate]
    overlap: Overlap
    left_out: Mapping[str, int]

    def of(self, name: str) -> Estimate:
        """One of the estimates."""
        return next(entry for entry in self.estimates if entry.estimator == name)

    @property
    def verdict(self) -> Verdict:
        """By the estimator that was chosen; none where the log hardly speaks of the policy."""
        if not self.overlap.enough:
            return "not enough overlap"
        chosen = self.of(self.estimator)
        if not chosen.decided:
            return "no winner"
        return "better" if chosen.difference > 0 else "worse"

    def sentences(self) -> list[str]:
        """The answer, then what should be known before it is believed."""
        chosen, own, unit = self.of(self.estimator), self.of(LOGGED), UNITS[self.reward]
        (low, high), (least, most) = chosen.interval, chosen.difference_interval
        figures = (
            f"{chosen.value:.4f} {unit} a request ({self.estimator}, 95 % interval {low:.4f} to {high:.4f}) against "
            f"{own.value:.4f} of what was shown (difference {chosen.difference:+.4f}, {least:+.4f} to {most:+.4f})."
        )
        opening = {
            "better": f"{self.policy} would earn more: {figures}",
            "worse": f"{self.policy} would earn less: {figures}",
            "no winner": f"{self.policy} cannot be told apart from what was shown: {figures}",
            "not enough overlap": f"This log cannot judge {self.policy}. Taken at face value: {figures}",
        }[self.verdict]
        left = [f"Left out: {count:,} answers {why}." for why, count in self.left_out.items() if count]
        return [opening, *self.overlap.warnings(), *left]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "policy": self.policy,
            "verdict": self.verdict,
            "reward": self.reward,
            "estimator": self.estimator,
            "estimates": [asdict(entry) | {"decided": entry.decided} for entry in self.estimates],
            "overlap": asdict(self.overlap) | {"enough": self.overlap.enough},
            "left_out": dict(self.left_out),
            "sentences": self.sentences(),
        }


@dataclass(frozen=True)
class Judged:
    """Answers that can be judged [Q], their items row by row [N] with the number of the answer, and how many answers
    were left out for which reason."""

    answers: pl.DataFrame
    rows: pl.DataFrame
    left_out: Mapping[str, int]

    @property
    def number(self) -> IntArray:
        """[N], which answer a row is of."""
        return self.rows["answer"].to_numpy().astype(np.int64)


def estimate_policy(config: EstimateConfig, reporter: Reporter) -> PolicyEstimate:
    """Joins the logs, asks the models what they would have shown, and estimates."""
    policy = Policy.open(config.policy)
    reporter.say(f"{policy.name}: what would it have shown?")
    shown_by = {name: Policy.open(run).lists for name, run in config.shown_by.items()}
    return estimate_lists(config, policy.name, policy.lists, shown_by)


def estimate_lists(config: EstimateConfig, name: str, lists: Lister, shown_by: Mapping[str, Lister]) -> PolicyEstimate:
    """The same of anything that makes lists."""
    judged = judged_answers(config)
    chance = split_chances(config, judged, shown_by) if shown_by else chances(config, judged)
    log = logged_rows(config, judged, chance, at_places(lists, judged))
    return PolicyEstimate(
        policy=name,
        reward=config.reward,
        estimator=config.estimator,
        estimates=estimate(log, config.clip, config.draws, config.seed),
        overlap=overlap(log, config.clip),
        left_out=judged.left_out,
    )


def judged_answers(config: EstimateConfig) -> Judged:
    """The log without answers that nothing can be said of; an error where none is left."""
    exposures, outcomes = read_logs(config.logs, config.period)
    answers = chosen_variants(exposures, [*config.variants, *config.shown_by])
    shown = impressions_of(exposures, outcomes, config.attribution)
    over = shown.filter("complete")["request_id"].unique()
    heeded = [wishes for wishes in answers["wishes"].drop_nulls().unique() if json.loads(wishes).keys() - SHOWING]
    reasons = {
        "without items": pl.col("item_ids").list.len() == 0,
        "on further pages": pl.col("position") > 1,
        "to wishes (filters, boosts, …), which the model is not asked to heed": pl
        .col("wishes")
        .fill_null("")
        .is_in(heeded),
        "whose window is not over": ~pl.col("request_id").is_in(over.implode()),
    }
    left_out = {}
    for why, holds in reasons.items():
        kept = answers.filter(~holds)
        left_out[why] = len(answers) - len(kept)
        answers = kept
    if not len(answers):
        counts = "; ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        raise DataError(f"estimate: no answer is left to judge by: {counts}.")
    index = answers.select("request_id").with_row_index("answer")
    rows = shown.join(index, on="request_id").sort("answer", "position")
    return Judged(answers, rows, left_out)


def chances(config: EstimateConfig, judged: Judged) -> FloatArray:
    """[N], how likely each row was, as far as `config.reading` looks."""
    random = judged.rows["item_propensity"].is_not_null()
    names = judged.answers["variant"].unique().sort().to_list()
    if len(names) > 1:
        raise ConfigError(
            f"estimate: the log has the variants {', '.join(names)}. Judge by one of them (--variant {names[0]}), or "
            "name the models of all (--shown-by NAME=RUN), whose split is the chance then."
        )
    if random.any() and config.reading != "independent":
        raise ConfigError(
            f"estimate: --reading {config.reading} needs chances of lists, and the log has those of single items; "
            "take --reading independent."
        )
    return judged.rows["item_propensity"].fill_null(1.0).to_numpy()


def split_chances(config: EstimateConfig, judged: Judged, shown_by: Mapping[str, Lister]) -> FloatArray:
    """[N], the shares of those variants that would have shown the same (without chance)."""
    if random := len(judged.rows) - judged.rows["item_propensity"].null_count():
        raise ConfigError(
            f"estimate: the log has propensities of items for {random:,} rows; --shown-by is for variants that rank "
            "without chance. Drop it, or choose others by --variant."
        )
    answers = judged.answers
    shares, number = shares_at(answers["timestamp"], answers, list(shown_by)), judged.number
    chance = np.zeros(len(number))
    for column, lists in enumerate(shown_by.values()):
        same = agreement(judged, at_places(lists, judged))
        chance += shares[number, column] * joint(config.reading, same, number)
    if missing := int((chance == 0).sum()):
        raise DataError(
            f"estimate: {missing:,} of {len(chance):,} rows would have been shown by none of the models of "
            f"{', '.join(shown_by)}; name the runs that the variants served then."
        )
    return chance


def at_places(lister: Lister, judged: Judged) -> pl.Series:
    """[N], the item that a policy would show in the place of each row; null where its list is shorter."""
    longest = int(judged.rows["position"].max())  # type: ignore[arg-type]
    lists = lister(judged.answers["history"], longest)
    places = pl.int_ranges(1, pl.col("items").list.len() + 1, dtype=pl.Int32).alias("position")
    table = pl.DataFrame({"items": lists}).with_row_index("answer").filter(pl.col("items").list.len() > 0)
    rows = table.with_columns(places).explode("items", "position")
    return judged.rows.join(rows, on=["answer", "position"], how="left", maintain_order="left")["items"]


def agreement(judged: Judged, others: pl.Series) -> FloatArray:
    """[N], 1 where the item is the one that was shown, else 0."""
    return (others == judged.rows["item_id"]).fill_null(value=False).to_numpy().astype(np.float64)


def logged_rows(config: EstimateConfig, judged: Judged, chance: FloatArray, others: pl.Series) -> Logged:
    """Rows with their weights, and what a model of rewards says of them and of the `others` in their place."""
    rows, number = judged.rows, judged.number
    rewards, positions = rewards_of(rows, config.reward), rows["position"].to_numpy().astype(np.int64)
    users = dense(pl.select(pl.coalesce(rows["user_id"], "answer " + rows["request_id"])).to_series())
    items, instead = np.split(dense(pl.concat([rows["item_id"].alias("items"), others.fill_null("")])), 2)
    predicted, expected = cross_fitted(users, items, positions - 1, rewards, instead, config.seed)
    return Logged(
        users=users,
        requests=number,
        positions=positions,
        rewards=rewards,
        weights=row_weights(chance, joint(config.reading, agreement(judged, others), number)),
        predicted=predicted,
        expected=np.where(others.is_null().to_numpy(), 0.0, expected),
    )


def dense(values: pl.Series) -> IntArray:
    """Whole numbers from 0, equal for equal values."""
    return values.rank("dense").to_numpy().astype(np.int64) - 1
