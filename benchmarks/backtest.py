"""What fresh models are worth, by `recsys backtest` on real logs: `python -m benchmarks.backtest [--only NAME]`.

    globo-clicks       news clicks, one day hour by hour; SASRec and Markov counts, each never trained again, trained on
                       (SASRec) or trained anew before every hour
    ml-latest-small    MovieLens, three years by periods of four weeks, the same

Both logs are read from RECSYS_DATA; data, runs and figures are kept below --work, and what is there is not done again.
The figures of one day of clicks are also counted by a loop over single events, without any of the code that they are
from.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.backtest import backtest
from pipelines.backtest_results import Backtest
from pipelines.ingest import IngestConfig, ingest
from pipelines.replay import BacktestConfig
from pipelines.reporter import Reporter

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


@dataclass(frozen=True, kw_only=True)
class Log:
    """Where a log is from, and how it is replayed."""

    name: str
    title: str
    pattern: str
    files: int
    mapping: dict[str, str]
    every: str
    begin: str
    end: str
    max_len: int


LOGS = (
    Log(
        name="globo-clicks",
        title="News clicks of Globo.com, one day by the hour",
        pattern="clicks_hour_*.csv.gz",
        files=90,
        mapping={"item_id": "click_article_id", "timestamp": "click_timestamp"},
        every="1h",
        begin="2017-10-02T00:00",
        end="2017-10-03T00:00",
        max_len=20,
    ),
    Log(
        name="ml-latest-small-2016",
        title="MovieLens latest-small, by four weeks",
        pattern="ratings.csv.gz",
        files=1,
        mapping={"user_id": "userId", "item_id": "movieId"},
        every="4w",
        begin="2013-01-01",
        end="2016-10-17",
        max_len=50,
    ),
)


def main() -> None:
    """Replays what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[log.name for log in LOGS], help="replay this log, and write no page")
    parser.add_argument("--work", type=Path, default=Path("build/backtest"), help="where data and figures are kept")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    arguments = parser.parse_args()
    chosen = [log for log in LOGS if arguments.only in {None, log.name}]
    results = {log.name: [replayed(log, arguments.work, model) for model in ("markov", "sasrec")] for log in chosen}


def replayed(log: Log, work: Path, model: str) -> Backtest:
    """The figures of one model on one log."""
    by_gradient = model == "sasrec"
    settings = {"model.max_len": log.max_len} | SMALL if by_gradient else {}
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
            warm_settings=texts(ONCE if by_gradient else {}),
        ),
        Reporter(),
    )


def texts(settings: dict[str, float]) -> tuple[str, ...]:
    """As `--set` takes them."""
    return tuple(f"{key}={value}" for key, value in settings.items())


def ingested(log: Log, work: Path) -> Path:
    """The log as a dataset, read once."""
    out = work / log.name
    if not out.exists():
        files = sorted((DATA / log.name).glob(log.pattern))[: log.files]
        ingest(IngestConfig(sources=tuple(files), out=out, mapping=log.mapping), Reporter())
    return out


if __name__ == "__main__":
    main()
