"""Bad input: one clear line on standard error, exit code 1 or 2, and nothing half-written."""

import errno
import gzip
import json
import re
import socket
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from builders import random_rows, write_bundle, write_dataset
from command_line import run_recsys

from pipelines import cli
from pipelines.explained import extra_with
from pipelines.printing import print_json

GOOD = "user_id,item_id,timestamp\nann,a,100\nbob,b,200\nann,c,300\nbob,a,400\n"
MILLISECONDS = "user_id,item_id,timestamp\nann,a,1600000000000\nbob,b,1600000000001\nann,c,1600000000002\n"


@dataclass(frozen=True)
class World:
    """A folder with good data in it, for commands to be given something bad beside it."""

    folder: Path
    dataset: Path
    prepared: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the folder."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A dataset and prepared data, made once."""
    folder = tmp_path_factory.mktemp("good")
    dataset = write_dataset(folder / "dataset", random_rows(seed=1, users=9, items=14, events=160))
    code, _, error = run_recsys("prepare", dataset, "--out", folder / "prepared")
    assert code == 0, error
    return World(folder, dataset, folder / "prepared")


@pytest.fixture
def world(good: World, tmp_path: Path) -> World:
    """A fresh folder beside the good data."""
    return World(tmp_path, good.dataset, good.prepared)


Case = Callable[[World], list[object]]
"""Makes the bad input; gives the command's arguments."""


def ingesting(name: str, content: str | bytes, *options: str) -> Case:
    """`recsys ingest` of one file."""
    return lambda world: ["ingest", world.write(name, content), "--out", world.folder / "out", *options]


def preparing(rows: list[tuple[str, str, int]], *options: str, time: str = "timestamp") -> Case:
    """`recsys prepare` of a small dataset."""
    return lambda world: [
        *("prepare", write_dataset(world.folder / "small", rows, time=time), "--out", world.folder / "out"),
        *options,
    ]


def training(*options: str, model: str = "sasrec") -> Case:
    """`recsys train` on good data."""
    return lambda world: [
        *("train", world.prepared, "--model", model, "--out", world.folder / "out", "--no-tracking"),
        *options,
    ]


def training_with(config: str) -> Case:
    """`recsys train` with a config file."""
    return lambda world: [*training()(world), "--config", world.write("config.yaml", config)]


def altered_bundle(world: World) -> list[object]:
    """`recsys serve` of a bundle with one byte changed."""
    bundle = write_bundle(world.folder / "bundle")
    index = bundle / "index.faiss"
    index.write_bytes(index.read_bytes()[:-1] + b"\x07")
    return ["serve", bundle, "--port", "0"]


def existing_output(world: World) -> list[object]:
    """`recsys ingest` onto a folder that is there."""
    (world.folder / "out").mkdir()
    return ingesting("log.csv", GOOD)(world)


def output_below_a_file(world: World) -> list[object]:
    """`recsys ingest` into a folder that cannot be: its parent is a file."""
    log = world.write("log.csv", GOOD)
    return ["ingest", log, "--out", log / "deep" / "out"]


def pickled_matrix(world: World) -> list[object]:
    """A `.npy` that would run code when loaded."""
    path = world.folder / "log.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return ["ingest", path, "--columns", "user_id,item_id", "--out", world.folder / "out"]


ONE_USER = [("ann", f"i{number}", number) for number in range(9)]
ONE_ITEM = [(f"u{number}", "a", number) for number in range(9)]
SHORT = [(f"u{number // 2}", f"i{number}", number) for number in range(8)]
SPARSE = [(f"u{number}", f"i{number}", number) for number in range(9)]

CASES: dict[str, tuple[Case, int, str]] = {
    "no such file": (lambda w: ["ingest", w.folder / "no.csv", "--out", w.folder / "out"], 1, "no.csv: no such file"),
    "empty file": (ingesting("log.csv", ""), 1, "log.csv"),
    "header only": (ingesting("log.csv", "user_id,item_id,timestamp\n"), 1, "log.csv"),
    "unknown format": (ingesting("log.csv", GOOD, "--format", "xml"), 2, "'xml' is not one of"),
    "wrong format": (ingesting("log.parquet", GOOD), 1, "log.parquet"),
    "missing column": (ingesting("log.csv", "x;y\n1;2\n"), 2, "--map user_id=COLUMN"),
    "mapped column is not there": (ingesting("log.csv", GOOD, "--map", "user_id=uid"), 2, "no such column; it has"),
    "unknown role": (ingesting("log.csv", GOOD, "--map", "buyer=user_id"), 2, "buyer"),
    "map without a column": (ingesting("log.csv", GOOD, "--map", "user_id"), 2, "expected name=column"),
    "unparsable times": (
        ingesting("log.csv", "user_id,item_id,timestamp\nann,a,noon\nbob,b,dusk\n"),
        1,
        "all 2 rows were rejected",
    ),
    "milliseconds read as seconds": (
        ingesting("log.csv", MILLISECONDS, "--time-unit", "s"),
        1,
        "3 of 3 rows, read with --time-unit s, lie outside the years 1900 to 2261 (row 1: ",
    ),
    "only NaN values": (ingesting("log.csv", "user_id,item_id,rating\nann,a,nan\nbob,b,inf\n"), 1, "value"),
    "not UTF-8": (ingesting("log.csv", GOOD.encode() + b"z\xf6e,b,500\n"), 1, "--encoding"),
    "truncated gzip": (ingesting("log.csv.gz", gzip.compress(GOOD.encode() * 99)[:-20]), 1, "log.csv.gz"),
    "pickled matrix": (pickled_matrix, 1, "log.npy"),
    "output exists": (existing_output, 1, "--overwrite"),
    "output below a file": (output_below_a_file, 1, "log.csv/deep: not a directory"),
    "output in a file": (
        lambda w: [*ingesting("log.csv", GOOD)(w)[:2], "--out", w.folder / "log.csv" / "out"],
        1,
        "log.csv: not a directory",
    ),
    "not a dataset": (lambda w: ["prepare", w.folder, "--out", w.folder / "out"], 1, "recsys ingest"),
    "prepared data where a dataset is needed": (
        lambda w: ["prepare", w.prepared, "--out", w.folder / "out"],
        1,
        "was made by `recsys prepare`",
    ),
    "empty after k-core": (preparing(SPARSE, "--min-user-events", "5"), 1, "0 users and 0 items are left of 9 events"),
    "one user": (preparing(ONE_USER), 1, "1 users"),
    "one item": (preparing(ONE_ITEM), 1, "1 items"),
    "histories too short for leave-one-out": (preparing(SHORT, "--split", "last-item"), 1, "three events"),
    "split by time without times": (preparing(ONE_USER + SHORT, time="order"), 1, "--split last-item"),
    "all at one instant": (preparing([(user, item, 7) for user, item, _ in SHORT]), 1, "training holds none"),
    "shares above one": (preparing(SHORT, "--test-share", "0.95"), 2, "test_share=0.95"),
    "not a date": (
        preparing(SHORT, "--validation-from", "soon", "--test-from", "later"),
        2,
        "'soon' is not an ISO date",
    ),
    "unknown model": (training(model="sasrek"), 2, "did you mean 'sasrec'?"),
    "unknown preset": (training("--preset", "huge"), 2, "no preset 'huge'; known are beauty, demo"),
    "unknown config key": (training("--set", "model.dropuot=0.1"), 2, "did you mean 'dropout'?"),
    "unknown section": (training("--set", "modle.dropout=0.1"), 2, "no section 'modle'"),
    "wrong type": (training_with("model:\n  dropout: lots\n"), 2, "dropout='lots' is not usable"),
    "heads do not divide the width": (training("--set", "model.num_heads=7"), 2, "num_heads=7"),
    "dropout above one": (training("--set", "model.dropout=2"), 2, "SASRecConfig: dropout=2.0 must lie in [0, 1)"),
    "no heads": (training("--set", "model.num_heads=0"), 2, "SASRecConfig: num_heads=0 must be at least 1"),
    "no width": (training("--set", "model.embedding_dim=0"), 2, "SASRecConfig: embedding_dim=0 must be at least 1"),
    "fewer than no blocks": (
        training("--set", "model.num_blocks=-1", model="bert4rec"),
        2,
        "BERT4RecConfig: num_blocks=-1 must be at least 0",
    ),
    "no feed-forward width": (
        training("--set", "model.ffn_dim=0", model="bert4rec"),
        2,
        "BERT4RecConfig: ffn_dim=0 must be at least 1",
    ),
    "yes for a share": (training_with("model:\n  dropout: yes\n"), 2, "dropout=True is not usable: a number is"),
    "yes for a number": (training_with("training:\n  epochs: yes\n"), 2, "epochs=True is not usable"),
    "number of items": (training("--set", "model.num_items=7"), 2, "num_items=7 cannot be set; it comes from"),
    "negative seed": (training("--seed", "-1"), 2, "should be greater than or equal to 0"),
    "negative seed of resamples": (
        lambda w: ["compare", w.folder, w.folder, "--seed", "-1"],
        2,
        "should be greater than or equal to 0",
    ),
    "negative seed of the demo": (
        lambda w: ["demo", "--out", w.folder / "out", "--seed", "-1"],
        2,
        "should be greater than or equal to 0",
    ),
    "broken YAML": (training_with("model: [\n"), 2, "config.yaml: not valid YAML"),
    "YAML that is a list": (training_with("- 1\n"), 2, "not a list"),
    "setting without a value": (training("--set", "model.dropout"), 2, "expected section.key=value"),
    "training not on prepared data": (
        lambda w: ["train", w.dataset, "--model", "sasrec", "--out", w.folder / "out"],
        1,
        "`recsys prepare`",
    ),
    "evaluation of no run": (lambda w: ["evaluate", w.folder / "no"], 1, "no such folder"),
    "cutoffs that are words": (lambda w: ["evaluate", w.folder, "--cutoffs", "ten"], 2, "--cutoffs ten"),
    "comparison without evaluation": (lambda w: ["compare", w.folder, w.folder], 1, "run `recsys evaluate"),
    "bundle altered": (altered_bundle, 1, "index.faiss: was altered after export"),
    "bundle missing": (lambda w: ["serve", w.folder / "no"], 1, "no such folder"),
    "neither bundle nor rollback": (lambda _: ["register"], 2, "one of the two"),
}


@pytest.mark.parametrize(("make", "code", "text"), CASES.values(), ids=CASES)
def test_bad_input_gives_one_clear_line_and_leaves_nothing(make: Case, code: int, text: str, world: World) -> None:
    arguments = make(world)
    before = {path for path in world.folder.rglob("*") if path.name != "out"}

    found, output, error = run_recsys(*arguments)

    assert found == code, error
    assert text in " ".join(error.split())
    assert not output
    if code == 1:
        assert len([line for line in error.splitlines() if not line.startswith("warning: ")]) == 1, "one line"
    assert {path for path in world.folder.rglob("*") if path.name != "out"} == before, "nothing half-written"


def test_a_taken_port_is_named(world: World) -> None:
    bundle = write_bundle(world.folder / "bundle")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, error = run_recsys("serve", bundle, "--port", port)
    assert code == 2
    assert f"port {port} on 127.0.0.1 is taken" in error


def test_duplicates_and_mixed_types_are_counted_not_fatal(world: World) -> None:
    log = world.write("log.csv", GOOD + "ann,a,100\nbob,7,later\n3,b,500\n")
    code, _, error = run_recsys("ingest", log, "--out", world.folder / "out")
    assert code == 0, error
    assert sorted(path.name for path in (world.folder / "out").iterdir()) == [
        *("events", "items.parquet", "manifest.json", "rejected.parquet")
    ]


def test_instants_of_any_year_are_prepared(world: World) -> None:
    """Datasets made elsewhere may hold years before 1970 or beyond those of `datetime`."""
    rows = [(f"u{place % 3}", f"i{place % 4}", 1_600_000_000_000_000_000 + place) for place in range(9)]
    shown = []
    for name, sign in (("late", 1), ("early", -1)):
        dataset = write_dataset(world.folder / name, [(user, item, sign * time) for user, item, time in rows])
        code, output, error = run_recsys("prepare", dataset, "--out", world.folder / f"{name}-prepared", "--json")
        assert code == 0, error
        shown.append(json.loads(output)["counts"]["test_from"])
    assert shown == ["52671-12-25T12:26:40.000008+00:00", "-48732-01-07T11:33:20+00:00"]


@pytest.mark.parametrize(
    ("module", "missing", "command", "remedy"),
    [
        ("pipelines.train", "torch", ["train", "prepared", "--model", "sasrec", "--out", "run"], "recsys[train]"),
        ("serving.run", "uvicorn", ["serve", "bundle"], "recsys[serve]"),
        ("pipelines.comparison_report", "matplotlib", ["compare", "a", "b", "--report", "r.html"], "recsys[report]"),
    ],
)
def test_a_missing_optional_package_is_named(
    module: str, missing: str, command: list[str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [name for name in sys.modules if name == module or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, missing, None)
    code, output, error = run_recsys(*command)
    assert (code, output) == (1, "")
    assert error == f"error: this command needs {missing}; install it with pip install '{remedy}'.\n"


def test_every_optional_package_is_known_to_the_command_line() -> None:
    project = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("train", "serve"):
        names = [re.split(r"[\[><=]", line)[0] for line in project["optional-dependencies"][extra]]
        assert not [name for name in names if extra_with(name.replace("-", "_")) is None]


def test_a_missing_module_of_no_extra_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipelines.compare", None)
    code, _, error = run_recsys("compare", "a", "b")
    assert code == 1
    assert "unexpected ModuleNotFoundError" in error


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "out/events")
    monkeypatch.setattr("pipelines.compare.compare", Mock(side_effect=full))
    assert run_recsys("compare", "a", "b") == (
        *(1, ""),
        "error: cannot read or write out/events: no space left on device.\n",
    )


def test_debug_is_explained() -> None:
    code, output, _ = run_recsys("--help")
    assert code == 0
    assert "--debug" in output
    assert "Sequential recommendation: from raw logs" in output


def test_json_never_holds_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"share": float("nan")})


def test_debug_shows_the_traceback(world: World) -> None:
    with pytest.raises(Exception, match=r"no\.csv"):
        run_recsys("ingest", world.folder / "no.csv", "--out", world.folder / "out", "--debug")
