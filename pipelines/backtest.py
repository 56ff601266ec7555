"""`recsys backtest`: a log is replayed period by period, to see what training again is worth.

    events before a period -> learn what each policy learns anew -> rank the period's events -> they join the log

Each event is predicted from everything its user did before it, in that period too, by a model that has learned from
what lay before the period; as in the service, items that a model was not taught are neither listed nor read.

    OUT/settings.json                log and settings: the same command goes on with these
    OUT/periods/<number>/            cases.parquet (a rank for every policy and floor), manifest.json
    OUT/work/<number>/               data and runs of the first period and of the latest, until all are done
    OUT/backtest.json                written when every period is there
"""

import json
import shutil

from pipelines.backtest_results import Backtest, summed_up
from pipelines.replay import BacktestConfig, Replay, open_replay
from pipelines.replay_period import play
from pipelines.reporter import Reporter
from pipelines.run_lock import one_at_a_time
from recsys.errors import DataError
from recsys.steps import write_json

SETTINGS, RESULT, LOCK = "settings.json", "backtest.json", "run.lock"
OWN = {SETTINGS, RESULT, LOCK, "periods", "work"}


def backtest(config: BacktestConfig, reporter: Reporter) -> Backtest:
    """Replays the periods that are not there yet, and sums up all."""
    replay = open_replay(config)
    with one_at_a_time(config.out / LOCK):
        begin_or_continue(replay)
        with reporter.task(f"backtest {config.model}", len(replay.periods)) as advance:
            for period in replay.periods:
                if not replay.folder(period).is_dir():
                    play(replay, period, reporter)
                advance(1)
        result = summed_up(replay)
        write_json(config.out / RESULT, result.as_dict())
        shutil.rmtree(config.out / "work", ignore_errors=True)
    return result


def begin_or_continue(replay: Replay) -> None:
    """Leaves `out` holding this replay's settings: new, or of the same log and settings."""
    out = replay.config.out
    path = out / SETTINGS
    if not path.exists():
        if foreign := sorted(entry.name for entry in out.iterdir() if entry.name not in OWN):
            raise DataError(f"backtest: {out} holds {foreign[0]} and no backtest; choose another --out.")
        write_json(path, replay.settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [key for key, value in replay.settings.items() if before.get(key) != value]:
        raise DataError(
            f"backtest: {out} holds one with {changed[0]}={before.get(changed[0])}, not "
            f"{replay.settings[changed[0]]}; repeat its command to go on, or choose another --out."
        )
