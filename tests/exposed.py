"""Exposure logs as the service writes them, made of rows that a test chose."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.exposures import Exposures, Outcomes

START = 1_700_000_000_000_000
SECOND = 1_000_000


def answer(number: int, items: Sequence[str], **other: Any) -> dict[str, Any]:
    """One answer, a second after the one before."""
    return {
        "request_id": f"r{number:06}",
        "timestamp": START + number * SECOND,
        "user_id": f"u{number:06}",
        "session_id": None,
        "variant": "only",
        "propensity": 1.0,
        "model_version": "0123456789ab",
        "source": "model",
        "position": 1,
        "item_ids": list(items),
        "scores": [0.0] * len(items),
        "propensities": None,
        "history": [],
        "wishes": None,
    } | other


def event(exposure: Mapping[str, Any], item: str, seconds: float = 1, **other: Any) -> dict[str, Any]:
    """One event of the user on an item, some seconds after the answer."""
    return {
        "user_id": exposure["user_id"],
        "item_id": item,
        "timestamp": exposure["timestamp"] + int(seconds * SECOND),
        "event_type": None,
        "value": None,
        "event_id": None,
        "request_id": None,
    } | other


def write_log(folder: Path, answers: Sequence[dict[str, Any]], outcomes: Sequence[dict[str, Any]]) -> Path:
    """LOG/answers and LOG/outcomes, one part each."""
    for kind, schema, rows in (("answers", Exposures, answers), ("outcomes", Outcomes, outcomes)):
        (folder / kind).mkdir(parents=True)
        table = pl.DataFrame(rows, schema=dict(schema.create_empty().schema), orient="row")
        schema.validate(table).write_parquet(folder / kind / "part-000.parquet")
    return folder
