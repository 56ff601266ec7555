"""What the service writes: lines for people, or one JSON object a line with one line a request."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from uvicorn.config import LOGGING_CONFIG

REQUESTS = logging.getLogger("recsys.requests")


class JsonLines(logging.Formatter):
    """Time, level and message, with what `extra={"fields": …}` adds, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_config(form: Literal["text", "json"]) -> dict[str, Any]:
    """For uvicorn: its own lines, or everything as JSON lines on standard error."""
    if form == "text":
        return LOGGING_CONFIG
    loggers = ("uvicorn", "recsys")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"json": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {name: {"handlers": ["json"], "level": "INFO", "propagate": False} for name in loggers},
    }
