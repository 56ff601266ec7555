"""Which source column plays which role: told by the user, else guessed from names that logs commonly use."""

import re
from collections.abc import Mapping, Sequence

from recsys.errors import ConfigError
from recsys.schema import REQUIRED_ROLES

# Compared in lower case with letters and digits only; an earlier name wins over a later one.
EVENT_NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "memberid", "accountid"),
    "item_id": (
        *("itemid", "item", "iid", "movieid", "productid", "asin", "parentasin", "articleid", "clickarticleid"),
        *("newsid", "songid", "trackid", "artistid", "bookid", "videoid", "businessid", "venueid", "poiid", "sku"),
    ),
    "timestamp": (
        *("timestamp", "time", "ts", "datetime", "eventtime", "clicktimestamp", "unixreviewtime", "unixtime"),
        *("createdat", "occurredat", "date"),
    ),
    "event_type": ("eventtype", "event", "action", "behavior", "behaviour", "behaviortype"),
    "value": ("value", "rating", "overall", "stars"),
    "session_id": ("sessionid", "session"),
}
ITEM_NAMES: Mapping[str, tuple[str, ...]] = {
    "item_id": EVENT_NAMES["item_id"],
    "title": ("title", "movietitle", "itemtitle", "productname", "itemname", "name"),
    "categories": ("categories", "category", "genres", "genre", "class"),
    "image": ("image", "imagepath", "imageurl"),
}


def event_roles(columns: Sequence[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Role -> column of a log; an empty column in `mapping` says that the role is not there."""
    roles = _resolve(columns, mapping, EVENT_NAMES, source, "--map")
    for role in REQUIRED_ROLES:
        if role not in roles:
            raise ConfigError(
                f"{source}: no column for {role}; it has {_listed(columns)}. "
                f"Say which with --map {role}=COLUMN, or name the columns of a file without header with --columns."
            )
    return roles


def item_roles(columns: Sequence[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Role -> column of an item table; roles beyond the known ones rename an attribute."""
    roles = _resolve(columns, mapping, ITEM_NAMES, source, "--items-map")
    if "item_id" not in roles:
        raise ConfigError(
            f"{source}: the item table has no column for item_id; it has {_listed(columns)}. "
            "Say which with --items-map item_id=COLUMN."
        )
    return roles


def looks_like_log(columns: Sequence[str]) -> bool:
    """Whether the names tell which columns are user and item."""
    roles = _resolve(columns, {}, EVENT_NAMES, "", "")
    return all(role in roles for role in REQUIRED_ROLES)


def _resolve(
    columns: Sequence[str], mapping: Mapping[str, str], names: Mapping[str, tuple[str, ...]], source: str, option: str
) -> dict[str, str]:
    for role, column in mapping.items():
        if column and column not in columns:
            raise ConfigError(f"{source}: {option} {role}={column}: no such column; it has {_listed(columns)}.")
    roles = {role: column for role, column in mapping.items() if column}
    for role, known in names.items():
        free = {_plain(column): column for column in reversed(columns) if column not in roles.values()}
        match = next((free[name] for name in known if name in free), None)
        if role not in mapping and match is not None:
            roles[role] = match
    return roles


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
