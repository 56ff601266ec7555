"""A step's folder appears whole or not at all, with a manifest that can be checked."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from recsys import __version__, steps
from recsys.errors import DataError
from recsys.steps import git_commit, partial_folder, read_manifest, write_json, writing_step

REPOSITORY = Path(__file__).resolve().parents[2]

KILLED = """
import os, signal, sys
from pathlib import Path
from recsys.steps import writing_step
with writing_step("prepare", Path(sys.argv[1]), config={}, overwrite=True) as step:
    (step.folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make(out: Path, *names: str, **settings: object) -> None:
    """A step that writes small files."""
    with writing_step("prepare", out, config={"answer": 42}, **settings) as step:  # type: ignore[arg-type]
        for name in names:
            (step.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (step.folder / name).write_text(f"content of {name}")


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def kill_in_the_middle(out: Path) -> None:
    """Runs the same step in a process of its own that dies by SIGKILL."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=REPOSITORY, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_killed_step_leaves_no_output_and_the_next_run_starts_over(tmp_path: Path) -> None:
    kill_in_the_middle(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (partial_folder(tmp_path / "out") / "half").exists()
    make(tmp_path / "out", "whole")
    assert files_of(tmp_path) == ["out/manifest.json", "out/whole"]


def test_a_killed_step_leaves_the_older_output_whole(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    kill_in_the_middle(tmp_path / "out")
    assert files_of(tmp_path / "out") == ["manifest.json", "old"]
    assert read_manifest(tmp_path / "out", "prepare")["files"].keys() == {"old"}


def test_a_failing_step_cleans_up(tmp_path: Path) -> None:
    def fail() -> None:
        with writing_step("prepare", tmp_path / "out", config={}) as step:
            (step.folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert files_of(tmp_path) == []


def test_a_resumable_step_hands_its_half_written_folder_on(tmp_path: Path) -> None:
    def fail() -> None:
        with writing_step("train", tmp_path / "run", config={}, keep_partial=True) as step:
            (step.folder / "checkpoint").write_text("epoch 3")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "run").exists()
    with writing_step("train", tmp_path / "run", config={}, keep_partial=True) as step:
        assert (step.folder / "checkpoint").read_text() == "epoch 3"
    assert files_of(tmp_path) == ["run/checkpoint", "run/manifest.json"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with writing_step("prepare", tmp_path / "out", config={}) as step:
        (step.folder / "first").write_text("first")
        with pytest.raises(DataError, match=r"prepare: another run is writing .*out; wait for it to end"):
            make(tmp_path / "out", "second")
    assert files_of(tmp_path) == ["out/first", "out/manifest.json"]
    make(tmp_path / "out", "third", overwrite=True)


def test_an_output_that_appears_while_we_wait_for_the_lock_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "made", "old")
    lock = fcntl.flock

    def other_run_ends_first(handle: IO[str], operation: int) -> None:
        (tmp_path / "made").rename(tmp_path / "out")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", other_run_ends_first)
    with pytest.raises(DataError, match="out exists already"):
        make(tmp_path / "out", "new")
    assert files_of(tmp_path) == ["out/manifest.json", "out/old"]


def test_an_existing_output_is_not_touched_without_overwrite(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(DataError, match=r"prepare: .*out exists already; choose another folder, or pass --overwrite"):
        make(tmp_path / "out", "new")
    assert files_of(tmp_path) == ["out/manifest.json", "out/old"]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    make(tmp_path / "out", "old", "deep/old")
    make(tmp_path / "out", "new", overwrite=True)
    assert files_of(tmp_path) == ["out/manifest.json", "out/new"]


def test_the_manifest_says_where_the_folder_came_from(tmp_path: Path) -> None:
    make(tmp_path / "dataset", "events")
    (tmp_path / "log.csv").write_bytes(b"a,b\n\xff\n")
    inputs = [tmp_path / "log.csv", tmp_path / "dataset"]
    with writing_step("prepare", tmp_path / "out", config={"split": "time"}, inputs=inputs, seed=7) as step:
        (step.folder / "sub").mkdir()
        (step.folder / "a.bin").write_bytes(bytes(range(256)))
        (step.folder / "sub" / "b.bin").write_bytes(b"")
        step.counts["events"] = 3
    manifest = read_manifest(tmp_path / "out", "prepare")
    assert manifest["files"] == {
        name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in ("a.bin", "sub/b.bin")
    }
    read = [tmp_path / "log.csv", tmp_path / "dataset" / "manifest.json"]
    assert manifest["inputs"] == [
        {
            "path": str(path.resolve()),
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for path, file in zip(inputs, read, strict=True)
    ]
    assert (manifest["config"], manifest["seed"], manifest["counts"]) == ({"split": "time"}, 7, {"events": 3})
    assert (manifest["step"], manifest["recsys"]) == ("prepare", __version__)
    assert {"numpy", "polars"} <= manifest["libraries"].keys()
    assert manifest["peak_memory_mib"] > 1


def test_the_commit_is_that_of_the_source_tree() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    commit = git_commit()
    assert commit is None if not head else commit is not None and commit.removesuffix("+") == head


def test_json_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, (lambda content: content.update(itself=content) or content)({}))
    assert json.loads(path.read_text()) == {"a": 1}
    assert files_of(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no manifest.json; expected the output of `recsys prepare`"),
        ("{", "manifest.json: not valid JSON .*; make the folder again with `recsys prepare`"),
        ('{"step": "train"}', "was made by `recsys train`, but the output of `recsys prepare` is needed here"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_manifest(tmp_path, "prepare")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; expected the output of `recsys ingest`"):
        read_manifest(tmp_path / "nowhere", "ingest")


@pytest.mark.parametrize("new_in_place", [False, True])
def test_a_replacement_killed_between_its_renames_is_ended_by_the_next_run(tmp_path: Path, new_in_place: bool) -> None:
    out, retired = tmp_path / "out", tmp_path / ".out.retired"
    retired.mkdir()
    (retired / "old").touch()
    if new_in_place:
        out.mkdir()
        (out / "new").touch()
    with pytest.raises(DataError, match="exists already"), writing_step("test", out, config={}):
        pass
    assert [path.name for path in out.iterdir()] == ["new" if new_in_place else "old"]
    assert not retired.exists()


def test_scratch_is_no_part_of_the_output(tmp_path: Path) -> None:
    with writing_step("test", tmp_path / "out", config={}, scratch=("checkpoints",)) as step:
        (step.folder / "checkpoints").mkdir()
        (step.folder / "checkpoints" / "one").touch()
        (step.folder / "kept").touch()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"kept", "manifest.json"}
    assert list(read_manifest(tmp_path / "out", "test")["files"]) == ["kept"]


def test_a_log_is_described_as_it_was_when_the_step_began(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before")
    with writing_step("test", tmp_path / "out", config={}, inputs=[log]):
        log.write_text("before and after")
    assert read_manifest(tmp_path / "out", "test")["inputs"][0]["bytes"] == len("before")


def test_a_reader_never_finds_the_folder_missing_while_it_is_replaced(tmp_path: Path) -> None:
    if not steps._exchanged(tmp_path, tmp_path):
        pytest.skip("this system cannot make folders change places")
    out, stop, missed = tmp_path / "out", threading.Event(), list[int]()

    def replace() -> None:
        for number in range(30):
            with writing_step("ingest", out, config={}, overwrite=True) as step:
                (step.folder / "part").write_text(str(number))
        stop.set()

    with writing_step("ingest", out, config={}):
        pass
    writer = threading.Thread(target=replace)
    writer.start()
    while not stop.is_set():
        missed += [1] * (not (out / "manifest.json").exists())
    writer.join()
    assert not missed
    assert (out / "part").read_text() == "29"
    assert os.listdir(tmp_path) == ["out"]


def test_systems_that_cannot_exchange_rename_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_exchanged", lambda *_: False)
    for text in ("old", "new"):
        with writing_step("ingest", tmp_path / "out", config={}, overwrite=True) as step:
            (step.folder / "part").write_text(text)
    assert (tmp_path / "out" / "part").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]
