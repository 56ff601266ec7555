"""The examples of docs/pipeline.md for schedulers: they parse, call commands that exist, and agree on exit codes."""

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app
from recsys.errors import ConfigError, GateError

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "pipeline.md").read_text(encoding="utf-8")
EXAMPLES = PAGE[PAGE.index("## Schedulers") :]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EXAMPLES, flags=re.DOTALL)


def unit(text: str) -> dict[str, dict[str, str]]:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd tells cases apart
    parser.read_string(text)
    return {section: dict(parser[section]) for section in parser.sections()}


def check_command(words: list[str]) -> None:
    """`recsys run FILE`, with options that the command has."""
    assert Path(words[0]).name == "recsys"
    options = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts}
    assert words[1] == "run"
    assert words[2].endswith(".yaml")
    assert {word for word in words[3:] if word.startswith("-")} <= options


def test_the_line_of_cron() -> None:
    [text] = [block for block in re.findall(r"```\n(.*?)```", EXAMPLES, flags=re.DOTALL) if " * * * " in block]
    *settings, line = text.strip().splitlines()
    assert all(re.fullmatch(r"[A-Z_]+=\S+", setting) for setting in settings)
    *times, command = line.split(maxsplit=5)
    assert re.fullmatch(r"[0-5]?\d ([01]?\d|2[0-3]) \* \* \*", " ".join(times))
    check_command(shlex.split(command.partition(">>")[0]))
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


@pytest.fixture
def units(tmp_path: Path) -> dict[str, Path]:
    """Service and timer as files; the command is one that exists here."""
    service, timer = blocks("ini")
    service = service.replace("/srv/recsys/bin/recsys", str(shutil.which("true"))).replace("User=recsys\n", "")
    found = {"service": tmp_path / "recsys-shop.service", "timer": tmp_path / "recsys-shop.timer"}
    found["service"].write_text(service)
    found["timer"].write_text(timer)
    return found


def test_the_units_of_systemd() -> None:
    service, timer = map(unit, blocks("ini"))
    check_command(shlex.split(service["Service"]["ExecStart"]))
    assert service["Service"]["Type"] == "oneshot"
    assert int(service["Service"]["SuccessExitStatus"]) == GateError.exit_code
    assert int(service["Service"]["RestartPreventExitStatus"]) == ConfigError.exit_code
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_its_units_valid(units: dict[str, Path]) -> None:
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units.values())]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = [line for line in (process.stdout + process.stderr).splitlines() if "recsys-shop" in line]
    assert (process.returncode, told) == (0, [])
    calendar = unit(units["timer"].read_text())["Timer"]["OnCalendar"]
    assert subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, check=False).returncode == 0


def test_the_cron_job_of_kubernetes() -> None:
    [job] = [yaml.safe_load(text) for text in blocks("yaml") if "CronJob" in text]
    assert (job["apiVersion"], job["kind"], job["spec"]["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")
    template: dict[str, Any] = job["spec"]["jobTemplate"]["spec"]
    pod = template["template"]["spec"]
    [container] = pod["containers"]
    check_command(container["command"])
    assert pod["restartPolicy"] == "Never", "a failure policy of exit codes asks for it"
    [rule] = template["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [ConfigError.exit_code, GateError.exit_code]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
