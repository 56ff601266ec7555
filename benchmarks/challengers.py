"""Does the gate keep worse models out, and let better ones in? `python -m benchmarks.challengers [--trials N]`.

MovieLens latest-small (RECSYS_DATA), split by time as the nightly job does. A small SASRec is champion. Challengers are
trained with other seeds, evaluated, compared and put before the gate of `recsys run`:

    wrong learning rate    a thousand times too low, or a hundred times too high
    shuffled labels        items of the training events change places
    stale data             learned from the first 60 % of the log, judged with rows for what came since

A better challenger is a champion's equal beside a champion of a tenth of the steps. Of its cases, as many users are
drawn again and again as the comparison says are needed to see the difference four times in five; how often it does is
the power. What is there is not trained again.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from pipelines import train as train_module
from pipelines.compare import CompareConfig, Comparison, compare
from pipelines.decision import gate
from pipelines.evaluate import CASES, EvaluateConfig, evaluate
from pipelines.ingest import IngestConfig, ingest
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, iso, prepare
from pipelines.reporter import Reporter
from recsys.comparison import PairedCases
from recsys.partitions import write_events
from recsys.runs import open_run
from recsys.schema import open_dataset
from recsys.steps import writing_step
from recsys.training import Trainer

DATA = Path(os.environ.get("RECSYS_DATA", "../shared/data"))
PAGE = Path("docs/challengers.md")
KINDS = ("wrong learning rate", "shuffled labels", "stale data")
STALE_SHARE = 0.6
MIN_ITEM_EVENTS = 20
RATE = 0.004
SMALL = {
    "model.max_len": 20,
    "model.embedding_dim": 16,
    "model.num_blocks": 1,
    "model.num_heads": 1,
    "model.ffn_dim": 32,
    "model.dropout": 0.1,
    "training.batch_size": 128,
    "training.epochs": 4,
    "training.epoch_batches": 40,
    "training.warmup_steps": 10,
    "training.learning_rate": RATE,
    "training.validation_cases": 1000,
}
WRONG_RATES = (RATE / 1000, RATE * 100)
WEAK = {"training.epochs": 1, "training.epoch_batches": 16}
POWER_TRIALS, POWER_DRAWS = 400, 1000
STATED = 0.8
QUIET = Reporter(quiet=True)


def main() -> None:
    """Runs the trials that are missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="worse challengers")
    parser.add_argument("--work", type=Path, default=Path("build/challengers"))
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    old, new = prepared(arguments.work)
    champion = trained(new, arguments.work / "champion", seed=0)
    results = arguments.work / "results.jsonl"
    done = len(results.read_text().splitlines()) if results.exists() else 0
    for number in range(done, arguments.trials):
        found = trial(KINDS[number % len(KINDS)], number + 1, arguments.work / "challenger", old, new, champion)
        with results.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)
    weak = trained(new, arguments.work / "weak", seed=0, changes=WEAK)
    better = compared(weak, trained(new, arguments.work / "better", seed=1))
    arguments.out.write_text(page(read(results), better, power(weak, arguments.work / "better", better)), "utf-8")


def prepared(work: Path) -> tuple[Path, Path]:
    """The log as it was when stale models were trained, and as it is; rows keep their meaning."""
    dataset, past, old, new = (work / name for name in ("dataset", "past", "old", "new"))
    if not dataset.exists():
        source = DATA / "ml-latest-small-2016" / "ratings.csv.gz"
        ingest(IngestConfig(sources=(source,), out=dataset, mapping={"user_id": "userId", "item_id": "movieId"}))
    if not past.exists():
        whole = open_dataset(dataset)
        events = whole.events()
        until = int(events["timestamp"].quantile(STALE_SHARE) or 0)
        with writing_step("ingest", past, config={"until": iso(until)}, inputs=[dataset]) as step:
            write_events(events.filter(pl.col("timestamp") < until), step.folder / "events")
            whole.items().write_parquet(step.folder / "items.parquet")
            step.counts["time"] = whole.time
    if not old.exists():
        prepare(PrepareConfig(dataset=past, out=old, min_item_events=MIN_ITEM_EVENTS))
    if not new.exists():
        prepare(PrepareConfig(dataset=dataset, out=new, min_item_events=MIN_ITEM_EVENTS, extend=old))
    return old, new


def trial(kind: str, seed: int, out: Path, old: Path, new: Path, champion: Path) -> dict[str, Any]:
    """One worse challenger before the gate."""
    for folder in (out, out.with_name("stale")):
        shutil.rmtree(folder, ignore_errors=True)
    if kind == "wrong learning rate":
        rate = WRONG_RATES[seed % len(WRONG_RATES)]
        trained(new, out, seed, {"training.learning_rate": rate})
    elif kind == "shuffled labels":
        with shuffled(seed):
            trained(new, out, seed)
    else:
        stale = trained(old, out.with_name("stale"), seed, judged=False)
        trained(new, out, seed, {"training.epochs": 0}, init=stale)
    comparison = compared(champion, out)
    action, _ = gate(comparison)
    return {
        "kind": kind,
        "seed": seed,
        "action": action,
        "verdict": comparison.verdict,
        "broken": [check.figure for check in comparison.broken],
        "champion": comparison.headline.mean_a,
        "challenger": comparison.headline.mean_b,
        "low": comparison.headline.low,
        "high": comparison.headline.high,
    }


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Trainings learn from histories whose items have changed places."""

    def trainer(model: Any, store: Any, *others: Any) -> Trainer:
        mixed = np.random.default_rng(seed).permutation(np.asarray(store.item_idx))
        return Trainer(model, replace(store, item_idx=mixed), *others)

    with patch.object(train_module, "Trainer", trainer):
        yield


def trained(
    data: Path,
    out: Path,
    seed: int,
    changes: dict[str, float] | None = None,
    init: Path | None = None,
    judged: bool = True,
) -> Path:
    """A run on training and validation events, nothing held back; evaluated unless it will not be judged."""
    if not out.exists():
        settings = tuple(f"{key}={value}" for key, value in (SMALL | (changes or {})).items())
        config = TrainConfig(
            data=data,
            model="sasrec",
            out=out,
            settings=settings,
            init=init,
            fit_on="train+validation",
            seed=seed,
            tracking=False,
        )
        train_module.train(config, QUIET)
    if judged and not (out / "evaluation").exists():
        evaluate(EvaluateConfig(runs=(out,)), QUIET)
    return out


def compared(base: Path, run: Path) -> Comparison:
    """As `recsys run` compares, with its standard guardrails."""
    [comparison] = compare(CompareConfig(base=base, runs=(run,)))
    return comparison


def power(base: Path, run: Path, comparison: Comparison) -> tuple[int, float]:
    """Users that should show the difference four times in five, and how often so many, drawn anew, do."""
    cases = [pl.read_parquet(open_run(folder).evaluation("test") / CASES) for folder in (base, run)]
    users = comparison.headline.users_for(comparison.headline.difference)
    rng, known = np.random.default_rng(0), cases[0]["user_idx"].unique().to_numpy()
    seen = 0
    for _ in range(POWER_TRIALS):
        chosen = pl.DataFrame({"user_idx": rng.choice(known, users), "copy": np.arange(users, dtype=np.int32)})
        drawn = [
            chosen.join(table, on="user_idx", maintain_order="left").with_columns(user_idx=pl.col("copy")).drop("copy")
            for table in cases
        ]
        found = PairedCases.of(*drawn, (10,), POWER_DRAWS, int(rng.integers(1 << 31))).differences("all")[0]
        seen += found.decided and found.difference > 0
    return users, seen / POWER_TRIALS


def read(path: Path) -> list[dict[str, Any]]:
    """Results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def page(results: list[dict[str, Any]], better: Comparison, found: tuple[int, float]) -> str:
    """Tables."""
    users, share = found
    lines = []
    for kind in KINDS:
        own = [entry for entry in results if entry["kind"] == kind]
        counts = [sum(entry["action"] == action for entry in own) for action in ("replace", "keep", "refuse")]
        figures = [entry["challenger"] for entry in own]
        spread = f"{min(figures):.4f} to {max(figures):.4f}" if own else "-"
        lines.append(f"| {kind} | {len(own)} | {' | '.join(map(str, counts))} | {spread} |")
    verdict, action = better.verdict, gate(better)[0]
    return "\n".join([
        "# Challengers before the gate",
        "",
        "Written by `python -m benchmarks.challengers`; do not edit. MovieLens latest-small, items with "
        f"{MIN_ITEM_EVENTS} events or more, split by time, full ranking; {better.headline.cases} test cases of "
        f"{better.headline.users} users. {datetime.now(UTC).date().isoformat()}, 2 cores, no accelerator.",
        "",
        f"Champion: a small SASRec (width 16, one block, 160 steps), NDCG@10 {results[0]['champion']:.4f}. Each "
        "challenger has another seed, is trained, evaluated, compared and put before the gate of `recsys run`.",
        "",
        "| worse challenger | trials | became champion | champion stays | refused | NDCG@10 of the challengers |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        f"All together {sum(entry['action'] == 'replace' for entry in results)} of {len(results)} became champion "
        "(asked: 0 of 100). Wrong learning rates: "
        f"{' and '.join(f'{rate:g}' for rate in WRONG_RATES)} in turn, {RATE:g} being right.",
        "",
        "A better one: the same settings beside a champion of a tenth of the steps, NDCG@10 "
        f"{better.headline.mean_a:.4f} and {better.headline.mean_b:.4f}; verdict: {verdict}, the gate says {action}. "
        f"The comparison states that {users} users would show this difference four times in five. Of {POWER_TRIALS} "
        f"draws of so many users, {share:.1%} did (stated: {STATED:.0%}).",
        "",
    ])


if __name__ == "__main__":
    main()
