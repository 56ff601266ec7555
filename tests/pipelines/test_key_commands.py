"""`recsys keys`: printed once, kept as a hash, gone when revoked."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import run_recsys

from recsys.errors import ConfigError
from serving import api_keys
from serving.api_keys import KeyRing, create_key, read_keys


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    code, output, _ = run_recsys("keys", "create", "shop", "--scopes", "recommend, events", "--file", file)
    key = output.strip()
    assert (code, output) == (0, f"{key}\n")
    found = KeyRing(file).find(key)
    assert found is not None
    assert (found.name, found.scopes) == ("shop", ("recommend", "events"))
    run_recsys("keys", "create", "other", "--scopes", "users", "--file", file)

    _, output, _ = run_recsys("keys", "list", "--file", file)
    assert [line.split()[:2] for line in output.splitlines()] == [["shop", "recommend,events"], ["other", "users"]]
    _, output, _ = run_recsys("keys", "list", "--file", file, "--json")
    assert [(entry["name"], entry["scopes"]) for entry in json.loads(output)["keys"]] == [
        ("shop", ["recommend", "events"]),
        ("other", ["users"]),
    ]
    assert key not in output
    assert found.sha256 not in output

    assert run_recsys("keys", "revoke", "shop", "--file", file)[0] == 0
    assert KeyRing(file).find(key) is None


def test_a_scope_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    code, output, error = run_recsys("keys", "create", "shop", "--scopes", "all", "--file", tmp_path / "keys.json")
    assert (code, output) == (ConfigError.exit_code, "")
    assert "scopes of key 'shop': ['all'] given; choose of recommend, events, items, users, admin." in error
    assert not (tmp_path / "keys.json").exists()


def test_keys_made_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "keys.json", api_keys.read_keys

    def slowly(path: Path) -> list[api_keys.ApiKey]:
        found = read(path)
        time.sleep(0.02)  # long enough for another to write in between
        return found

    monkeypatch.setattr(api_keys, "read_keys", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: create_key(file, f"shop-{number}", ["events"]), range(6)))
    assert {key.name for key in read_keys(file)} == {f"shop-{number}" for number in range(6)}
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
