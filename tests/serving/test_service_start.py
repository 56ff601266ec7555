"""Starting: a bundle that cannot be served, a taken port or a wrong setting stops it; torch is not needed."""

import json
import re
import shutil
import socket
from pathlib import Path

import httpx2 as httpx
import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from service_process import served

from recsys.errors import BundleError, ConfigError
from recsys.steps import MANIFEST, sha256
from serving.app import create_app
from serving.run import bound_socket, serve
from serving.settings import Settings, read_settings

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture
def copy(sasrec, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(sasrec.folder, tmp_path / "copy"))


def start(folder: Path) -> None:
    """Starts and stops the app."""
    with TestClient(create_app(folder, Settings(state=folder.parent / "state.sqlite"))):
        pass


def list_again(folder: Path, name: str) -> None:
    """Makes the manifest agree with a changed file, so that only its content is wrong."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["index.faiss", "encoder.onnx", "items.parquet", "no_history.npy", "model.json"])
def test_an_altered_file_stops_the_start_and_is_named(name, copy) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{copy / name}: was altered after export"):
        start(copy)


def test_a_missing_file_stops_the_start_and_is_named(copy) -> None:
    (copy / "catalog.parquet").unlink()
    with pytest.raises(BundleError, match=rf"{copy}: lacks catalog\.parquet"):
        start(copy)


def test_an_encoder_that_cannot_be_loaded_stops_the_start(copy) -> None:
    (copy / "encoder.onnx").write_bytes(b"not a graph")
    list_again(copy, "encoder.onnx")
    with pytest.raises(BundleError, match=r"encoder\.onnx: ONNX Runtime cannot load it"):
        start(copy)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("items.parquet", "items.parquet is not in catalogue order"),
        ("no_history.npy", r"no_history.npy has shape \(7,\)"),
        ("encoder.onnx", r"step\.onnx: goes on from keys, values, which encoder\.onnx does not give"),
        ("step.onnx", "step.onnx does not go on from encoder.onnx"),
        ("index.faiss", "index.faiss holds 41 items"),
    ],
)
def test_parts_that_do_not_belong_together_stop_the_start(name, complaint, copy, bert4rec, rearec) -> None:
    if name == "items.parquet":
        pl.read_parquet(copy / name).reverse().write_parquet(copy / name)
    elif name == "no_history.npy":
        np.save(copy / name, np.zeros(7, dtype=np.float32))
    else:
        shutil.copy((rearec if name == "step.onnx" else bert4rec).folder / name, copy / name)
    list_again(copy, name)
    with pytest.raises(BundleError, match=complaint):
        start(copy)


def test_an_encoder_of_another_width_stops_the_start(copy, bert4rec) -> None:
    """Of a bundle without a step."""
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]["step.onnx"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    (copy / "step.onnx").unlink()
    shutil.copy(bert4rec.folder / "encoder.onnx", copy / "encoder.onnx")
    list_again(copy, "encoder.onnx")
    with pytest.raises(BundleError, match=r"encoder.onnx gives vectors of shape \(1, 17\)"):
        start(copy)


def test_a_taken_port_is_one_clear_line_before_anything_is_loaded(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port {port} on 127\.0\.0\.1 is taken .*--port[^\n]*$"):
            serve(tmp_path / "no-bundle", port=port, state=tmp_path / "state.sqlite")


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("no.such.host.invalid", 8000, "host no.such.host.invalid is not known"),
        ("127.0.0.1", 70_000, "port 70000 does not exist"),
        ("192.0.2.1", 8000, "port 8000 on 192.0.2.1 cannot be opened"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(host, port, message) -> None:
    with pytest.raises(ConfigError, match=message):
        bound_socket(host, port)


def test_serve_refuses_a_bad_bundle_before_it_listens(tmp_path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        serve(tmp_path / "no-bundle", port=0, state=tmp_path / "state.sqlite")


def test_a_setting_comes_from_the_environment_and_an_argument_wins(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RECSYS_HISTORY_LIMIT", "7")
    monkeypatch.setenv("RECSYS_STATE", "elsewhere.sqlite")
    assert read_settings().history_limit == 7
    assert read_settings().state == "elsewhere.sqlite"
    assert read_settings(tmp_path / "mine").state == str(tmp_path / "mine")


def test_a_wrong_setting_is_one_clear_line(monkeypatch) -> None:
    monkeypatch.setenv("RECSYS_THREADS", "many")
    with pytest.raises(ConfigError, match=r"^RECSYS_THREADS='many' cannot be used: .* the environment variable RECSYS"):
        read_settings()


def test_every_setting_and_route_is_documented(client) -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `RECSYS_(\w+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    assert rows == {name.upper(): str(field.default) for name, field in Settings.model_fields.items()}
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"`{path}`" in text


def test_it_runs_where_torch_cannot_be_imported(client, sasrec, tmp_path) -> None:
    events = [{"user_id": "ann", "item_id": item_id} for item_id in ("item-05", "item-30", "item-12")]
    state = tmp_path / "served.sqlite"
    with served(sasrec.folder, state, tmp_path / "log") as service:
        assert httpx.post(f"{service.address}/v1/events", json=events).json()["stored"] == 3
        assert httpx.get(f"{service.address}/").status_code == 200
    with served(sasrec.folder, state, tmp_path / "log") as service:
        answer = httpx.post(f"{service.address}/v1/recommend", json={"user_id": "ann", "k": 20}).json()
    ours = client.post("/v1/recommend", json={"history": [event["item_id"] for event in events], "k": 20}).json()
    assert [item["item_id"] for item in answer["items"]] == [item["item_id"] for item in ours["items"]]
    assert answer["history_length"] == 3
