"""Documents say what is true: every option, setting, model and link."""

import re
import shlex
import subprocess
import sys
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from models.registry import MODELS
from pipelines.cli import app
from pipelines.pipeline_config import PipelineConfig, load_pipeline
from recsys.training import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")])
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_page_of_commands_is_the_command_line_itself(tmp_path: Path) -> None:
    page = tmp_path / "commands.md"
    generate = ["-m", "typer", "pipelines.cli", "utils", "docs", "--name", "recsys", "--title", "Commands"]
    subprocess.run([sys.executable, *generate, "--output", str(page)], check=True, capture_output=True, cwd=ROOT)
    assert (ROOT / "docs" / "commands.md").read_text() == page.read_text(), "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_a_row_in_readme(command: str) -> None:
    if command != "version":
        assert "Example" in (COMMANDS[command].help or "")
        assert f"| `recsys {command}` |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_every_setting_of_a_model_is_explained(name: str) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    assert f"`{name}`" in text
    assert f"`{name}`" in (ROOT / "README.md").read_text()
    missing = [field.name for field in fields(MODELS[name][1]) if f"`{field.name}`" not in text]
    assert not missing


def test_every_setting_of_training_is_explained() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    assert not [field.name for field in fields(TrainingConfig) if f"`{field.name}`" not in text]


def test_every_key_of_a_pipeline_is_explained(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(name: shop.*?)```", (ROOT / "docs" / "pipeline.md").read_text(), flags=re.DOTALL)
    assert text is not None
    (tmp_path / "pipeline.yaml").write_text(text[1])
    load_pipeline(tmp_path / "pipeline.yaml")
    assert keys_of(yaml.safe_load(text[1])) == {
        *(entry.name for entry in fields(PipelineConfig)),
        *(f"{section.name}.{entry.name}" for section in fields(PipelineConfig) for entry in keys_within(section.type)),
    }


def keys_of(content: dict[str, Any]) -> set[str]:
    """Keys of a pipeline and of its sections; a mapping of the user's own keys is one."""
    sections = {entry.name for entry in fields(PipelineConfig) if keys_within(entry.type)}
    within = {f"{name}.{key}" for name in sections for key in content[name]}
    return {*content, *within}


def keys_within(section: Any) -> tuple[Field[Any], ...]:
    """Fields of a section, none of what is no section."""
    return fields(section) if is_dataclass(section) else ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "commands.md"], ids=lambda page: page.name)
def test_commands_shown_can_be_parsed(page: Path) -> None:
    """Unknown options and missing ones are found by the parser itself, before anything runs."""
    for line in re.findall(r"^\$? ?recsys ([^\n]+)$", page.read_text().replace("\\\n", " "), flags=re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words[0] not in COMMANDS or "..." in line or "…" in line:
            continue
        COMMANDS[words[0]].make_context(words[0], words[1:])


def test_makefile_has_what_readme_promises() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check", "serve", "bench"):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
