"""How far online decisions can be trusted: `python -m benchmarks.decision_quality [--worlds N] [--out PAGE]`.

Everything is simulated, so the truth is known:

    off-policy    logs of one policy, another one's value: is the mean of the estimates the truth, how much do they
                  spread, how often do intervals hold the truth
    peeking       experiments looked at after every hundred users: how often is a difference declared where there is
                  none, how often does the interval ever leave the truth out, how often is a real difference found
    splits        how often a right split is doubted, and a wrong one found, at any look
    interleaving  how often equal models are told apart, and how often a better one is found beside an A/B test
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recsys.experiment import MISMATCH, Measured, Plan, check_split, effect
from recsys.interleaving import credit, preference, team_draft
from recsys.metrics import FloatArray, IntArray
from recsys.off_policy import LOGGED, Estimate, Logged, estimate
from recsys.slate_policy import row_weights

PAGE = Path("docs/decision-quality.md")
KINDS, ITEMS = 10, 8
LOGS = (500, 3_000)
"""Rows."""
USERS, LOOK = 4_000, 100
LIFT = 0.15
"""Of a variant that is better, as a share."""
LISTED_USERS = 200


@dataclass(frozen=True)
class World:
    """Requests of KINDS kinds, of which ITEMS items earn at these rates [KINDS, ITEMS], the policies that act and are
    to be judged, and a model of rewards that is wrong, and not by chance."""

    rates: FloatArray
    acting: FloatArray
    other: FloatArray
    guessed: FloatArray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "World":
        """Every item has at least a fortieth of the traffic."""
        rates = rng.uniform(0.02, 0.6, (KINDS, ITEMS))
        acting, other = (0.8 * rng.dirichlet(np.ones(ITEMS), KINDS) + 0.2 / ITEMS for _ in range(2))
        return cls(rates, acting, other, np.clip(rates + rng.normal(0.05, 0.1, rates.shape), 0, 1))

    @property
    def truth(self) -> float:
        """What the other policy earns a request."""
        return float((self.other * self.rates).sum(axis=1).mean())

    def log(self, rows: int, rng: np.random.Generator) -> Logged:
        """Rows of the policy that acts, each of a user of its own."""
        kind, number = rng.integers(0, KINDS, rows), np.arange(rows)
        item = (rng.random((rows, 1)) > self.acting[kind].cumsum(axis=1)[:, :-1]).sum(axis=1)
        return Logged(
            users=number,
            requests=number,
            positions=np.ones(rows, dtype=np.int64),
            rewards=(rng.random(rows) < self.rates[kind, item]).astype(np.float64),
            weights=row_weights(self.acting[kind, item], self.other[kind, item]),
            predicted=self.guessed[kind, item],
            expected=(self.other[kind] * self.guessed[kind]).sum(axis=1),
        )


def off_policy_rows(worlds: int, rows: int, rng: np.random.Generator) -> Iterator[str]:
    """One row an estimator: bias in standard errors of the mean, spread beside that of ips, coverage."""
    world = World.draw(rng)
    logs = [estimate(world.log(rows, rng), clip=2.0, draws=400, seed=number) for number in range(worlds)]
    spreads = {entry.estimator: np.std([_of(log, entry.estimator).value for log in logs]) for entry in logs[0]}
    for name, spread in spreads.items():
        values = np.array([_of(log, name).value for log in logs])
        off = (values.mean() - world.truth) / (values.std(ddof=1) / np.sqrt(worlds))
        held = np.mean([_of(log, name).interval[0] <= world.truth <= _of(log, name).interval[1] for log in logs])
        wanted = "should be biased" if name in {LOGGED, "clipped", "dm", "switch-dr"} else "within 2"
        yield f"| {rows:,} | {name} | {off:+.1f} ({wanted}) | {(spread / spreads['ips']) ** 2:.2f} | {held:.1%} |"


def _of(log: list[Estimate], name: str) -> Estimate:
    return next(entry for entry in log if entry.estimator == name)


@dataclass(frozen=True)
class Peeked:
    """Of one experiment: did the interval that is valid at every look ever leave 0, or the truth, out; did the usual
    one leave 0 out ever, and at the last look; did the former at the last look, with CUPED and without."""

    ever: bool
    ever_off: bool
    usual_ever: bool
    usual_last: bool
    last: bool
    last_without: bool


def peeked(lift: float, rng: np.random.Generator) -> Peeked:
    """Users come and are looked at after every hundred of them; their own rates were seen before."""
    own, variants = rng.gamma(1, 1, USERS), rng.integers(0, 2, USERS)
    before = np.log1p(rng.poisson(5 * own))[:, None].astype(np.float64)
    earned = rng.poisson(own * (1 + lift * variants)).astype(np.float64)

    def found(users: int, covariates: FloatArray) -> "tuple[tuple[float, float], tuple[float, float]]":
        part = slice(users)
        measured = Measured(name="outcomes", earned=earned[part], sizes=np.ones(users))
        entry = effect(measured, variants[part], ("old", "new"), covariates[part], Plan(planned=USERS))
        return entry.always_interval, entry.interval

    looks = [found(users, before) for users in range(2 * LOOK, USERS + 1, LOOK)]
    return Peeked(
        ever=any(_out(always, 0) for always, _ in looks),
        ever_off=any(_out(always, lift) for always, _ in looks),
        usual_ever=any(_out(usual, 0) for _, usual in looks),
        usual_last=_out(looks[-1][1], 0),
        last=_out(looks[-1][0], 0),
        last_without=_out(found(USERS, np.zeros((USERS, 0)))[0], 0),
    )


def _out(interval: tuple[float, float], value: float) -> bool:
    return not interval[0] <= value <= interval[1]


def split_doubted(kept: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether a half-and-half split, of one side of which only a share is seen, is doubted at any look: by the test
    that may be looked at, and by chi-square at the same level."""
    variants: IntArray = (rng.random(2 * USERS) < 0.5).astype(np.int64)
    variants = variants[(variants == 0) | (rng.random(2 * USERS) < kept)][:USERS]
    shares = np.full((len(variants), 2), 0.5)
    looks = [check_split(("a", "b"), variants[:users], shares[:users]) for users in range(LOOK, USERS + 1, LOOK)]
    return not looks[-1].holds, any(look.p_value < MISMATCH for look in looks)


def lists_told_apart(better: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether two models that share half their items are told apart by LISTED_USERS users with two requests each: by
    interleaving, and by an A/B test with one look. Items of the second alone are clicked `better` times as often."""
    lists = (["a", "b", "c", "d"], ["a", "x", "c", "y"])
    own = rng.gamma(2, 0.5, LISTED_USERS)

    def clicks(items: list[str], user: int) -> npt.NDArray[np.intp]:
        rates = np.array([0.15 * (better if item in "xy" else 1) for item in items])
        return np.flatnonzero(rng.random(len(items)) < np.minimum(1, rates * own[user]))

    users, credited, earned = [], [], np.zeros(LISTED_USERS)
    variants = rng.integers(0, 2, LISTED_USERS)
    for user in range(LISTED_USERS):
        for number in range(2):
            items, teams = team_draft(*lists, 4, f"{rng.integers(1 << 60)} {number}")
            users.append(user)
            credited.append(float(credit(teams, clicks(items, user).tolist())))
            earned[user] += len(clicks(lists[variants[user]], user))
    interleaved = preference(np.array(users), np.array(credited), draws=400, seed=int(rng.integers(1 << 31)))
    measured = Measured(name="outcomes", earned=earned, sizes=np.ones(LISTED_USERS))
    tested = effect(measured, variants, ("old", "new"), np.zeros((LISTED_USERS, 0)), Plan(once=True))
    return interleaved.decided, tested.decided


def share(of: Callable[[np.random.Generator], tuple[bool, bool]], count: int, rng: np.random.Generator) -> FloatArray:
    """How often, of so many worlds."""
    return np.mean([of(rng) for _ in range(count)], axis=0, dtype=np.float64)


def page(worlds: int, rng: np.random.Generator) -> str:
    """The figures beside what they should be."""
    same = [peeked(0.0, rng) for _ in range(worlds)]
    better = [peeked(LIFT, rng) for _ in range(worlds)]
    right, wrong = (share(partial(split_doubted, kept), worlds, rng) for kept in (1.0, 0.85))
    lists = max(1, worlds // 3)
    equal, preferred = (share(partial(lists_told_apart, times), lists, rng) for times in (1.0, 1.6))

    def rate(runs: list[Peeked], name: str) -> str:
        return f"{np.mean([getattr(run, name) for run in runs]):.1%}"

    return "\n".join([
        "# How far online decisions can be trusted",
        "",
        "Written by `python -m benchmarks.decision_quality`; do not edit. Everything is simulated, so the truth is "
        f"known; {worlds} worlds a row, {worlds // 3} of interleaving; seed 0; {datetime.now(UTC).date().isoformat()}, "
        "2 cores, no accelerator.",
        "",
        "## Off-policy estimates",
        "",
        "| rows | estimator | mean error, standard errors | variance over ips' | intervals that hold the truth |",
        "|---|---|---|---|---|",
        *(row for rows in LOGS for row in off_policy_rows(worlds, rows, rng)),
        "",
        f"## Experiments ({USERS:,} users, looked at after each {LOOK})",
        "",
        "| what | should be | is |",
        "|---|---|---|",
        f"| equal variants ever told apart, interval valid at every look | at most 5 % | {rate(same, 'ever')} |",
        f"| the truth ever left out, a variant better by {LIFT:.0%} | at most 5 % | {rate(better, 'ever_off')} |",
        f"| equal variants told apart at the last look, usual interval | 5 % | {rate(same, 'usual_last')} |",
        f"| the same at any look: what peeking does | | {rate(same, 'usual_ever')} |",
        f"| better by {LIFT:.0%}: found at the last look, usual interval | | {rate(better, 'usual_last')} |",
        f"| the same, interval valid at every look | | {rate(better, 'last')} |",
        f"| the same without CUPED | | {rate(better, 'last_without')} |",
        f"| right split ever doubted (p < {MISMATCH}) | at most {MISMATCH:.0%} | {right[0]:.1%} |",
        f"| the same by chi-square at every look | | {right[1]:.1%} |",
        f"| split with 15 % of one side lost found | | {wrong[0]:.1%} |",
        f"| interleaving, {LISTED_USERS} users: equal models told apart | at most 5 % | {equal[0]:.1%} |",
        f"| a model whose own items are clicked 1.6 times as often found | | {preferred[0]:.1%} |",
        f"| the same by an A/B test of as many users, one look | | {preferred[1]:.1%} |",
        "",
    ])


def main() -> None:
    """Simulates, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.worlds, np.random.default_rng(0)), encoding="utf-8")


if __name__ == "__main__":
    main()
