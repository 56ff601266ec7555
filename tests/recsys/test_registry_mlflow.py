"""Aliases move forward and back in a real MLflow registry."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import write_bundle

from recsys.bundle import Bundle, open_bundle
from recsys.errors import ConfigError, RegistryError
from recsys.registry import Registered, alias_holders, fetch_bundle, register_bundle, roll_back
from recsys.tracking import experiment_id, mlflow_client
from serving.sources import source_of


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One SQLite file for all tests here, since making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    """Three that differ."""
    return [open_bundle(write_bundle(tmp_path / f"bundle-{seed}", seed)) for seed in range(3)]


def version_at(name: str, alias: str = "champion") -> str:
    """The bundle's version where the alias points, read from a verified copy."""
    return open_bundle(fetch_bundle(f"models:/{name}@{alias}")).version


def test_each_registration_moves_the_alias_and_rolling_back_returns(bundles: list[Bundle]) -> None:
    first, second, third = (bundle.version for bundle in bundles)
    assert register_bundle(bundles[0], "shop", "champion") == Registered("shop", "champion", "1", None)
    assert version_at("shop") == first
    assert register_bundle(bundles[1], "shop", "champion") == Registered("shop", "champion", "2", "1")
    assert version_at("shop") == second
    assert roll_back("shop", "champion") == Registered("shop", "champion", "1", "2")
    assert version_at("shop") == first
    assert register_bundle(bundles[2], "shop", "champion") == Registered("shop", "champion", "3", "1")
    assert version_at("shop") == third
    assert roll_back("shop", "champion").version == "1"
    with pytest.raises(RegistryError, match="shop@champion: has no earlier version to go back to"):
        roll_back("shop", "champion")
    assert version_at("shop") == first
    assert open_bundle(fetch_bundle("models:/shop/2")).version == second


def test_aliases_and_names_have_histories_of_their_own(bundles: list[Bundle]) -> None:
    register_bundle(bundles[0], "film", "champion")
    register_bundle(bundles[1], "film", "candidate")
    register_bundle(bundles[2], "music", "champion")
    assert version_at("film") == bundles[0].version
    assert version_at("film", "candidate") == bundles[1].version
    with pytest.raises(RegistryError, match="film@candidate: has no earlier version"):
        roll_back("film", "candidate")


def test_the_registry_keeps_a_copy_of_its_own(bundles: list[Bundle]) -> None:
    register_bundle(bundles[0], "copied", "champion")
    shutil.rmtree(bundles[0].folder)
    assert version_at("copied") == bundles[0].version


def test_what_is_stored_carries_the_bundles_version(bundles: list[Bundle], store: Path) -> None:
    register_bundle(bundles[1], "tagged", "champion")
    stored = mlflow_client().get_model_version_by_alias("tagged", "champion")
    assert stored.tags["bundle"] == bundles[1].version
    assert Path(stored.source.removeprefix("file://")).is_relative_to(store)


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/1", "models:/known@nobody"])
def test_what_is_not_registered_is_named(bundles: list[Bundle], uri: str) -> None:
    register_bundle(bundles[0], "known", "champion")
    with pytest.raises(RegistryError, match=rf"{uri}: not in the registry \(.*\); see `recsys register`"):
        fetch_bundle(uri)


def test_an_unknown_name_cannot_be_rolled_back() -> None:
    with pytest.raises(RegistryError, match="nobody: no such model in the registry; register a bundle first"):
        roll_back("nobody", "champion")


def test_an_unusable_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI='nonsense://x'"):
        mlflow_client()


def test_a_bundle_hangs_on_the_run_that_trained_it(tmp_path: Path) -> None:
    client = mlflow_client()
    trained = client.create_run(experiment_id(client)).info.run_id
    bundle = open_bundle(write_bundle(tmp_path / "bundle", mlflow_run_id=trained))
    register_bundle(bundle, "trained", "champion")
    assert client.get_model_version_by_alias("trained", "champion").run_id == trained
    assert version_at("trained") == bundle.version


def test_a_bundle_trained_under_another_store_is_registered_all_the_same(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle", mlflow_run_id="0" * 32))
    register_bundle(bundle, "elsewhere", "champion")
    assert version_at("elsewhere") == bundle.version


def test_a_bundle_is_stored_once_and_the_way_back_stays(bundles: list[Bundle]) -> None:
    register_bundle(bundles[0], "again", "champion")
    register_bundle(bundles[1], "again", "champion", {"cycle": "abc"})
    assert register_bundle(bundles[1], "again", "champion") == Registered("again", "champion", "2", "1")
    assert len(mlflow_client().search_model_versions("name = 'again'")) == 2
    assert mlflow_client().get_model_version("again", "2").tags["cycle"] == "abc"
    assert roll_back("again", "champion").version == "1"


def test_a_registration_killed_before_the_alias_moved_is_ended_by_the_next(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_bundle(bundles[0], "killed", "champion")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.set_registered_model_alias", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            register_bundle(bundles[1], "killed", "champion")
    assert register_bundle(bundles[1], "killed", "champion") == Registered("killed", "champion", "2", "1")
    assert len(mlflow_client().search_model_versions("name = 'killed'")) == 2
    assert roll_back("killed", "champion").version == "1"


def test_the_holder_and_who_comes_back_are_known(bundles: list[Bundle]) -> None:
    assert alias_holders("held", "champion") == []
    for bundle in bundles[:2]:
        register_bundle(bundle, "held", "champion")
    now, before = alias_holders("held", "champion")
    assert (now.version, now.bundle, now.manifest) == ("2", bundles[1].version, bundles[1].manifest)
    assert (before.version, before.bundle) == ("1", bundles[0].version)
    roll_back("held", "champion")
    assert [holder.version for holder in alias_holders("held", "champion")] == ["1"]


def test_looking_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    assert alias_holders("held", "champion") == []
    assert not list(tmp_path.iterdir())


def test_what_an_alias_names_changes_as_it_moves(bundles: list[Bundle]) -> None:
    """By this a service finds that there is something to load."""
    register_bundle(bundles[0], "followed", "champion")
    source = source_of("models:/followed@champion")
    first = source.look()
    assert source.look().token == first.token
    register_bundle(bundles[1], "followed", "champion")
    second = source.look()
    assert second.token != first.token
    assert [open_bundle(offer.fetch().folder).version for offer in (first, second)] == [
        bundle.version for bundle in bundles[:2]
    ]
    roll_back("followed", "champion")
    assert source.look().token == first.token
