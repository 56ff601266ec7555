"""Settings of the service: environment variables `RECSYS_…`, read once at start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from recsys.errors import ConfigError

PREFIX = "RECSYS_"
VariantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _names(value: object) -> object:
    """`a; b` as the environment has it."""
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """`a=1; b=2` as the environment has it."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _names(value)]  # type: ignore[attr-defined]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{wrong[0]!r} is no NAME=VALUE; put semicolons between several")
    return {name.strip(): value.strip() for name, _, value in pairs}


class Settings(BaseSettings):
    """`RECSYS_STATE` sets `state`, and so on; an argument wins over the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    state: Annotated[str, BeforeValidator(str)] = Field(
        default="recsys-state.sqlite", description="SQLite file with the users' events, or redis://HOST:PORT/NUMBER"
    )
    new_items: Path | None = Field(
        default=None, description="SQLite file with new items; None: that of the state, or recsys-items.sqlite"
    )
    history_limit: int = Field(default=1_000, ge=1, description="newest events kept of each user")
    forget_seconds: float = Field(
        default=0, ge=0, description="a user without events for so long is forgotten; 0: none"
    )
    state_seconds: float = Field(default=1, gt=0, description="how long a request waits for the user state")
    state_pause_seconds: float = Field(default=5, gt=0, description="how long a store that failed is left alone")
    max_history: int = Field(default=10_000, ge=1, description="item ids a request may send, history and exclude each")
    max_events: int = Field(default=1_000, ge=1, description="events one request may store")
    max_items: int = Field(default=100, ge=1, description="items one request may add")
    max_batch: int = Field(default=64, ge=1, description="requests that one batch may hold")
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1, description="size of a request's body")
    encoding_cache_bytes: int = Field(default=256 * 1024 * 1024, ge=0, description="memory for encodings; 0: keep none")
    encoding_cache_seconds: float = Field(
        default=3600, gt=0, description="an encoding, or a user's keys, not used for so long are dropped"
    )
    key_cache_bytes: int = Field(default=256 * 1024 * 1024, ge=0, description="memory for users' keys; 0: keep none")
    filter_cache_bytes: int = Field(
        default=64 * 1024 * 1024, ge=0, description="memory for the items that pass filters; 0: keep none"
    )
    watch_seconds: float = Field(default=10, ge=0, description="between looks for another bundle; 0: only when asked")
    least_recall: float = Field(default=0.99, ge=0, le=1, description="recall of a following bundle's index")
    least_shared_items: float = Field(
        default=0.5, ge=0, le=1, description="share of the present bundle's items that a following one must know"
    )
    variants: Annotated[dict[VariantName, str], NoDecode, BeforeValidator(_pairs)] = Field(
        default={}, description="further bundles by name, with semicolons between: new=models:/shop@new"
    )
    weights: Annotated[dict[VariantName, float], NoDecode, BeforeValidator(_pairs)] = Field(
        default={}, description="of variants, control among them: control=9; new=1; without any, control answers"
    )
    shadows: Annotated[tuple[VariantName, ...], NoDecode, BeforeValidator(_names)] = Field(
        default=(), description="variants that answer in the background to be measured: new"
    )
    shadow_waiting: int = Field(default=100, ge=1, description="requests that may wait for the shadows; more: dropped")
    salt: str = Field(default="recsys", description="of the hash by which users get variants; another one mixes anew")
    split_file: Path | None = Field(default=None, description="keeps weights and shadows that routes changed")
    exposures: Path | None = Field(default=None, description="folder for what was shown and what came of it")
    exposure_seconds: float = Field(default=60, gt=0, description="after so long rows of that log are written")
    exposure_bytes: int = Field(default=32 * 1024 * 1024, ge=1, description="of rows that make a part, as text")
    exposure_waiting: int = Field(default=10_000, ge=1, description="rows that may wait to be written; more: dropped")
    exposure_waiting_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1, description="of rows that may wait to be written, as text; more: dropped"
    )
    exposure_history: int = Field(default=50, ge=0, description="newest events of a history that the log keeps")
    keys: Path | None = Field(default=None, description="file of API keys, made by `recsys keys create`")
    without_keys: bool = Field(default=False, description="whether other machines may call without any key")
    rate_limit: str | None = Field(default=None, description="of a key, or of an address: 100/second; 5000/minute")
    request_seconds: float = Field(default=30, gt=0, description="after so long a request is answered by 503")
    cors_origins: str | None = Field(default=None, description="origins whose pages may call, with commas between")
    logs: Literal["text", "json"] = Field(default="text", description="json: one object a line, and a line a request")
    drain_seconds: float = Field(default=3, ge=0, description="between SIGTERM and the last new request")
    threads: int = Field(default=4, ge=1, description="requests answered at the same time; the others wait")


def read_settings(state: str | Path | None = None) -> Settings:
    """Settings of the environment, with `state` in place of `RECSYS_STATE` where given."""
    try:
        return Settings() if state is None else Settings(state=str(state))
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_complaint(entry["loc"], entry["msg"], entry["input"]) for entry in error.errors())
        ) from None


def _complaint(place: tuple[int | str, ...], message: str, value: object) -> str:
    name = PREFIX + str(place[0]).upper()
    return f"{name}={value!r} cannot be used: {message}; correct or unset the environment variable {name}"
