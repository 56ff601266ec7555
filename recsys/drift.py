"""How a part of a log differs from the one before it: what a data source that broke overnight shows first.

Times are seconds here; what needs times is left out where a log has only an order.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from recsys.schema import TimeKind

MICROSECONDS = 1_000_000
VOLUME_FACTOR = 3
REJECTED_POINTS = 0.01
NEW_POINTS = 0.25
GAP_SHARE = 0.5
FEWEST_FOR_RATES = 10

Figures = dict[str, Any]


def part_figures(
    events: pl.DataFrame, rejected: pl.DataFrame, *, users: int, items: int, new_users: int, new_items: int
) -> Figures:
    """Volume, users and items (`new_*`: not in the log before), span of time and of values of one part.

    Of `events` only times and values are looked at.
    """
    times = events["timestamp"].sort()
    return {
        "rows": len(events) + len(rejected),
        "accepted": len(events),
        "rejected": dict(Counter(rejected["reason"]).most_common()),
        "users": users,
        "items": items,
        "new_users": new_users,
        "new_items": new_items,
        "first_timestamp": times.min(),
        "last_timestamp": times.max(),
        "longest_gap": times.diff().max(),
        "events_per_hour": _rate(times),
        "value_min": events["value"].min(),
        "value_mean": events["value"].mean(),
        "value_max": events["value"].max(),
    }


def _rate(times: pl.Series) -> float | None:
    """Events an hour, from the middle nine tenths of them: stragglers would stretch the whole span."""
    if len(times) < FEWEST_FOR_RATES:
        return None
    low, high = times.quantile(0.05, "nearest"), times.quantile(0.95, "nearest")
    hours = max(MICROSECONDS, int(high or 0) - int(low or 0)) / MICROSECONDS / 3600
    return round(0.9 * len(times) / hours, 3)


def drift(part: Figures, previous: Figures, log: Mapping[str, Any], time: TimeKind, late: int) -> Figures:
    """What changed since the previous part, with a sentence in `warnings` for each change that is worth a look.

    `log`: counts of the dataset before this part. `late`: events of the part older than the newest one in the log.
    """
    found: Figures = {
        "accepted": part["accepted"],
        "accepted_before": previous["accepted"],
        "rejected_share": _share(_rejected(part), part["rows"]),
        "rejected_share_before": _share(_rejected(previous), previous["rows"]),
        "new_users": part["new_users"],
        "new_user_share": _share(part["new_users"], part["users"]),
        "new_items": part["new_items"],
        "new_item_share": _share(part["new_items"], part["items"]),
    }
    if part["value_min"] is not None:
        found |= {"values": [part["value_min"], part["value_max"]]}
        found |= {"values_before": [previous["value_min"], previous["value_max"]]}
    if time == "timestamp" and part["accepted"]:
        found |= {
            "late_events": late,
            "gap_seconds": max(0, part["first_timestamp"] - log["last_timestamp"]) / MICROSECONDS,
            "longest_gap_seconds": (part["longest_gap"] or 0) / MICROSECONDS,
            "span_seconds": _span(part) / MICROSECONDS,
            "events_per_hour": part["events_per_hour"],
            "events_per_hour_before": previous["events_per_hour"],
        }
    return found | {
        "warnings": [*_about_volume(found), *_about_newness(found, previous), *_about_time(found, previous)]
    }


def _about_volume(found: Figures) -> list[str]:
    now, before, warnings = found.get("events_per_hour"), found.get("events_per_hour_before"), list[str]()
    if not found["accepted"]:
        warnings.append("no new event")
    elif now and before and not before / VOLUME_FACTOR <= now <= before * VOLUME_FACTOR:
        warnings.append(f"{now:.0f} events an hour, {before:.0f} before")
    if found["rejected_share"] > found["rejected_share_before"] + REJECTED_POINTS:
        warnings.append(
            f"{found['rejected_share']:.1%} of the rows rejected, {found['rejected_share_before']:.1%} before"
        )
    if "values" in found and found["values_before"][0] is not None:
        (low, high), (low_before, high_before) = found["values"], found["values_before"]
        if low < low_before or high > high_before:
            warnings.append(f"values from {low:g} to {high:g}, {low_before:g} to {high_before:g} before")
    return warnings


def _about_newness(found: Figures, previous: Figures) -> list[str]:
    warnings = []
    for kind in ("user", "item"):
        share, before = found[f"new_{kind}_share"], _share(previous[f"new_{kind}s"], previous[f"{kind}s"])
        if found["accepted"] and abs(share - before) > NEW_POINTS and before < 1:
            warnings.append(f"{share:.1%} of the {kind}s are new, {before:.1%} before")
    return warnings


def _about_time(found: Figures, previous: Figures) -> list[str]:
    if "gap_seconds" not in found:
        return []
    warnings = []
    if previous["accepted"] and found["gap_seconds"] > max(1.0, _span(previous) / MICROSECONDS):
        warnings.append(f"nothing for {found['gap_seconds']:.0f} s between the log so far and this part")
    if found["accepted"] >= FEWEST_FOR_RATES and found["longest_gap_seconds"] > GAP_SHARE * found["span_seconds"]:
        warnings.append(f"nothing for {found['longest_gap_seconds']:.0f} s inside this part")
    return warnings


def _rejected(part: Figures) -> int:
    return sum(part["rejected"].values())


def _share(count: int, total: int) -> float:
    return round(count / total, 6) if total else 0.0


def _span(part: Figures) -> int:
    return int(part["last_timestamp"] - part["first_timestamp"]) if part["accepted"] else 0
