"""Examples for the description of the API: one request and one answer of each route."""

from typing import Any

from fastapi import FastAPI

BUNDLE, OLDER = "99dbed683a78", "5b0c6f7de2a1"
ID = "3d350a33f33a46c6b277a3de5a0da3f8"
ITEM = {"item_id": "172", "title": "Empire Strikes Back, The", "categories": ["Action", "War"]}
NEAR = {"item_id": "50", "title": "Star Wars", "categories": ["Action", "War"]}
ASK: dict[str, Any] = {
    "history": ["50", "181", "174"],
    "k": 1,
    "filter": {"categories": {"any": ["Action"], "none": ["Horror"]}},
    "boosts": [{"filter": {"categories": {"any": ["War"]}}, "multiply": 1.2}],
    "diversity": {"quota": {"field": "categories", "most": 5}, "mmr": 0.8},
    "why": 1,
    "fields": ["categories"],
}
ANSWER: dict[str, Any] = {
    "request_id": ID,
    "model_version": BUNDLE,
    "variant": "control",
    "items": [
        ITEM | {"score": 9.166, "fields": {"categories": ["Action", "War"]}, "why": [NEAR | {"cosine": 0.91}]},
    ],
    "next": "2lW2BlOG",
    "source": "model",
    "no_history": None,
    "unknown_items": [],
    "history_length": 3,
    "history_used": 3,
    "state": None,
    "encoding": "full",
    "stages": ["encode", "search"],
    "unranked": None,
    "rank_events": 0,
    "rank_keys": None,
    "milliseconds": {"state": 0.0, "encode": 0.24, "search": 0.31, "rank": 0.0},
}
MODEL: dict[str, Any] = {
    "variant": "control",
    "source": "models:/shop@champion",
    "share": 1.0,
    "shadow": False,
    "since": "2026-11-22T06:15:40+00:00",
    "previous": None,
    "refused": None,
    "bundle": BUNDLE,
    "model": "sasrec",
    "items": 1682,
    "new_items": 0,
    "item_fields": {"item_id": "texts, also numbers", "title": "texts", "categories": "lists of texts"},
    "max_len": 200,
    "seen": "exclude",
    "reasoning_steps": 0,
    "ranker": None,
    "no_history": "popularity, latest 10% of events",
    "exported": "2026-11-22T06:12:12+00:00",
    "index": {"kind": "flat", "recall": 1.0},
    "metrics": {"validation": {"ndcg@10": 0.1}},
}
SPLIT: dict[str, Any] = {
    "request_id": ID,
    "weights": {"control": 1.0},
    "shares": {"control": 1.0},
    "shadows": [],
    "kept": True,
}
CHANGED: dict[str, Any] = {
    "request_id": ID,
    "variant": "control",
    "model_version": BUNDLE,
    "previous": OLDER,
    "swapped": True,
}
REQUESTS: dict[tuple[str, str], Any] = {
    ("post", "/v1/recommend"): ASK,
    ("post", "/v1/recommend/batch"): {"requests": [ASK, {"user_id": "ann"}]},
    ("post", "/v1/events"): {"user_id": "ann", "item_id": "50", "event_id": "order-7-line-1", "request_id": ID},
    ("put", "/v1/variants"): {"weights": {"control": 1.0}, "shadows": []},
    ("post", "/v1/variants/stop"): {"variant": None},
    ("post", "/v1/models/reload"): {"variant": "control"},
    ("post", "/v1/models/rollback"): {"variant": "control"},
    ("post", "/v1/items"): {
        "item_id": "B0NEW",
        "title": "Digital caliper, 150 mm",
        "categories": ["Tools"],
        "fields": {"brand": "Acme"},
    },
}
ANSWERS: dict[tuple[str, str], Any] = {
    ("post", "/v1/recommend"): ANSWER,
    ("post", "/v1/recommend/batch"): {"request_id": ID, "answers": [ANSWER | {"request_id": f"{ID}.0"}]},
    ("post", "/v1/events"): {"request_id": ID, "stored": 1, "duplicates": 0, "unknown_items": []},
    ("get", "/v1/similar/{item_id}"): {
        "request_id": ID,
        "model_version": BUNDLE,
        "item_id": "50",
        "items": [ITEM | {"score": 0.91}],
    },
    ("post", "/v1/items"): {"request_id": ID, "model_version": BUNDLE, "stored": 1, "replaced": 0, "restored": 0},
    ("get", "/v1/items/{item_id}"): ITEM | {"retired": False, "fields": {"year": "1980"}},
    ("post", "/v1/models/reload"): CHANGED,
    ("post", "/v1/models/rollback"): CHANGED | {"model_version": OLDER, "previous": BUNDLE},
    ("get", "/v1/variants"): SPLIT,
    ("put", "/v1/variants"): SPLIT,
    ("post", "/v1/variants/stop"): SPLIT,
    ("get", "/v1/models"): {"models": [MODEL]},
    ("get", "/version"): MODEL | {"recsys": "0.1.0"},
    ("get", "/v1/users/{user_id}"): {
        "request_id": ID,
        "user_id": "ann",
        "events": [{"item_id": "50", "timestamp": 1_700_000_000_000_000, "event_id": "order-7-line-1"}],
        "kept_keys": 0,
    },
    ("delete", "/v1/users/{user_id}"): {"request_id": ID, "events": 1},
    ("get", "/health/live"): {"status": "ok"},
    ("get", "/health/ready"): {"status": "ok"},
}
PATH_PARAMETERS = {"item_id": "50", "user_id": "ann"}


def install(app: FastAPI) -> None:
    """The app's description of itself shows the examples."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _show(operation, (method, path.replace(":path", "")))
        return schema

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's manual has it


def _show(operation: dict[str, Any], route: tuple[str, str]) -> None:
    if route in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["example"] = REQUESTS[route]
    if route in ANSWERS:
        answered = next(content for status, content in operation["responses"].items() if status.startswith("2"))
        answered["content"]["application/json"]["example"] = ANSWERS[route]
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in PATH_PARAMETERS:
            parameter["example"] = PATH_PARAMETERS[parameter["name"]]
