"""What outlives a bundle: users' events and new items; and which store a setting means."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from recsys.errors import ConfigError
from serving.breaker import GuardedState
from serving.new_items import ItemStore
from serving.settings import Settings
from serving.state import SqliteState, UserState

ITEMS = "recsys-items.sqlite"
REDIS = ("redis", "rediss", "unix", "valkey", "valkeys")


@dataclass(frozen=True, kw_only=True)
class Stores:
    """Shared by all bundles of a process. Who writes items, or puts a bundle in place, holds `writing`."""

    state: GuardedState
    items: ItemStore
    writing: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, settings: Settings) -> "Stores":
        """Those of the settings; a `ConfigError` where one does not answer."""
        with ExitStack() as opened:
            state = open_state(settings)
            opened.callback(state.close)
            stores = cls(state=state, items=ItemStore(item_file(settings)))
            opened.pop_all()
        return stores

    def close(self) -> None:
        """Lets go of files and connections."""
        self.items.close()
        self.state.close()


def open_state(settings: Settings) -> GuardedState:
    """The user state of `RECSYS_STATE`; a `ConfigError` where it does not answer."""
    return GuardedState(_state(settings), settings.state_pause_seconds)


def item_file(settings: Settings) -> Path:
    """Where new items are kept: beside the events if these are in a file."""
    if settings.new_items is not None:
        return settings.new_items
    return Path(ITEMS if "://" in settings.state else settings.state)


def _state(settings: Settings) -> UserState:
    bounds = (settings.history_limit, settings.forget_seconds, settings.state_seconds)
    url = redis_url(settings)
    if url is None:
        return SqliteState(Path(settings.state), *bounds)
    from serving.redis_state import RedisState  # a file needs no client

    return RedisState(url, *bounds)


def redis_url(settings: Settings) -> str | None:
    """The address of the state's server, None for a file; a `ConfigError` for any other scheme."""
    scheme, found, rest = settings.state.partition("://")
    if not found:
        return None
    if scheme not in REDIS:
        known = ", ".join(f"{name}://" for name in REDIS)
        raise ConfigError(
            f"RECSYS_STATE: {scheme}:// is not known; give a file, or an address that begins with {known}."
        )
    return f"{scheme.replace('valkey', 'redis')}://{rest}"
