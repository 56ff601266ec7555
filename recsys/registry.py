"""The model registry in MLflow: versions of bundles under aliases, with the way back kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recsys.bundle import Bundle
from recsys.errors import RegistryError
from recsys.steps import MANIFEST
from recsys.tracking import experiment_id, mlflow_client, store_exists

BUNDLE_ARTIFACT = "bundle"
URI_PREFIX = "models:/"
STEPS_BACK = 50
"""Earlier versions that an alias remembers; MLflow bounds the length of a tag."""


@dataclass(frozen=True)
class Registered:
    """Where an alias points."""

    name: str
    alias: str
    version: str
    previous: str | None


@dataclass(frozen=True)
class Holder:
    """A version that an alias points at or did: its number, and the manifest of the bundle it holds."""

    version: str
    bundle: str
    manifest: dict[str, Any]


def register_bundle(bundle: Bundle, name: str, alias: str, tags: Mapping[str, str] | None = None) -> Registered:
    """Stores a copy of the bundle as a version of `name`, once, and points `alias` at it; `tags` tell its origin."""
    client = mlflow_client()
    _ensure_model(client, name)
    version = _stored_version(client, name, bundle) or _store(client, name, bundle, tags or {})
    return _point(client, name, alias, version)


def alias_holders(name: str, alias: str) -> list[Holder]:
    """What the alias points at, and then what `roll_back` would point it at; empty where it points at nothing.

    Looks only: a store that is not there yet is not made.
    """
    if not store_exists():
        return []
    client = mlflow_client()
    if not client.search_registered_models(f"name = '{name}'"):
        return []
    trail, current = _trail(client, name, alias), _current(client, name, alias)
    if current is None:
        return []
    return [_holder(client, name, version) for version in (current, *_earlier(trail, current)[-1:])]


def _holder(client: Any, name: str, version: str) -> Holder:
    from mlflow.artifacts import download_artifacts

    stored = client.get_model_version(name, version)
    manifest = Path(download_artifacts(artifact_uri=f"{stored.source}/{MANIFEST}"))
    return Holder(version, stored.tags["bundle"], json.loads(manifest.read_text(encoding="utf-8")))


def _stored_version(client: Any, name: str, bundle: Bundle) -> str | None:
    """The version that holds this very bundle: of an earlier registration, perhaps one that was killed."""
    found = client.search_model_versions(f"name = '{name}' and tags.bundle = '{bundle.version}'")
    return str(found[0].version) if found else None


def _store(client: Any, name: str, bundle: Bundle, tags: Mapping[str, str]) -> str:
    """A new version with a copy of the bundle."""
    run_id = _training_run(client, bundle) or _holder_run(client, bundle)
    artifact = f"{BUNDLE_ARTIFACT}-{bundle.version}"
    client.log_artifacts(run_id, str(bundle.folder), artifact)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    version = client.create_model_version(name, source, run_id, tags={**tags, "bundle": bundle.version})
    return str(version.version)


def roll_back(name: str, alias: str) -> Registered:
    """Points `alias` at the version it had before, and forgets the present one."""
    client = mlflow_client()
    trail, current = _trail(client, name, alias), _current(client, name, alias)
    earlier = _earlier(trail, current)
    if current is None or not earlier:
        raise RegistryError(f"{name}@{alias}: has no earlier version to go back to.")
    client.set_registered_model_alias(name, alias, earlier[-1])
    client.set_registered_model_tag(name, _trail_tag(alias), ",".join(earlier))
    return Registered(name, alias, earlier[-1], current)


@dataclass(frozen=True)
class StoredVersion:
    """What an address names: a version of a registered model, and where its files lie."""

    name: str
    number: str
    source: str

    @property
    def is_local(self) -> bool:
        """Whether the files can be read where they are."""
        return urlsplit(self.source).scheme in {"", "file"}


def find_version(uri: str) -> StoredVersion:
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` names now."""
    from mlflow.exceptions import MlflowException

    client = mlflow_client()
    reference = uri.removeprefix(URI_PREFIX)
    name, at, alias = reference.partition("@")
    try:
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = reference.partition("/")
            version = client.get_model_version(name, number)
    except MlflowException as error:
        raise RegistryError(
            f"{uri}: not in the registry ({str(error).splitlines()[0]}); see `recsys register`."
        ) from None
    return StoredVersion(name, str(version.version), version.source)


def fetch_version(version: StoredVersion, into: Path | None = None) -> Path:
    """The folder of its bundle: where the files lie, or a copy from a server, in `into` (None: for good)."""
    from mlflow.artifacts import download_artifacts

    where = None if version.is_local or into is None else str(into)
    return Path(download_artifacts(artifact_uri=version.source, dst_path=where))


def fetch_bundle(uri: str) -> Path:
    """The folder of `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    return fetch_version(find_version(uri))


def _ensure_model(client: Any, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)


def _training_run(client: Any, bundle: Bundle) -> str | None:
    """The run that trained the bundle, where this store knows it."""
    from mlflow.exceptions import MlflowException

    run_id: str | None = bundle.manifest["counts"].get("mlflow_run_id")
    if run_id is not None:
        try:
            client.get_run(run_id)
        except MlflowException:
            return None
    return run_id


def _holder_run(client: Any, bundle: Bundle) -> str:
    """A run to hang the artifacts on, for bundles that were trained without tracking or under another store."""
    experiment, run_name = experiment_id(client), f"bundle-{bundle.version}"
    if found := client.search_runs([experiment], f"attributes.run_name = '{run_name}'", max_results=1):
        return str(found[0].info.run_id)
    run = client.create_run(experiment, run_name=run_name)
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def _point(client: Any, name: str, alias: str, version: str) -> Registered:
    """The trail is written first: it may then name a version the alias never reached, but never lack one."""
    current = _current(client, name, alias)
    if current == version:
        return Registered(name, alias, version, next(reversed(_earlier(_trail(client, name, alias), version)), None))
    trail = [entry for entry in _trail(client, name, alias) if entry not in {current, version}]
    trail += [current, version] if current is not None else [version]
    client.set_registered_model_tag(name, _trail_tag(alias), ",".join(trail[-STEPS_BACK:]))
    client.set_registered_model_alias(name, alias, version)
    return Registered(name, alias, version, current)


def _trail(client: Any, name: str, alias: str) -> list[str]:
    """Versions the alias has pointed at, the present one last."""
    from mlflow.exceptions import MlflowException

    try:
        tag = client.get_registered_model(name).tags.get(_trail_tag(alias), "")
    except MlflowException:
        raise RegistryError(f"{name}: no such model in the registry; register a bundle first.") from None
    return [version for version in tag.split(",") if version]


def _earlier(trail: list[str], current: str | None) -> list[str]:
    """The part of the trail before the present version."""
    return trail[: trail.index(current)] if current in trail else trail


def _current(client: Any, name: str, alias: str) -> str | None:
    """The version the alias points at now, wherever it was moved from."""
    aliases = client.get_registered_model(name).aliases
    return str(aliases[alias]) if alias in aliases else None


def _trail_tag(alias: str) -> str:
    return f"trail.{alias}"
