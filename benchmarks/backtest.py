"""What fresh models are worth, by `recsys backtest` on real logs: `python -m benchmarks.backtest [--only NAME]`.

    globo-clicks       news clicks, one day hour by hour; SASRec and Markov counts, each never trained again, trained on
                       (SASRec) or trained anew before every hour
    ml-latest-small    MovieLens, more than two years by the quarter (13 weeks), the same

Both logs are read from RECSYS_DATA; data, runs and figures are kept below --work, and what is there is not done again.
The figures of one day of clicks are also counted by a loop over single events, without any of the code that they are
from.
"""

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipelines.backtest import backtest
from pipelines.backtest_report import PLOTS
from pipelines.backtest_results import Backtest
from pipelines.ingest import IngestConfig, ingest
from pipelines.prepare import instant
from pipelines.replay import BacktestConfig
from pipelines.reporter import Reporter
from recsys.periods import period_length
from recsys.schema import open_dataset

DATA = Path(os.environ.get("RECSYS_DATA", "../shared/data"))
PAGE = Path("docs/backtest.md")
SMALL = {
    "model.embedding_dim": 32,
    "model.num_blocks": 1,
    "model.num_heads": 1,
    "model.ffn_dim": 64,
    "model.dropout": 0.1,
    "training.learning_rate": 0.004,
    "training.batch_size": 256,
    "training.epochs": 3,
    "training.epoch_batches": 200,
}
ONCE = {"training.epochs": 1, "training.warmup_steps": 10}


MODELS = ("markov", "sasrec")


@dataclass(frozen=True, kw_only=True)
class Log:
    """Where a log is from, and how it is replayed."""

    name: str
    title: str
    pattern: str
    files: int
    mapping: tuple[tuple[str, str], ...]
    every: str
    begin: str
    end: str
    max_len: int
    changes: tuple[tuple[str, float], ...] = ()
    warm_changes: tuple[tuple[str, float], ...] = ()


LOGS = (
    Log(
        name="globo-clicks",
        title="News clicks of Globo.com, one day by the hour",
        pattern="clicks_hour_*.csv.gz",
        files=90,
        mapping=(("item_id", "click_article_id"), ("timestamp", "click_timestamp")),
        every="1h",
        begin="2017-10-02T00:00",
        end="2017-10-03T00:00",
        max_len=20,
    ),
    Log(
        name="ml-latest-small-2016",
        title="MovieLens latest-small, by the quarter",
        pattern="ratings.csv.gz",
        files=1,
        mapping=(("user_id", "userId"), ("item_id", "movieId")),
        every="13w",
        begin="2014-07-01",
        end="2016-10-17",
        max_len=50,
        changes=(("training.batch_size", 64), ("training.epochs", 8)),
        warm_changes=(("training.epochs", 2),),
    ),
)


def main() -> None:
    """Replays what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[log.name for log in LOGS], help="this log alone")
    parser.add_argument("--work", type=Path, default=Path("build/backtest"), help="where data and figures are kept")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write, with its plots beside it")
    arguments = parser.parse_args()
    chosen = [log for log in LOGS if arguments.only in {None, log.name}]
    results = {log: [replayed(log, arguments.work, model) for model in MODELS] for log in chosen}
    sections = [section(log, markov, sasrec, arguments.out) for log, (markov, sasrec) in results.items()]
    checks = [
        f"{log.title}: by a loop over single events that shares no code with it, NDCG@10 of Markov counts (`never` and "
        f"`cold`) in every period of these {cases} cases differs by at most {largest:.0e}."
        for log, (markov, _) in results.items()
        for cases, largest in [largest_difference(log, arguments.work, markov)]
        if markov.seen == "exclude"
    ]
    arguments.out.write_text(page(sections, checks), encoding="utf-8")


def page(sections: list[str], checks: list[str]) -> str:
    """Everything."""
    settings = " ".join(f"`{key}={value}`" for key, value in SMALL.items())
    return "\n".join([
        "# What fresh models are worth",
        "",
        f"Written by `python -m benchmarks.backtest`; do not edit. {datetime.now(UTC).date().isoformat()}, 2 cores, no "
        "accelerator, beside other work: seconds are to be compared with each other alone. Seed 0.",
        "",
        "`recsys backtest` predicts each event from all that its user did before it, by a model that has learned from "
        "what lay before the period ([pipeline.md](pipeline.md#backtest)). `never` is the model of before the first "
        "period; `warm` goes on from the last one's weights; `cold` begins anew. Floors are counted before every "
        "period. Differences are paired by event, users are resampled, p-values corrected for the number of pairs "
        "(Holm); all figures are of the periods after the first, in which the policies are one model.",
        "",
        f"SASRec is small and trained briefly, so that a day of hourly trainings could be paid for: {settings}; warm: "
        f"{' '.join(f'`{key}={value}`' for key, value in ONCE.items())}. Each training draws its batches from all that "
        "is known, old events as often as new ones.",
        "",
        *sections,
        "## Counted once more",
        "",
        *(f"- {text}" for text in checks),
        "",
        "## What was not done",
        "",
        "Not affordable on two shared cores, and not run: more than one day of hourly trainings, longer trainings or a "
        "full-size SASRec, more than one seed, trainings that prefer new events.",
        "",
    ])


def section(log: Log, markov: Backtest, sasrec: Backtest, out: Path) -> str:
    """Tables, sentences and plots of a log."""
    image = out.with_name(f"backtest-{log.name}.png")
    draw(sasrec, image)
    rows = [("sasrec", row) for row in sasrec.overall] + [("markov", row) for row in markov.overall]
    names = {row.name for row in sasrec.overall if row.name in sasrec.floors}
    first, last = sasrec.periods[0].start, sasrec.periods[-1].start
    return "\n".join([
        f"## {log.title}",
        "",
        f"{sasrec.num_periods} periods of {log.every} with events, from {first} to {last}; "
        f"{sasrec.overall[0].cases} cases after the first; seen items are "
        f"{'kept' if sasrec.seen == 'keep' else 'excluded'}. SASRec's own here: {', '.join(own_settings(log))}.",
        "",
        "| model | trained again | NDCG@10 | HR@10 | new items | seconds of training |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name if row.name in names else model} | {'floor' if row.name in names else row.name} | "
            f"{row.ndcg:.4f} | {row.hit_rate:.4f} | {row.new_item_share:.1%} | {row.training_seconds:.1f} |"
            for model, row in rows
        ),
        "",
        *(f"- SASRec: {text}" for text in sasrec.sentences()),
        *(f"- Markov: {text}" for text in markov.sentences()),
        "",
        f"![quality and cost over time]({image.name})",
        "",
        f"<details><summary>Every period (SASRec, {log.name})</summary>",
        "",
        *by_period(sasrec),
        "",
        "</details>",
        "",
    ])


def own_settings(log: Log) -> Iterator[str]:
    """What differs between logs."""
    yield f"`model.max_len={log.max_len}`"
    yield from (f"`{key}={value}`" for key, value in log.changes)
    yield from (f"warm `{key}={value}`" for key, value in log.warm_changes)


def by_period(result: Backtest) -> Iterator[str]:
    """NDCG@10 of the policies, new items, and seconds of training."""
    policies = result.policies
    yield (
        "| " + " | ".join(["period", "cases", *policies, *(f"{name}: new items, seconds" for name in policies)]) + " |"
    )
    yield "|---" * (2 + 2 * len(policies)) + "|"
    for number in dict.fromkeys(row.period for row in result.periods):
        rows = {row.name: row for row in result.periods if row.period == number}
        own = [rows[name] for name in policies]
        cells = [f"{row.ndcg:.4f}" for row in own]
        cells += [f"{row.new_item_share:.1%}, {row.training_seconds:.1f}" for row in own]
        yield f"| {str(own[0].start).removesuffix(':00+00:00')} | {own[0].cases} | {' | '.join(cells)} |"


def draw(result: Backtest, path: Path) -> None:
    """The plots of `recsys backtest --report`, one below the other."""
    figure = Figure(figsize=(9, sum(height for _, _, height in PLOTS)), layout="constrained")
    parts = figure.subfigures(len(PLOTS), height_ratios=[height for _, _, height in PLOTS])
    for part, (_, plot, _) in zip(np.ravel(parts), PLOTS, strict=True):
        plot(result)(part)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def largest_difference(log: Log, work: Path, result: Backtest) -> tuple[int, float]:
    """Cases, and the largest difference of NDCG@10 in any period, between a backtest of Markov counts and `by_hand`."""
    found = {(row.name, row.period): row for row in result.periods}
    sums: dict[tuple[str, int], list[float]] = defaultdict(list)
    for policy, number, gain in by_hand(log, work):
        sums[policy, number].append(gain)
    for key, gains in sums.items():
        if len(gains) != found[key].cases:
            raise SystemExit(f"{key}: {len(gains)} cases by hand, {found[key].cases} in the backtest")
    largest = max(abs(float(np.mean(gains)) - found[key].ndcg) for key, gains in sums.items())
    return sum(row.cases for (name, _), row in found.items() if name == "never"), largest


def by_hand(log: Log, work: Path) -> Iterator[tuple[str, int, float]]:
    """Policy, period and NDCG@10 of each event: how often its item followed the last known one, then its popularity.

    Seen items do not come back. All periods have events.
    """
    events = open_dataset(work / log.name).events().sort("timestamp", maintain_order=True)
    begin, end, length = instant(log.begin), instant(log.end), period_length(log.every)
    histories: dict[str, list[str]] = defaultdict(list)
    popularity, follows = Counter[str](), defaultdict[str, Counter[str]](Counter)
    charge: dict[str, tuple[Counter[str], dict[str, Counter[str]]]] = {}
    pending: list[tuple[str, str]] = []
    number = -1
    for user, item, time in events.select("user_id", "item_id", "timestamp").iter_rows():
        if time >= end:
            return
        if time >= begin and (time - begin) // length != number:
            number = (time - begin) // length
            for before, after in pending:
                popularity[after] += 1
                follows[before][after] += 1
            pending = []
            charge["cold"] = popularity, follows
            charge.setdefault("never", (Counter(popularity), {key: Counter(row) for key, row in follows.items()}))
            ordered = {name: np.sort(list(counts.values())) for name, (counts, _) in charge.items()}
        history = histories[user]
        for policy, (counts, rows) in charge.items():
            seen = [old for old in history if old in counts]
            row = rows.get(seen[-1], {}) if seen else {}
            rank = rank_by_hand(item, counts, row, ordered[policy], set(seen))
            yield policy, number, 1 / np.log2(1 + rank) if rank <= 10 else 0.0
        pending.append((history[-1] if history else "", item))
        history.append(item)


def rank_by_hand(item: str, counts: Counter[str], row: Mapping[str, int], ordered: np.ndarray, seen: set[str]) -> int:
    """Rank by (times in `row`, popularity), ties pessimistic; unknown and seen items are not listed."""
    own = row.get(item, 0), counts[item]
    if not own[1] or item in seen:
        return 1 << 30
    if own[0]:
        better = sum((times, counts[other]) >= own for other, times in row.items())
    else:
        as_popular = len(ordered) - int(np.searchsorted(ordered, own[1]))
        better = as_popular + sum(counts[other] < own[1] for other in row)
    return better - sum((row.get(other, 0), counts[other]) >= own for other in seen)


def replayed(log: Log, work: Path, model: str) -> Backtest:
    """The figures of one model on one log."""
    by_gradient = model == "sasrec"
    settings = {"model.max_len": log.max_len} | SMALL | dict(log.changes) if by_gradient else {}
    return backtest(
        BacktestConfig(
            dataset=ingested(log, work),
            out=work / f"{log.name}-{model}",
            model=model,
            every=log.every,
            floors=by_gradient,
            begin=log.begin,
            end=log.end,
            settings=texts(settings),
            warm_settings=texts(ONCE | dict(log.warm_changes) if by_gradient else {}),
        ),
        Reporter(),
    )


def texts(settings: Mapping[str, float]) -> tuple[str, ...]:
    """As `--set` takes them."""
    return tuple(f"{key}={value}" for key, value in settings.items())


def ingested(log: Log, work: Path) -> Path:
    """The log as a dataset, read once."""
    out = work / log.name
    if not out.exists():
        files = sorted((DATA / log.name).glob(log.pattern))[: log.files]
        ingest(IngestConfig(sources=tuple(files), out=out, mapping=dict(log.mapping)), Reporter())
    return out


if __name__ == "__main__":
    main()
