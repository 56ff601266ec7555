"""What deploy/ says of the service is so: metrics, settings, routes, options, files."""

import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.core import Command
from typer.main import get_command

from pipelines.cli import app
from serving.metrics import Metrics
from serving.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "recsys.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVE: Command = get_command(app).commands["serve"]  # type: ignore[attr-defined]


ENDINGS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}


def samples() -> dict[str, set[str]]:
    """Name of every sample that /metrics gives -> its labels, which docs/serving.md names."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    labels = {
        name: {label.strip() for label in inside.split(",") if label}
        for name, inside in re.findall(r"`(recsys_\w+)(?:{([^}]*)})?`", text)
    }
    found: dict[str, set[str]] = {}
    for family in Metrics().registry.collect():
        named = family.name + ("_total" if family.type == "counter" else "")
        assert named in labels, f"docs/serving.md does not explain {named}"
        for ending in ENDINGS[family.type]:
            found[family.name + ending] = labels[named] | ({"le"} if ending == "_bucket" else set())
    return found


def expressions() -> Iterator[tuple[str, str, str]]:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.mark.parametrize(("title", "expression", "legend"), list(expressions()))
def test_the_board_asks_for_metrics_and_labels_that_there_are(title, expression, legend) -> None:
    known = samples()
    asked = set(re.findall(r"\brecsys_\w+", expression))
    assert asked, title
    assert asked <= known.keys()
    labels = set.intersection(*(known[name] for name in asked)) | {"instance"}
    used = {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
    used |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)) | set(re.findall(r"{{(\w+)}}", legend))
    assert used <= labels
    assert expression.count("(") == expression.count(")")


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(places)


def settings_in(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}[A-Z_]+(?==|:)", text))


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "recsys.service"])
def test_settings_are_those_of_the_service(name) -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("RECSYS_BUNDLE", "")
    assert settings_in(text)
    assert settings_in(text) <= known


def options(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def test_the_commands_are_those_of_the_service() -> None:
    known = {name for parameter in SERVE.params for name in parameter.opts}
    unit = (DEPLOY / "recsys.service").read_text(encoding="utf-8")
    started = shlex.split(next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    docker = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    entry = json.loads(next(line for line in docker.splitlines() if line.startswith("ENTRYPOINT")).split(" ", 1)[1])
    for words in (started, entry):
        assert options(words)
        assert options(words) <= known
        assert "serve" in words


def test_what_the_image_copies_is_there_and_sent_to_the_builder() -> None:
    docker = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line.split()[1:-1] for line in docker.splitlines() if line.startswith("COPY ") and "--from" not in line]
    copied = {name for line in lines for name in line}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line[0] == "!"}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    assert "'.[serve]'" in docker


def test_files_and_secrets_that_compose_names_are_there_or_explained() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for secret in COMPOSE["secrets"].values():
        assert Path(secret["file"]).name in text
    mounted: list[Any] = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    for source in (volume.split(":")[0] for volume in mounted):
        if source.startswith("./"):
            assert (DEPLOY / source).exists(), source
    declared = COMPOSE["volumes"].keys()
    assert {volume.split(":")[0] for volume in mounted if not volume.startswith((".", "$"))} == declared
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"][0]
    assert scraped["dns_sd_configs"][0]["names"] == ["recsys"]
    assert scraped["authorization"]["credentials_file"] == "/run/secrets/recsys-admin"


def test_mlflow_answers_those_who_are_told_to_ask_it() -> None:
    """Its server refuses other values of `Host` (403); the patterns are those of `fnmatch`."""
    command = COMPOSE["services"]["mlflow"]["command"]
    (allowed,) = [word.partition("=")[2].split(",") for word in command if word.startswith("--allowed-hosts=")]
    service = COMPOSE["services"]["recsys"]["environment"]["MLFLOW_TRACKING_URI"]
    explained = re.findall(r"MLFLOW_TRACKING_URI=(http://[\w.:]+)", (ROOT / "docs" / "deploy.md").read_text("utf-8"))
    for address in [service, *explained]:
        assert any(fnmatch(urlsplit(address).netloc, pattern) for pattern in allowed), address
    assert explained
    assert not any(fnmatch("attacker.example:5000", pattern) for pattern in allowed)


def test_git_does_not_take_secrets() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    folders = {(DEPLOY / secret["file"]).resolve().parent for secret in COMPOSE["secrets"].values()}
    assert {f"/{folder.relative_to(ROOT)}/" for folder in folders} <= set(ignored)
