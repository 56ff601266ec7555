"""`recsys backtest`: every rank by hand, no look ahead, interruptions, what the command says."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from builders import Row, write_dataset
from command_line import run_recsys
from training import SMALL

from pipelines import replay_period
from pipelines.backtest import RESULT, backtest
from pipelines.backtest_results import Backtest, summed_up
from pipelines.loading import no_history, run_model
from pipelines.replay import BacktestConfig, Replay, open_replay
from pipelines.replay_period import CASES, play
from pipelines.reporter import Reporter
from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.prepared import open_prepared
from recsys.ranking import NOT_RETURNED
from recsys.runs import open_run
from recsys.steps import read_manifest
from recsys.training import Trainer

QUIET = Reporter(quiet=True)
MINUTE = 60_000_000
TRAINED = (*SMALL, "training.epochs=2", "training.checkpoint_seconds=0")
ONCE = ("training.epochs=1",)


def drifting_rows(seed: int = 0, users: int = 30, minutes: int = 12) -> list[Row]:
    """An event every two seconds; the items that are walked through move on, and users join."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    last: dict[int, int] = {}
    for time in range(minutes * 30):
        minute, user = time // 30, int(rng.integers(users // 2 + time * users // (2 * minutes * 30)))
        step = int(rng.integers(4)) if rng.random() < 0.3 else last.get(user, 0) + 1
        last[user] = step
        rows.append((f"u{user:03}", f"i{2 * minute + step % 9:03}", time * 2_000_000))
    return rows


ROWS = drifting_rows()


def config_of(
    folder: Path, rows: list[Row], model: str = "markov", name: str = "out", **changes: Any
) -> BacktestConfig:
    dataset = folder / "dataset"
    if not dataset.exists():
        write_dataset(dataset, rows)
    given: dict[str, Any] = {"every": "1m", "begin": "1970-01-01T00:08", "seen": "keep", "draws": 200}
    if model == "sasrec":
        given |= {"settings": TRAINED, "warm_settings": ONCE, "floors": False}
    return BacktestConfig(dataset=dataset, out=folder / name, model=model, **given | changes)


def played(config: BacktestConfig) -> Replay:
    """All periods, with the data and runs of the first and the last left there."""
    replay = open_replay(config)
    for period in replay.periods:
        play(replay, period, QUIET)
    return replay


def cases_of(replay: Replay, number: int) -> pl.DataFrame:
    return pl.read_parquet(replay.folder(replay.periods[number]) / CASES)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    return played(config_of(tmp_path_factory.mktemp("counted"), ROWS))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    return played(config_of(tmp_path_factory.mktemp("trained"), ROWS, model="sasrec"))


@pytest.mark.parametrize("number", [0, 2, 3])
@pytest.mark.parametrize("policy", ["never", "cold"])
def test_counts_equal_a_loop_over_single_events(counted: Replay, number: int, policy: str) -> None:
    period = counted.periods[number]
    learned_until = counted.periods[0 if policy == "never" else number].start
    expected = list(markov_by_hand(ROWS, learned_until, period.start, period.stop))
    found = cases_of(counted, number)
    assert {(user, time): rank for user, time, rank in expected} == {
        (row["user_id"], row["timestamp"]): row[policy] for row in found.iter_rows(named=True)
    }
    assert len(found) == len(expected) == 30
    counts = read_manifest(counted.folder(period), "backtest")["counts"]
    taught = {item for _, item, time in ROWS if time < learned_until}
    assert counts["new_items"][policy] == sum(
        item not in taught for _, item, time in ROWS if period.start <= time < period.stop
    )


def markov_by_hand(rows: list[Row], learned_until: int, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Rank of each event of a period: by how often an item followed the last known one, then by popularity."""
    popularity, follows, last = Counter[str](), Counter[tuple[str, str]](), dict[str, str]()
    for user, item, time in rows:
        if time < learned_until:
            popularity[item] += 1
            follows[last.get(user, ""), item] += 1
        elif start <= time < stop:
            own = (follows[last[user], item] if user in last else 0, popularity[item])
            better = sum(
                (follows[last[user], other] if user in last else 0, popularity[other]) >= own for other in popularity
            )
            yield user, time, better if item in popularity else NOT_RETURNED
        if item in popularity:
            last[user] = item


@pytest.mark.parametrize("policy", ["never", "warm", "cold"])
def test_a_network_equals_a_loop_over_single_histories(trained: Replay, policy: str) -> None:
    number = len(trained.periods) - 1
    folder = trained.work(trained.periods[0]) / "first" if policy == "never" else None
    folder = folder or trained.work(trained.periods[number]) / policy
    prepared, run = open_prepared(folder.parent / "prepared"), open_run(folder)
    _, model = run_model(run, prepared)
    vectors, rows = model.item_vectors().detach(), prepared.catalog.rows
    for row in cases_of(trained, number).iter_rows(named=True):
        earlier = [event for event in ROWS if event[0] == row["user_id"] and event[2] < row["timestamp"]]
        assert row["position"] == len(earlier)
        known = [(rows[item], time) for _, item, time in earlier if item in rows][-model.max_len :]
        if row["item_id"] not in rows:
            assert row[policy] == NOT_RETURNED
            continue
        if known:
            items, times = (torch.tensor([part]) for part in zip(*known, strict=True))
            history = Histories(items, times, torch.tensor([len(known)], dtype=torch.int32))
            with torch.no_grad():
                scores = (model.encode(history) @ vectors.T)[0]
        else:
            scores = no_history(prepared, run.fit_on).scores
        own = scores[rows[row["item_id"]]]
        assert row[policy] == int((scores[1:] >= own).sum())
    assert any(time >= trained.periods[number].start for _, _, time in ROWS)


def test_what_each_policy_learns_from(trained: Replay) -> None:
    first, last = trained.periods[0], trained.periods[-1]
    runs = {name: open_run(trained.work(last) / name) for name in ("warm", "cold")}
    assert "init" not in runs["cold"].config
    assert Path(runs["warm"].config["init"]).parts[-2:] == (f"{last.number - 1:04}", "warm")
    assert [runs[name].manifest["counts"]["epochs"] for name in ("warm", "cold")] == [1, 2]
    for run in runs.values():
        learned = run.prepared().training_events(run.fit_on)
        assert int(learned.stops.sum()) == sum(time < last.start for _, _, time in ROWS)
        assert learned.timestamps.max() < last.start
        assert set(run.prepared().catalog.item_ids) == {item for _, item, time in ROWS if time < last.start}
    seconds = [
        read_manifest(trained.folder(period), "backtest")["counts"]["training_seconds"] for period in (first, last)
    ]
    assert seconds[0]["never"] == seconds[0]["warm"] == seconds[0]["cold"] > 0
    assert seconds[1]["never"] == 0 < min(seconds[1]["warm"], seconds[1]["cold"])
    ranks = cases_of(trained, 0)
    assert ranks["never"].equals(ranks["warm"])
    assert ranks["never"].equals(ranks["cold"])


@pytest.mark.parametrize("model", ["markov", "sasrec"])
def test_what_comes_later_changes_nothing(tmp_path: Path, counted: Replay, trained: Replay, model: str) -> None:
    undisturbed = counted if model == "markov" else trained
    number = 1
    middle = undisturbed.periods[number].start + MINUTE // 2
    other = drifting_rows(seed=7)
    rows = [row if row[2] < middle else (row[0], f"{row[1]}x" if row[2] % 3 else row[1], row[2]) for row in other]
    rows = [row for row in ROWS if row[2] < middle] + [row for row in rows if row[2] >= middle]
    config = config_of(tmp_path, rows, model=model)
    replay = open_replay(config)
    for period in replay.periods[: number + 1]:
        play(replay, period, QUIET)
    assert cases_of(replay, 0).equals(cases_of(undisturbed, 0))
    before = pl.col("timestamp") < middle
    ours, theirs = cases_of(replay, number), cases_of(undisturbed, number)
    assert not ours.equals(theirs)
    assert ours.filter(before).equals(theirs.filter(before))
    assert len(ours.filter(before)) == 15


class Crash(BaseException):
    """The process ends here."""


def test_a_killed_backtest_goes_on(tmp_path: Path, trained: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, ROWS, model="sasrec")
    save, checkpoints = Trainer._save, []

    def saved(trainer: Trainer) -> None:
        save(trainer)
        checkpoints.append(trainer.progress.step)
        if len(checkpoints) in {5, 40, 75}:
            raise Crash

    monkeypatch.setattr(Trainer, "_save", saved)
    kills, finished = 0, dict[Path, int]()
    while True:
        try:
            result = backtest(config, QUIET)
            break
        except Crash:
            kills += 1
        done = {path: path.stat().st_mtime_ns for path in config.out.glob("periods/*/manifest.json")}
        assert finished.items() <= done.items(), "a finished period is not done again"
        finished = done
    assert kills == 3
    assert finished
    assert not (config.out / "work").exists()
    again = open_replay(config)
    for period in again.periods:
        assert cases_of(again, period.number).equals(cases_of(trained, period.number))
    assert without_seconds(result) == without_seconds(summed_up(trained))
    before = {path: path.stat().st_mtime_ns for path in config.out.glob("periods/**/*")}
    assert backtest(config, QUIET) == result
    assert before == {path: path.stat().st_mtime_ns for path in config.out.glob("periods/**/*")}
    with pytest.raises(DataError, match=r"out holds one with seed=0, not 1; repeat its command to go on, or choose"):
        backtest(config_of(tmp_path, ROWS, model="sasrec", seed=1), QUIET)


def without_seconds(result: Backtest) -> dict[str, Any]:
    text = json.dumps({key: value for key, value in result.as_dict().items() if key != "settings"}, default=str)
    return json.loads(re.sub(r'"training_seconds": [\d.e-]+', '"training_seconds": 0', text))


@pytest.fixture(scope="module")
def drifted(counted: Replay) -> Backtest:
    return summed_up(counted)


def test_figures_are_means_of_the_ranks(counted: Replay, drifted: Backtest) -> None:
    names = ("never", "cold", "popularity", "popularity-recent", "markov", "item-knn")
    assert [row.name for row in drifted.overall] == list(names)
    assert [(row.period, row.name) for row in drifted.periods] == [
        (period, name) for period in range(4) for name in names
    ]
    ranks = np.concatenate([cases_of(counted, number)["never"].to_numpy() for number in (1, 2, 3)])
    assert drifted.overall[0].cases == 90
    assert drifted.overall[0].ndcg == pytest.approx(sum(1 / np.log2(1 + rank) for rank in ranks if rank <= 10) / 90)
    assert drifted.overall[0].hit_rate == pytest.approx(sum(rank <= 10 for rank in ranks) / 90)
    assert drifted.overall[4].ndcg == drifted.overall[1].ndcg, "the floor is what the policy cold trains here"
    shares = [row.new_item_share for row in drifted.periods if row.name == "never"]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_freshness_is_worth_something_where_items_change(drifted: Backtest) -> None:
    fresh = drifted.versus[0]
    assert (fresh.a, fresh.b) == ("never", "cold")
    assert fresh.headline.difference == pytest.approx(drifted.overall[1].ndcg - drifted.overall[0].ndcg)
    assert fresh.headline.low > 0
    assert fresh.sentence().startswith("cold is better than never on ndcg@10 by ")
    assert [(entry.a, entry.b, entry.period) for entry in drifted.versus_by_period] == [
        ("never", "cold", period) for period in (1, 2, 3)
    ]
    best = max(drifted.overall[2:], key=lambda row: row.ndcg).name
    assert [(entry.a, entry.b) for entry in drifted.versus[1:]] == [(best, "never"), (best, "cold")]


def test_the_command_prints_writes_and_draws(tmp_path: Path, drifted: Backtest) -> None:
    write_dataset(tmp_path / "dataset", ROWS)
    arguments = ("backtest", tmp_path / "dataset", "--model", "markov", "--every", "1m", "--from", "1970-01-01T00:08")
    out = ("--seen", "keep", "--draws", 200, "--out", tmp_path / "out")
    code, output, _ = run_recsys(*arguments, *out, "--report", tmp_path / "page.html")
    assert code == 0
    assert "90 cases after the first period, of 4 from 1970-01-01T00:08:00+00:00" in " ".join(output.split())
    assert drifted.sentences()[0] in output
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"<(script|link|img)\b", page)
    assert not re.search(r'(src|href)="(?!#)', page)
    code, output, _ = run_recsys(*arguments, *out, "--json")
    assert code == 0
    found = json.loads(output)
    assert found["overall"][0]["ndcg"] == drifted.overall[0].ndcg
    assert found["versus"][0]["sentence"] == drifted.sentences()[0]
    assert found["versus_by_period"][0]["differences"][0]["low"] < 1
    assert found == json.loads((tmp_path / "out" / RESULT).read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ("often",)}, r"no policy 'often'; known are never, warm, cold"),
        ({"policies": ("warm",)}, r"'markov' counts, and has no weights to go on from; drop the policy warm"),
        ({"model": "dare"}, r"'dare' needs another model's run"),
        ({"model": "hierarchical"}, r"'hierarchical' needs another model's run"),
        ({"every": "1y"}, r"every='1y' is no length of time"),
        ({"model": "sasrec", "settings": ("model.dropuot=0",)}, r"no setting 'dropuot'"),
        ({"model": "sasrec", "warm_settings": ("training.user_share=0.5",)}, r"user_share=0.5 draws other users"),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, ROWS[:2], **changes)


def test_logs_that_cannot_be_replayed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "ordered", ROWS[:90], time="order")
    config = config_of(tmp_path, ROWS)
    with pytest.raises(DataError, match="ordered have an order but no time, and periods need one"):
        backtest(BacktestConfig(dataset=tmp_path / "ordered", out=tmp_path / "a", model="markov", every="1m"), QUIET)
    with pytest.raises(DataError, match="lie in 1 periods of 1d"):
        backtest(config_of(tmp_path, ROWS, every="1d", begin="1970-01-01T00:08"), QUIET)
    with pytest.raises(ConfigError, match="backtest: 'noon' is not an ISO date or time"):
        backtest(config_of(tmp_path, ROWS, begin="noon"), QUIET)
    config.out.mkdir()
    (config.out / "letters.txt").touch()
    with pytest.raises(DataError, match=r"out holds letters.txt and no backtest; choose another --out"):
        backtest(config, QUIET)


def test_a_period_of_nothing_but_new_items_is_missed_by_all(tmp_path: Path) -> None:
    rows = [(user, item if time < 540_000_000 else f"{item}-new", time) for user, item, time in ROWS]
    replay = played(config_of(tmp_path, rows, policies=("cold",)))
    assert (cases_of(replay, 1)["cold"] == NOT_RETURNED).all()
    assert (cases_of(replay, 1)["markov"] == NOT_RETURNED).all()
    assert not replay.work(replay.periods[1]).exists(), "nothing was learned for it"
    assert (cases_of(replay, 2)["cold"] < NOT_RETURNED).any()
    assert summed_up(replay).periods[5].new_item_share == 1


def test_nothing_is_kept_that_no_later_period_needs(trained: Replay) -> None:
    kept = sorted(path.name for path in (trained.config.out / "work").iterdir())
    assert kept == ["0000", "0002", "0003"]
    assert replay_period.last_warm([Path("0000")]) == Path("0000/first")
