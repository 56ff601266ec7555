"""Every error leaves as `application/problem+json` (RFC 9457), without tracebacks."""

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serving.fields import FieldError
from serving.messages import Complaint, Problem
from serving.observed import REQUEST_ID
from serving.state import StateError

PROBLEM_RESPONSE: dict[str, Any] = {
    "description": "A problem (RFC 9457): title, status, detail, request_id; for 422 also errors",
    "content": {"application/problem+json": {"schema": {"type": "object"}}},
}
SHORT, NAMED = 80, 10
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNREAD = {RecursionError: "is nested too deep", UnicodeDecodeError: "is not text in UTF-8"}
LOG = logging.getLogger("uvicorn.error")


def install(app: FastAPI) -> None:
    """Registers the handlers."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FieldError, _no_such_field)
    app.add_exception_handler(StateError, _unavailable)
    app.add_exception_handler(Exception, _bug)


def problem(request: Request, status: int, detail: str, errors: list[Complaint] | None = None) -> Response:
    """The answer for one error."""
    request_id = request.state.request_id
    content = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, request_id=request_id, errors=errors
    )
    return Response(
        content.model_dump_json(exclude_none=True),
        status_code=status,
        media_type="application/problem+json",
        headers={REQUEST_ID: request_id},
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and error.__cause__ is not None:  # FastAPI's own, for what json.loads fails with
        complaint = Complaint(field="body", message=UNREAD.get(type(error.__cause__), "is not JSON that can be read"))
        return problem(request, 422, f"body: {complaint.message}", [complaint])
    response = problem(request, error.status_code, error.detail)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(_allowed(request))
    return response


def _allowed(request: Request) -> list[str]:
    """Methods of all routes with this path; the one that refused knows its own only."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    routes = request.app.routes
    return [name for name, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    complaints = [_complaint(entry) for entry in error.errors()[:NAMED]]
    return problem(request, 422, "; ".join(f"{entry.field}: {entry.message}" for entry in complaints), complaints)


async def _no_such_field(request: Request, error: Exception) -> Response:
    assert isinstance(error, FieldError)
    complaint = Complaint(field=".".join(map(str, error.place)), message=error.message)
    return problem(request, 422, f"{complaint.field}: {complaint.message}", [complaint])


async def _unavailable(request: Request, error: Exception) -> Response:
    LOG.error("request %s: %s", request.state.request_id, error)
    response = problem(request, 503, "user state does not answer, and nothing was acknowledged; try again")
    response.headers["Retry-After"] = str(math.ceil(request.app.state.settings.state_pause_seconds))
    return response


async def _bug(request: Request, error: Exception) -> Response:
    LOG.error("request %s: failed with %s; the traceback follows", request.state.request_id, type(error).__name__)
    return problem(request, 500, "the service failed; its log says why under this request's id")


def _complaint(entry: dict[str, Any]) -> Complaint:
    if entry["type"] == "json_invalid":
        return Complaint(field="body", message=f"is not JSON: {entry['ctx']['error']} at byte {entry['loc'][-1]}")
    source, *path = entry["loc"]
    message = entry["msg"].removeprefix("Value error, ") + _received(entry.get("input"))
    return Complaint(field=".".join(str(part) for part in path) or source, message=message)


def _received(value: object) -> str:
    return f" (received {value!r})" if isinstance(value, str | int | float) and len(repr(value)) <= SHORT else ""
