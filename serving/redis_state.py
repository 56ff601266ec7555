"""User state in Redis or Valkey: several replicas of the service, one memory (docs/decisions/state.md).

    recsys:events:USER      sorted set; a member is   time (18 digits) arrival (16 digits) [item, event id]
    recsys:event-ids:USER   set of these event ids
    recsys:arrivals         counts events, so that those of one time stay in order of arrival
    recsys:deletions        counts deletions of users, so that replicas drop what they keep

All scores are 0 and members sort as bytes: a time in microseconds would lose digits as a score, which is a double. One
script appends, so no reader sees half of a request. Its keys belong to several users: Redis Cluster is not served.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from recsys.errors import ConfigError
from serving.state import Event, StateError

LOG = logging.getLogger("uvicorn.error")
PREFIX = "recsys"
TIME_DIGITS, ARRIVAL_DIGITS = 18, 16
CONTENT = TIME_DIGITS + ARRIVAL_DIGITS
APPEND = f"""
local limit, milliseconds, stored = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
for place = 3, #ARGV, 4 do
    local user, time, content, id = tonumber(ARGV[place]), ARGV[place + 1], ARGV[place + 2], ARGV[place + 3]
    local events, ids = KEYS[2 * user], KEYS[2 * user + 1]
    if id == '' or redis.call('SADD', ids, id) == 1 then
        local arrival = string.format('%0{ARRIVAL_DIGITS}d', redis.call('INCR', KEYS[1]))
        redis.call('ZADD', events, 0, time .. arrival .. content)
        stored = stored + 1
    end
end
for place = 2, #KEYS, 2 do
    local events, ids = KEYS[place], KEYS[place + 1]
    local excess = redis.call('ZCARD', events) - limit
    if excess > 0 then
        for at, member in ipairs(redis.call('ZPOPMIN', events, excess)) do
            if at % 2 == 1 then
                local id = cjson.decode(string.sub(member, {CONTENT + 1}))[2]
                if id then redis.call('SREM', ids, id) end
            end
        end
    end
    for _, key in ipairs({{events, ids}}) do
        if milliseconds > 0 then redis.call('PEXPIRE', key, milliseconds) else redis.call('PERSIST', key) end
    end
end
return stored
"""


class RedisState:
    """One Redis or Valkey server, which replicas share; what it promises of a crash is its own `appendfsync`.

    A call gives up after `wait_seconds` and is not tried again: whether it was done is not known then.
    """

    def __init__(self, url: str, history_limit: int, forget_seconds: float = 0, wait_seconds: float = 5) -> None:
        self._limit, self._milliseconds = history_limit, round(forget_seconds * 1_000)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=wait_seconds,
                socket_connect_timeout=wait_seconds,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
            self._redis.ping()
            _warn_of_loss(self._redis)
        except (RedisError, ValueError) as error:
            raise ConfigError(
                f"{_without_password(url)}: cannot keep user state there ({error}); start the server, or correct "
                "--state or RECSYS_STATE."
            ) from None
        self._append = self._redis.register_script(APPEND)
        self._deletions = 0

    @property
    def deletions(self) -> int:
        """As of the last call that read or deleted."""
        return self._deletions

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new."""
        places = {user_id: place for place, user_id in enumerate(dict.fromkeys(event.user_id for event in events), 1)}
        keys = [f"{PREFIX}:arrivals", *chain.from_iterable(_keys(user_id) for user_id in places)]
        rows: Iterator[tuple[str | int, ...]] = (
            (places[event.user_id], f"{event.timestamp:0{TIME_DIGITS}}", _content(event), event.event_id or "")
            for event in events
        )
        with _answering():
            return self._append(keys, [self._limit, self._milliseconds, *chain.from_iterable(rows)])

    def history(self, user_id: str) -> list[str]:
        """Item ids of the user's newest events, oldest first."""
        return [json.loads(member[CONTENT:])[0] for member in self._newest(user_id)]

    def events(self, user_id: str) -> list[Event]:
        """The user's newest events, oldest first."""
        return [_event(user_id, member) for member in self._newest(user_id)]

    def delete(self, user_id: str) -> int:
        """Takes the user's keys out of memory; how many events there were. The server's files follow later."""
        events, ids = _keys(user_id)
        with _answering(), self._redis.pipeline(transaction=True) as calls:
            calls.zcard(events)
            calls.delete(events, ids)
            calls.incr(f"{PREFIX}:deletions")
            deleted, _, self._deletions = calls.execute()
        return deleted

    def check(self) -> None:
        """Asks for an answer."""
        with _answering():
            self._redis.ping()

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _newest(self, user_id: str) -> list[bytes]:
        events, _ = _keys(user_id)
        members: list[bytes]
        with _answering(), self._redis.pipeline(transaction=False) as calls:
            calls.zrange(events, -self._limit, -1)
            calls.get(f"{PREFIX}:deletions")
            members, deletions = calls.execute()
        self._deletions = int(deletions or 0)
        return members


def _keys(user_id: str) -> tuple[str, str]:
    return f"{PREFIX}:events:{user_id}", f"{PREFIX}:event-ids:{user_id}"


def _content(event: Event) -> str:
    item_and_event = [event.item_id] if event.event_id is None else [event.item_id, event.event_id]
    return json.dumps(item_and_event, ensure_ascii=False)


def _event(user_id: str, member: bytes) -> Event:
    item_id, *event_id = json.loads(member[CONTENT:])
    return Event(
        user_id=user_id,
        item_id=item_id,
        timestamp=int(member[:TIME_DIGITS]),
        event_id=event_id[0] if event_id else None,
    )


@contextmanager
def _answering() -> Iterator[None]:
    """What Redis fails with inside becomes a `StateError`."""
    try:
        yield
    except RedisError as error:
        raise StateError(f"user state does not answer: {error}") from error


def _warn_of_loss(server: Redis) -> None:
    """Says in the log what this server may forget of what it has acknowledged; some hide their settings."""
    about: dict[str, Any] = server.info()
    if not about.get("aof_enabled"):
        LOG.warning("Redis runs without appendonly: what came since its last snapshot is lost when it dies")
    if about.get("maxmemory") and about.get("maxmemory_policy") != "noeviction":
        LOG.warning("Redis may evict users (maxmemory-policy %s): set noeviction", about["maxmemory_policy"])


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
