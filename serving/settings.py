"""Settings of the service: environment variables `RECSYS_…`, read once at start."""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from recsys.errors import ConfigError

PREFIX = "RECSYS_"


class Settings(BaseSettings):
    """`RECSYS_STATE` sets `state`, and so on; an argument wins over the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    state: Path = Field(default=Path("recsys-state.sqlite"), description="SQLite file with the users' events")
    history_limit: int = Field(default=1_000, ge=1, description="newest events kept of each user")
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
    threads: int = Field(default=4, ge=1, description="requests answered at the same time; the others wait")


def read_settings(state: Path | None = None) -> Settings:
    """Settings of the environment, with `state` in place of `RECSYS_STATE` where given."""
    try:
        return Settings() if state is None else Settings(state=state)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_complaint(entry["loc"], entry["msg"], entry["input"]) for entry in error.errors())
        ) from None


def _complaint(place: tuple[int | str, ...], message: str, value: object) -> str:
    name = PREFIX + str(place[0]).upper()
    return f"{name}={value!r} cannot be used: {message}; correct or unset the environment variable {name}"
