"""Spark and Polars write the same files, to the byte, whatever the log and whoever dies on the way.

Two executors, each a process of its own, and one session for all tests of this file.
"""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import run_recsys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines.ingest
from pipelines import spark_ingest
from pipelines.ingest import IngestConfig, ingest
from pipelines.prepare import PrepareConfig, prepare
from pipelines.spark_engine import spark_session
from recsys.errors import ConfigError, DataError
from recsys.partitions import num_parts
from recsys.steps import read_manifest

MASTER = "local-cluster[2,1,1024]"
EVENTS_PER_PART = 30
ENGINES = ("polars", "spark")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """The session that every job of this file runs in."""
    for module in ("pyspark", "pyarrow"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install 'recsys[spark]'")
    if shutil.which("java") is None:
        pytest.skip("no Java; apt-get install openjdk-17-jre-headless")
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # executors cannot import tests
    with spark_session(MASTER) as session:
        yield session


def with_spark(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs the session; left out unless asked for by `-m spark` (`make test-spark`)."""
    return pytest.mark.spark(pytest.mark.usefixtures("spark")(test))


def said(folder: Path, step: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Hashes of all files, and counts."""
    manifest = read_manifest(folder, step)
    return manifest["files"], manifest["counts"]


def ingested(folder: Path, sources: list[Path], **values: Any) -> Path:
    """The dataset of both engines, which are alike."""
    for engine in ENGINES:
        config = IngestConfig(sources=tuple(sources), out=folder / engine, engine=engine, master=MASTER, **values)
        ingest(config)
    assert said(folder / "spark", "ingest") == said(folder / "polars", "ingest")
    return folder / "polars"


def prepared(folder: Path, dataset: Path, **values: Any) -> Path:
    """What both engines make of a dataset, which is alike."""
    for engine in ENGINES:
        out = folder / f"prepared-{engine}"
        prepare(PrepareConfig(dataset=dataset, out=out, engine=engine, master=MASTER, overwrite=True, **values))
    assert said(folder / "prepared-spark", "prepare") == said(folder / "prepared-polars", "prepare")
    return folder / "prepared-spark"


EVENT = st.tuples(
    st.sampled_from(["ann", "bob", "çho", "𝄞", "z z", "ann/1", ""]),
    st.sampled_from([*"abcdefg", ""]),
    st.integers(1_600_000_000, 1_600_000_040).map(lambda second: second * 7 % 200 * 60 + 1_600_000_000) | st.just("?"),
    st.sampled_from(["1", "2.5", "", "many"]),
)


def written(folder: Path, rows: list[tuple[Any, ...]], files: int) -> list[Path]:
    """CSV files that share the rows."""
    paths = []
    for number in range(files):
        path = folder / f"{number}.csv"
        lines = [",".join(map(str, row)) for row in rows[number::files]]
        path.write_text("\n".join(["user_id,item_id,timestamp,value", *lines]) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


@with_spark
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rows=st.lists(EVENT, min_size=40, max_size=120),
    files=st.integers(1, 4),
    gap=st.sampled_from([0.0, 60.0]),
    least=st.integers(1, 2),
)
def test_random_logs(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    files: int,
    gap: float,
    least: int,
) -> None:
    """Bad rows, duplicates, ties, odd ids, several parts; then sessions and a k-core, or neither."""
    folder = tmp_path_factory.mktemp("log")
    always = [(user, item, 1_600_000_000 + 60 * place, "1") for place, item in enumerate("abcabc") for user in "uvw"]
    with pytest.MonkeyPatch.context() as patch:
        for module in (spark_ingest, pipelines.ingest):
            patch.setattr(module, "num_parts", lambda events: num_parts(events, EVENTS_PER_PART))
        dataset = ingested(folder, written(folder, [*rows, *always, *rows[:5]], files))
    prepared(folder, dataset, split="last-item", session_gap=gap, min_user_events=least, min_item_events=least)


@with_spark
def test_a_log_that_only_has_an_order(tmp_path: Path) -> None:
    lines = [f"u{user} " + " ".join(f"i{(user * place) % 9}" for place in range(1, 8)) for user in range(12)]
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines[number::3]) + "\n")
    dataset = ingested(tmp_path, [tmp_path / f"{number}.txt" for number in (2, 0, 1)], format="sequences")
    prepared(tmp_path, dataset, split="last-item", repeats="collapse")


@with_spark
def test_weights_and_the_real_split_go_along(tmp_path: Path) -> None:
    rows = [(f"u{event % 7}", f"i{event * event % 11}", 1_600_000_000 + 60 * event, "1") for event in range(150)]
    dataset = ingested(tmp_path, written(tmp_path, rows, 2))
    (part,) = (dataset / "events").iterdir()
    pl.read_parquet(part).with_columns(weight=pl.int_range(pl.len()).cast(pl.Float32) / 200).write_parquet(part)
    found = prepared(tmp_path, dataset, min_item_events=2)
    assert (found / "sequences" / "weight.npy").is_file()


def kill_executor_once(marker: Path) -> None:
    """Ends the process that runs this Python worker (its parent's parent), the first time it is called."""
    if marker.exists():
        return
    marker.touch()
    stat = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8")
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)


def dying(work: Callable[..., Iterator[Any]], marker: Path, batches: Any, **values: Any) -> Iterator[Any]:
    """`work`, whose executor is killed when the first of its results is there."""
    for batch in work(batches, **values):
        if "folder" in values and not marker.exists():
            (values["folder"] / ".part-00000.parquet.1").write_bytes(b"half")
        kill_executor_once(marker)
        yield batch


@with_spark
def test_a_killed_executor_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is killed while sources are read, one after it wrote a part and before it said so."""
    for name in ("_cleaned", "_write_parts"):
        work = getattr(spark_ingest, name)
        monkeypatch.setattr(spark_ingest, name, partial(dying, work, tmp_path / name))
    rows = [(f"u{event % 17}", f"i{event * event % 23}", 1_600_000_000 + event // 3, "1") for event in range(600)]
    ingested(tmp_path, written(tmp_path, [*rows, *rows[:40]], 5))
    assert (tmp_path / "_cleaned").exists()
    assert (tmp_path / "_write_parts").exists()
    assert not [path.name for path in (tmp_path / "spark" / "events").iterdir() if path.name.startswith(".")]


@with_spark
def test_both_engines_refuse_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text("user_id,item_id,timestamp\na,x,1600000000\nb,x,1600000001\n")
    (tmp_path / "bad.csv").write_text("who,what,timestamp\na,x,1600000000\n")
    (tmp_path / "untimed.csv").write_text("user_id,item_id\na,x\n")
    (tmp_path / "empty.csv").write_text("user_id,item_id,timestamp\n,x,1600000000\na,,1600000000\n")
    for names in (["good", "bad"], ["good", "untimed"], ["empty"]):
        texts = set()
        for engine in ENGINES:
            sources = tuple(tmp_path / f"{name}.csv" for name in names)
            with pytest.raises((ConfigError, DataError)) as error:
                ingest(IngestConfig(sources=sources, out=tmp_path / "out", engine=engine, master=MASTER))
            texts.add(f"{type(error.value).__name__}: {error.value}")
        assert len(texts) == 1, texts
    dataset = ingested(tmp_path, [tmp_path / "good.csv"])
    for engine in ENGINES:
        with pytest.raises(DataError, match="0 users and 0 items are left of 2 events with min_user_events=2"):
            prepare(PrepareConfig(dataset=dataset, out=tmp_path / "out", engine=engine, min_user_events=2))
    assert not (tmp_path / "out").exists()


def test_a_master_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    master = ("--engine", "spark", "--master", "spark://127.0.0.1:1")
    code, _, error = run_recsys("ingest", tmp_path / "log.csv", "--out", tmp_path / "out", *master)
    assert code == 2
    assert "engine spark: cannot reach --master spark://127.0.0.1:1 ([Errno 111] Connection refused)" in error


def test_a_machine_without_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    code, _, error = run_recsys("ingest", tmp_path / "log.csv", "--out", tmp_path / "out", "--engine", "spark")
    assert code == 2
    assert "engine spark: no Java was found; install JDK 17" in error


def test_an_installation_without_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "pyspark"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    code, _, error = run_recsys("ingest", tmp_path / "log.csv", "--out", tmp_path / "out", "--engine", "spark")
    assert code == 1
    assert "this command needs pyspark; install it with pip install 'recsys[spark]'" in error
