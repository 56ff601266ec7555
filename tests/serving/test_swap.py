"""Another bundle takes the place of the present one: nobody waits, nothing is lost, and a bad one never does."""

import gc
import json
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from test_service_metrics import samples

from recsys.catalog import Catalog
from recsys.errors import RegistryError
from recsys.registry import StoredVersion
from recsys.steps import MANIFEST, sha256
from serving import filters
from serving.app import create_app
from serving.service import Service
from serving.settings import Settings
from serving.sources import FolderSource, RegistrySource
from serving.state import StateError
from serving.swap import Variant

HISTORY = ["item-05", "item-30", "item-12"]


class Place:
    """A symlink that a service follows, and a client of it."""

    def __init__(self, link: Path, client: TestClient) -> None:
        self.link, self.client = link, client

    @property
    def variant(self) -> Variant:
        return self.client.app.state.variants.control

    def point_at(self, folder: Path) -> None:
        """By one rename, as a deployment does."""
        new = self.link.with_name("new")
        new.symlink_to(folder)
        new.replace(self.link)

    def post(self, path: str, body: Any, status: int = 200) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def change(self, how: str, status: int = 200) -> dict[str, Any]:
        return self.post(f"/v1/models/{how}", {}, status)

    def recommend(self, **asked: Any) -> dict[str, Any]:
        return self.post("/v1/recommend", {"history": HISTORY, **asked})

    def items(self, **asked: Any) -> list[str]:
        return [item["item_id"] for item in self.recommend(**asked)["items"]]

    def model(self) -> dict[str, Any]:
        return self.client.get("/v1/models").json()["models"][0]

    def attempts(self, outcome: str) -> float:
        return samples(self.client).get(("recsys_bundle_changes_total", outcome, "control"), 0)


@pytest.fixture
def place(tmp_path: Path, sasrec) -> Iterator[Place]:
    """A service that looks for another bundle when it is asked to."""
    link = tmp_path / "link"
    link.symlink_to(sasrec.folder)
    settings = Settings(state=tmp_path / "state.sqlite", watch_seconds=0)
    with TestClient(create_app(link, settings), raise_server_exceptions=False) as client:
        yield Place(link, client)


@pytest.fixture
def copy(bert4rec, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(bert4rec.folder, tmp_path / "copy"))


def version(folder: Path) -> str:
    return sha256(folder / MANIFEST)[:12]


def relist(folder: Path, **counts: Any) -> None:
    """Makes the manifest agree with changed files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["counts"] |= counts
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_no_request_fails_while_bundles_change_and_each_answer_is_of_one(place, sasrec, bert4rec) -> None:
    bundles = {version(tiny.folder): tiny for tiny in (sasrec, bert4rec)}
    over = False

    def ask(seed: int) -> list[tuple[str, tuple[str, ...], list[str]]]:
        rng, answers = np.random.default_rng(seed), []
        while not over or len(answers) < 5:
            history = tuple(f"item-{row:02}" for row in rng.integers(1, 41, 3))
            answer = place.post("/v1/recommend", {"history": history, "k": 5, "exclude_seen": True})
            answers.append((answer["model_version"], history, [item["item_id"] for item in answer["items"]]))
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, seed) for seed in range(4)]
        for number in range(6):
            place.point_at((bert4rec, sasrec)[number % 2].folder)
            assert place.change("reload")["swapped"] is True
        over = True
        answers = [answer for thread in asking for answer in thread.result()]
    assert {answer[0] for answer in answers} == bundles.keys()
    for bundle, history, items in answers[:: max(1, len(answers) // 100)]:
        tiny = bundles[bundle]
        scores = tiny.scores(history)
        scores[[tiny.catalog.rows[item_id] for item_id in history]] = -np.inf
        best = np.argsort(-scores, kind="stable")[:5]
        assert items == [tiny.catalog.item_ids[int(row) - 1] for row in best], "of another bundle"
    assert place.attempts("swapped") == 6


def test_events_deletions_and_users_survive(place, bert4rec) -> None:
    place.post("/v1/events", [{"user_id": "ann", "item_id": item_id} for item_id in (*HISTORY, "later")], 202)
    assert place.client.delete("/v1/items/item-09").status_code == 204
    place.point_at(bert4rec.folder)
    place.change("reload")
    answer = place.post("/v1/recommend", {"user_id": "ann", "k": 200})
    assert (answer["model_version"], answer["history_length"]) == (version(bert4rec.folder), 3)
    assert "item-09" not in [item["item_id"] for item in answer["items"]]
    assert place.client.delete("/v1/items/item-11").status_code == 204
    place.post("/v1/items", {"item_id": "item-09"}, 201)
    place.change("rollback")
    assert "item-11" not in place.items(k=200), "deleted while another bundle answered"
    assert "item-09" in place.items(k=200), "brought back meanwhile"
    place.client.delete("/v1/users/ann")
    for service in place.variant.services:
        assert service.recommender.recent() == []
        assert service.recommender.cache_size().entries == 0


def test_going_back_is_at_once_and_stays(place, sasrec, bert4rec) -> None:
    place.change("rollback", 409)
    before = place.items()
    place.point_at(bert4rec.folder)
    assert place.change("reload") | {"request_id": ""} == {
        "request_id": "",
        "variant": "control",
        "model_version": version(bert4rec.folder),
        "previous": version(sasrec.folder),
        "swapped": True,
    }
    assert place.items() != before
    loaded = place.variant.services[1]
    assert place.change("rollback")["model_version"] == version(sasrec.folder)
    assert place.variant.service is loaded
    assert place.items() == before
    place.variant.follow()
    assert place.model()["bundle"] == version(sasrec.folder), "the source still names what was rolled back from"
    assert place.change("reload")["model_version"] == version(bert4rec.folder)
    assert place.change("reload")["swapped"] is False
    assert (place.attempts("rolled back"), place.attempts("unchanged")) == (1, 1)


def test_bundles_before_the_previous_one_are_let_go(place, bert4rec, tmp_path) -> None:
    place.items()
    first = weakref.ref(place.variant.service)
    for number in range(2):
        other = Path(shutil.copytree(bert4rec.folder, tmp_path / f"other-{number}"))
        relist(other, number=number)
        place.point_at(other)
        place.change("reload")
        gc.collect()
        assert (first() is None) is (number == 1)


def test_what_was_swapped_out_keeps_nothing_of_what_was_asked(place, bert4rec, monkeypatch) -> None:
    worked_out, mask = [], filters._mask
    monkeypatch.setattr(filters, "_mask", lambda *given: worked_out.append(given) or mask(*given))
    asked = {"filter": {"year": {"max": 2020}}}
    first = place.items(**asked)
    assert worked_out
    worked_out.clear()
    assert place.items(**asked) == first
    assert not worked_out, "kept"
    place.point_at(bert4rec.folder)
    place.change("reload")
    previous = place.variant.services[1].recommender
    assert (previous.cache_size().entries, previous.recent()) == (0, [])
    place.change("rollback")
    worked_out.clear()
    assert place.items(**asked) == first
    assert worked_out, "worked out anew"


def truncated(folder: Path) -> None:
    (folder / "index.faiss").write_bytes((folder / "index.faiss").read_bytes()[:-7])


def missing(folder: Path) -> None:
    (folder / "encoder.onnx").unlink()


def of_another_shop(folder: Path) -> None:
    table = pl.read_parquet(folder / "items.parquet").with_columns(("x" + pl.col("item_id")).alias("item_id"))
    table.write_parquet(folder / "items.parquet")
    Catalog(table["item_id"]).save(folder / "catalog.parquet")
    relist(folder)


def of_lower_recall(folder: Path) -> None:
    relist(folder, index={"kind": "hnsw", "recall": 0.91})


def without_years(folder: Path) -> None:
    pl.read_parquet(folder / "items.parquet").drop("year").write_parquet(folder / "items.parquet")
    relist(folder)


def of_no_numbers(folder: Path) -> None:
    popularity = np.load(folder / "no_history.npy") * np.float32("nan")
    np.save(folder / "no_history.npy", popularity)
    relist(folder)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (truncated, r"index\.faiss: was altered after export \(SHA-256 differs"),
        (missing, r"lacks encoder\.onnx"),
        (of_another_shop, r"knows 0\.0% of the items of bundle .*, and 50% are needed"),
        (of_lower_recall, r"its index finds 0\.910 of the best items, and 0\.99 are needed"),
        (without_years, r"cannot answer what is asked now \(filter\.year: items have no field 'year'"),
        (of_no_numbers, "gives scores that are no numbers"),
    ],
)
def test_a_bad_bundle_is_refused_once_and_the_old_one_serves_on(
    spoil: Callable[[Path], None], complaint: str, place, copy, sasrec, bert4rec, caplog
) -> None:
    asked = {"filter": {"year": {"max": 2020}}}
    before = place.items(**asked)
    spoil(copy)
    place.point_at(copy)
    for _ in range(3):
        place.variant.follow()
    assert place.attempts("refused") == 1
    (line,) = [record for record in caplog.records if "refused" in record.message]
    assert line.levelname == "ERROR"
    assert f"variant control: refused, {version(sasrec.folder)} serves on: {copy}" in line.message
    model = place.model()
    assert (model["bundle"], model["previous"]) == (version(sasrec.folder), None)
    assert place.items(**asked) == before
    refusal = place.change("reload", 409)["detail"]
    assert re.search(complaint, refusal), refusal
    assert re.search(complaint, model["refused"])
    shutil.rmtree(copy)
    shutil.copytree(bert4rec.folder, copy)
    place.variant.follow()
    assert (place.model()["bundle"], place.model()["refused"]) == (version(bert4rec.folder), None)


def test_what_is_half_copied_is_tried_again_when_it_is_whole(place, bert4rec, tmp_path) -> None:
    target = tmp_path / "arriving"
    target.mkdir()
    place.point_at(target)
    place.variant.follow()
    for file in sorted(bert4rec.folder.iterdir(), reverse=True):
        shutil.copy(file, target / file.name)
        place.variant.follow()
    assert place.model()["bundle"] == version(bert4rec.folder)
    assert place.model()["refused"] is None


def test_a_source_that_does_not_answer_is_said_once_and_seen_again(place, bert4rec, caplog) -> None:
    place.link.unlink()
    for _ in range(3):
        place.variant.follow()
    assert len([record for record in caplog.records if "gives no bundle" in record.message]) == 1
    assert "does not answer" in place.change("reload", 409)["detail"]
    assert place.items()
    place.point_at(bert4rec.folder)
    place.variant.follow()
    assert place.model()["bundle"] == version(bert4rec.folder)


def test_a_source_that_fails_by_a_bug_is_said_once_and_does_not_end_the_following(
    place, bert4rec, monkeypatch, caplog
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(place.variant.source, "look", lambda: 1 / 0)
        for _ in range(3):
            place.variant.follow()
        assert "does not answer: ZeroDivisionError" in place.change("reload", 409)["detail"]
    (line,) = [record.message for record in caplog.records if "gives no bundle" in record.message]
    assert line.endswith("tried again later: ZeroDivisionError: division by zero")
    place.variant.follow()
    place.link.unlink()
    place.variant.follow()
    assert len([record for record in caplog.records if "gives no bundle" in record.message]) == 2, "seen in between"
    place.point_at(bert4rec.folder)
    place.variant.follow()
    assert place.model()["bundle"] == version(bert4rec.folder)


@pytest.mark.parametrize("error", [StateError("busy"), OSError("too many open files"), MemoryError("of 8 GiB")])
def test_a_load_that_fails_through_no_fault_of_the_bundle_is_tried_again(
    error: Exception, place, sasrec, bert4rec, monkeypatch, caplog
) -> None:
    def fail(*_: Any) -> None:
        raise error

    place.point_at(bert4rec.folder)
    with monkeypatch.context() as patched:
        patched.setattr(Service, "open", fail)
        for _ in range(3):
            place.variant.follow()
        assert f"cannot be loaded now: {type(error).__name__}: {error}" in place.change("reload", 409)["detail"]
    assert (place.attempts("unseen"), place.attempts("refused")) == (4, 0)
    assert len([record for record in caplog.records if "gives no bundle" in record.message]) == 1
    assert (place.model()["bundle"], place.model()["refused"]) == (version(sasrec.folder), None)
    place.variant.follow()
    assert place.model()["bundle"] == version(bert4rec.folder)


def test_steps_that_were_asked_of_another_model_are_no_fault_of_a_bundle(tmp_path, rearec, sasrec) -> None:
    link = tmp_path / "link"
    link.symlink_to(rearec.folder)
    settings = Settings(
        state=tmp_path / "state.sqlite", watch_seconds=0, variants={"new": str(sasrec.folder)}, shadows=("new",)
    )
    with TestClient(create_app(link, settings)) as client:
        place = Place(link, client)
        place.recommend(reasoning_steps=1)
        deadline = time.monotonic() + 20
        while not (counts := seen_in_the_shadow(client)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert counts == {("recsys_shadow_seconds_count", "new"): 1}
        place.point_at(sasrec.folder)
        assert place.change("reload")["swapped"] is True


def seen_in_the_shadow(client: TestClient) -> dict[tuple[str, ...], float]:
    names = ("recsys_shadow_seconds_count", "recsys_shadow_missed_total")
    return {key: count for key, count in samples(client).items() if key[0] in names and count}


def test_who_waits_for_a_bundle_takes_no_thread_from_others_and_gets_an_answer(tmp_path, sasrec, monkeypatch) -> None:
    settings = Settings(state=tmp_path / "state.sqlite", watch_seconds=0, threads=1, request_seconds=1)
    begun, over = Event(), Event()
    with TestClient(create_app(sasrec.folder, settings)) as client, ThreadPoolExecutor(1) as pool:
        place = Place(sasrec.folder, client)

        def look() -> None:
            begun.set()
            over.wait(20)
            raise RegistryError("asked for long")

        monkeypatch.setattr(place.variant.source, "look", look)
        loading = pool.submit(place.change, "reload", 409)
        assert begun.wait(20)
        assert place.items()
        assert "is being changed already" in place.change("reload", 409)["detail"]
        time.sleep(1.2)  # longer than a request may take
        over.set()
        assert "asked for long" in loading.result()["detail"]


def test_a_service_follows_by_itself(tmp_path, sasrec, bert4rec) -> None:
    link = tmp_path / "link"
    link.symlink_to(sasrec.folder)
    settings = Settings(state=tmp_path / "state.sqlite", watch_seconds=0.05)
    with TestClient(create_app(link, settings)) as client:
        place = Place(link, client)
        place.point_at(bert4rec.folder)
        deadline = time.monotonic() + 20
        while place.model()["bundle"] != version(bert4rec.folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert place.model()["bundle"] == version(bert4rec.folder)


def test_of_a_folder_of_bundles_the_one_exported_last_counts(tmp_path) -> None:
    for name, created in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01"), (".partial", "2027-01-01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({"created": created}))
    (tmp_path / "notes").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / MANIFEST).write_text("{")
    source = FolderSource(tmp_path)
    assert source.look().fetch().folder == tmp_path / "a"
    token = source.look().token
    assert source.look().token == token
    shutil.rmtree(tmp_path / "a")
    assert source.look().fetch().folder == tmp_path / "b"
    assert source.look().token != token


def test_a_registry_that_fails_is_asked_again_and_copies_are_removed(
    place, bert4rec, monkeypatch, tmp_path, caplog
) -> None:
    """A server's files are copied: the copy goes when its bundle is neither current nor previous."""
    registry = SimpleNamespace(version=None, copies=[])

    def find(_: str) -> StoredVersion:
        if registry.version is None:
            raise RegistryError("models:/shop@champion: not in the registry")
        return registry.version

    def fetch(stored: StoredVersion, into: Path) -> Path:
        if stored.number == "1":
            raise OSError("connection lost")
        registry.copies.append(into)
        return Path(shutil.copytree(bert4rec.folder, into / "bundle"))

    monkeypatch.setattr("serving.sources.find_version", find)
    monkeypatch.setattr("serving.sources.fetch_version", fetch)
    link, place.variant.source = place.variant.source, RegistrySource("models:/shop@champion")
    place.variant.follow()
    registry.version = StoredVersion("shop", "1", "mlflow-artifacts:/1")
    place.variant.follow()
    place.variant.follow()
    assert (place.attempts("unseen"), place.attempts("refused")) == (3, 0)
    assert len([record for record in caplog.records if "gives no bundle" in record.message]) == 1
    registry.version = StoredVersion("shop", "2", "mlflow-artifacts:/2")
    place.variant.follow()
    assert place.model()["source"] == "models:/shop@champion"
    assert place.model()["bundle"] == version(bert4rec.folder)
    (copied,) = registry.copies
    assert copied.exists()
    place.variant.source = link
    other = shutil.copytree(link.look().fetch().folder, tmp_path / "other")
    relist(other, note="another")
    for folder, there in ((link.look().fetch().folder, True), (other, False)):
        place.point_at(folder)
        place.change("reload")
        assert copied.exists() is there


def test_changes_need_a_variant_that_is_there(place) -> None:
    refusal = place.post("/v1/models/reload", {"variant": "x"}, 404)["detail"]
    assert "there is no variant 'x'; there are control" in refusal
    assert "no earlier bundle loaded" in place.change("rollback", 409)["detail"]
