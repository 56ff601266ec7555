"""A cycle's verdict to a webhook; a webhook that fails is said and costs nothing else."""

import json
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from pipelines.pipeline_config import NotifySection
from pipelines.reporter import Reporter


def notify(section: NotifySection, message: Mapping[str, Any], reporter: Reporter) -> str:
    """POSTs the message as JSON and says how that went: `sent`, `not asked for` or `failed: ...`."""
    if section.webhook is None:
        return "not asked for"
    body = json.dumps(message, default=str).encode()
    try:
        request = urllib.request.Request(section.webhook, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=section.timeout_seconds):
            return "sent"
    except (OSError, HTTPException) as error:
        reporter.say(f"warning: the webhook did not take the message ({error}); the run goes on")
        return f"failed: {error}"
