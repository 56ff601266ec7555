"""The routes for programs: they translate and nothing else.

Plain `def`, so that encoding, search and SQLite run in the thread pool. One trip there a request: dependencies are
`async`, and answers become JSON before they return, or FastAPI would send each of these to a thread of its own.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.background import BackgroundTask

from recsys import __version__
from recsys.bundle import Bundle
from serving import messages, paging
from serving.metrics import Metrics
from serving.new_items import NewItem
from serving.problems import PROBLEM_RESPONSE
from serving.queries import Answer
from serving.queries import Query as RecommendQuery
from serving.service import Service
from serving.settings import Settings
from serving.shown import Assigned, Shown
from serving.split import Split
from serving.state import StateError
from serving.swap import Variant
from serving.variants import Variants


async def everything(request: Request) -> Variants:
    """What `lifespan` opened."""
    return request.app.state.variants


async def loaded(request: Request) -> Service:
    """The bundle that answers where no variant is chosen, for this request to its end."""
    return request.app.state.variants.control.service


async def counted(request: Request) -> Metrics:
    """The app's metrics."""
    return request.app.state.metrics


async def configured(request: Request) -> Settings:
    """The app's settings."""
    return request.app.state.settings


async def identified(request: Request) -> str:
    """The request's id."""
    return request.state.request_id


Everything = Annotated[Variants, Depends(everything)]
Loaded = Annotated[Service, Depends(loaded)]
Counted = Annotated[Metrics, Depends(counted)]
Configured = Annotated[Settings, Depends(configured)]
RequestId = Annotated[str, Depends(identified)]

router = APIRouter(responses=dict.fromkeys((401, 403, 404, 409, 413, 422, 429, 503), PROBLEM_RESPONSE))


@router.post("/v1/recommend", response_model=messages.Recommendations)
def recommend(
    query: messages.RecommendRequest,
    variants: Everything,
    metrics: Counted,
    settings: Configured,
    request_id: RequestId,
) -> Response:
    """The next items for a history, a user, or both."""
    assigned, asked = variants.assigned(query.user_id, query.session_id, request_id), query.as_query()
    _check(query, assigned.service, settings)
    answer = assigned.service.recommender.recommend(asked)
    shown = _shown(assigned, query, asked, answer, request_id)
    metrics.answer(answer, shown.variant)
    return _json(_recommendations(assigned.service, query, shown), then=BackgroundTask(variants.showed, [shown]))


@router.post("/v1/recommend/batch", response_model=messages.BatchRecommendations)
def recommend_batch(
    batch: messages.BatchRequest, variants: Everything, metrics: Counted, settings: Configured, request_id: RequestId
) -> Response:
    """The answers to several requests; histories for the same variant are encoded at once."""
    _limit("requests", len(batch.requests), settings.max_batch)
    ids = [f"{request_id}.{number}" for number in range(len(batch.requests))]
    assigned = [
        variants.assigned(query.user_id, query.session_id, own) for own, query in zip(ids, batch.requests, strict=True)
    ]
    for one, query in zip(assigned, batch.requests, strict=True):
        _check(query, one.service, settings)
    shown = _all_shown(assigned, batch.requests, ids)
    for each in shown:
        metrics.answer(each.answer, each.variant)
    answers = [
        _recommendations(one.service, query, each)
        for one, query, each in zip(assigned, batch.requests, shown, strict=True)
    ]
    return _json(
        messages.BatchRecommendations(request_id=request_id, answers=answers),
        then=BackgroundTask(variants.showed, shown),
    )


@router.post("/v1/events", status_code=202, response_model=messages.EventsStored)
def store_events(
    events: messages.EventMessages, variants: Everything, metrics: Counted, settings: Configured, request_id: RequestId
) -> Response:
    """Appends one event or a list of them to the users' histories: all or none."""
    _limit("events", len(events), settings.max_events)
    now = time.time_ns() // 1_000
    sent = [{"timestamp": now} | event.model_dump(exclude_none=True) for event in events]
    try:
        stored = variants.happened(sent)
    except StateError:
        metrics.refused_events(len(events))
        raise
    _, unknown = variants.control.service.recommender.known(dict.fromkeys(event.item_id for event in events))
    metrics.events({"stored": stored, "duplicate": len(events) - stored}, len(unknown))
    answer = messages.EventsStored(
        request_id=request_id, stored=stored, duplicates=len(events) - stored, unknown_items=unknown
    )
    return _json(answer, status=202)


@router.get("/v1/similar/{item_id:path}", response_model=messages.SimilarItems)
def similar(item_id: str, service: Loaded, request_id: RequestId, k: Annotated[messages.K, Query()] = 10) -> Response:
    """The items whose vectors point the most in the item's direction (cosine), without itself."""
    rows, cosines = service.recommender.similar(_row(service, item_id), k)
    answer = messages.SimilarItems(
        request_id=request_id,
        model_version=service.bundle.version,
        item_id=item_id,
        items=service.ranking(rows, cosines),
    )
    return _json(answer)


@router.post("/v1/items", status_code=201, response_model=messages.ItemsStored)
def store_items(
    items: messages.ItemMessages, variants: Everything, settings: Configured, request_id: RequestId
) -> Response:
    """Makes one item or a list of them recommendable by their texts, at once: all or none."""
    _limit("items", len(items), settings.max_items)
    restored = [item.item_id for item in items if item.is_bare and variants.has_deleted(item.item_id)]
    written = [NewItem(**item.model_dump()) for item in items if item.item_id not in restored or not item.is_bare]
    _refuse_unreadable(written, variants.services())
    replaced = variants.add_items(written, restored)
    answer = messages.ItemsStored(
        request_id=request_id,
        model_version=variants.control.service.bundle.version,
        stored=len(written),
        replaced=replaced,
        restored=len(restored),
    )
    return _json(answer, status=201)


@router.delete("/v1/items/{item_id:path}", status_code=204)
def delete_item(item_id: str, variants: Everything) -> Response:
    """Takes an item out of all answers, now and after a restart, until it is sent to `/v1/items` again."""
    if all(service.row(item_id) is None for service in variants.services()):
        raise _no_such_item(item_id, variants.control.service)
    variants.delete_item(item_id)
    return Response(status_code=204)


@router.get("/v1/items/{item_id:path}")
def item(item_id: str, service: Loaded) -> messages.ItemDetails:
    """All that is known of an item."""
    return service.details(_row(service, item_id))


@router.get("/v1/users/{user_id:path}", response_model=messages.UserData)
def user(user_id: messages.UserId, variants: Everything, request_id: RequestId) -> Response:
    """All that the user state holds of one user; an empty list of events where nobody is known by this id."""
    events = variants.stores.state.events(user_id)
    answer = messages.UserData(
        request_id=request_id,
        user_id=user_id,
        events=[
            messages.StoredEvent(item_id=event.item_id, timestamp=event.timestamp, event_id=event.event_id)
            for event in events
        ],
        kept_keys=max(service.recommender.kept_events(user_id) for service in variants.services()),
    )
    return _json(answer)


@router.delete("/v1/users/{user_id:path}", response_model=messages.UserDeleted)
def delete_user(user_id: messages.UserId, variants: Everything, request_id: RequestId) -> Response:
    """Forgets a user: events, kept encodings and keys; may be repeated."""
    return _json(messages.UserDeleted(request_id=request_id, events=variants.forget(user_id)))


@router.get("/health/live")
async def live() -> messages.Health:
    """The process answers."""
    return messages.Health()


@router.get("/health/ready")
def ready(request: Request, variants: Everything) -> messages.Health:
    """Bundle loaded; `degraded` where the user state does not answer, which does not stop recommendations."""
    if request.app.state.draining:
        raise HTTPException(503, "the service is about to stop; send requests elsewhere")
    return messages.Health(status="ok" if variants.state_answers() else "degraded")


@router.get("/metrics", response_class=Response)
def metrics(metrics: Counted, variants: Everything) -> Response:
    """Counts and latencies for Prometheus."""
    recommenders = [service.recommender for service in variants.services()]
    metrics.state(variants.state_answers())
    metrics.serving({name: variant.service.bundle for name, variant in variants.all.items()})
    metrics.shares(variants.split.shares)
    metrics.caches([each.cache_size() for each in recommenders], [each.key_cache_size() for each in recommenders])
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(variants: Everything) -> messages.Models:
    """The bundles that answer here, and what was measured on them."""
    return messages.Models(models=[_model(variant, variants.split) for variant in variants.all.values()])


@router.get("/version")
async def version(variants: Everything) -> messages.Version:
    """What runs here."""
    return messages.Version(recsys=__version__, **vars(_model(variants.control, variants.split)))


def _model(variant: Variant, split: Split) -> messages.Model:
    share, shadow = split.shares[variant.name], variant.name in split.shadows
    service = variant.service
    bundle = service.bundle
    return messages.Model(
        variant=variant.name,
        source=variant.source.name,
        share=share,
        shadow=shadow,
        since=datetime.fromtimestamp(variant.since, UTC).isoformat(timespec="seconds"),
        previous=None if variant.previous is None else variant.previous.version,
        refused=variant.refused,
        bundle=bundle.version,
        model=bundle.card.name,
        items=bundle.catalog.num_items,
        new_items=service.recommender.num_rows - bundle.catalog.num_rows,
        item_fields={name: field.kinds for name, field in service.recommender.fields.known.items()},
        max_len=bundle.card.max_len,
        seen=bundle.card.seen,
        reasoning_steps=service.recommender.most_steps,
        ranker=_ranker(bundle),
        no_history=bundle.card.no_history,
        exported=bundle.manifest.get("created"),
        index=bundle.manifest["counts"].get("index", {"kind": "flat", "recall": 1.0}),
        metrics=bundle.metrics,
    )


def _shown(
    assigned: Assigned, query: messages.RecommendRequest, asked: RecommendQuery, answer: Answer, request_id: str
) -> Shown:
    return Shown(
        request_id=request_id,
        timestamp=time.time_ns() // 1_000,
        user_id=query.user_id,
        session_id=query.session_id,
        variant=assigned.variant.name,
        propensity=assigned.propensity,
        model_version=assigned.service.bundle.version,
        query=asked,
        answer=answer,
        item_ids=[assigned.service.items.item_id(row) for row in answer.rows.tolist()],
        wishes=query.wishes(),
        assigned=assigned,
    )


def _all_shown(
    assigned: Sequence[Assigned], queries: Sequence[messages.RecommendRequest], ids: Sequence[str]
) -> list[Shown]:
    """Answers to several requests, in their order; each bundle answers its own at once."""
    shown: dict[int, Shown] = {}
    asked = [query.as_query() for query in queries]
    places: dict[int, list[int]] = {}
    for place, one in enumerate(assigned):
        places.setdefault(id(one.service), []).append(place)
    for own in places.values():
        answers = assigned[own[0]].service.recommender.recommend_all([asked[place] for place in own])
        for place, answer in zip(own, answers, strict=True):
            shown[place] = _shown(assigned[place], queries[place], asked[place], answer, ids[place])
    return [shown[place] for place in range(len(assigned))]


def _recommendations(service: Service, query: messages.RecommendRequest, answered: Shown) -> messages.Recommendations:
    answer = answered.answer
    items = service.recommended(answer, query.fields)
    shown = [*([] if query.after is None else paging.read(query.after)), *(paging.mark(item.item_id) for item in items)]
    return messages.Recommendations(
        request_id=answered.request_id,
        model_version=answered.model_version,
        variant=answered.variant,
        items=items,
        next=paging.written(shown) if answer.more else None,
        source=answer.source,
        no_history=service.bundle.card.no_history if answer.source == "no_history" else None,
        unknown_items=answer.unknown_items,
        history_length=answer.history_length,
        history_used=answer.history_used,
        state=answer.stored,
        encoding=answer.encoding,
        stages=answer.stages,
        unranked=answer.unranked,
        rank_events=answer.rank_events,
        rank_keys=answer.rank_keys,
        milliseconds=messages.Milliseconds(**{
            stage: round(seconds * 1_000, 3) for stage, seconds in answer.seconds.items()
        }),
    )


def _ranker(bundle: Bundle) -> messages.RankerVersion | None:
    if bundle.ranker is None:
        return None
    card = bundle.ranker.card
    return messages.RankerVersion(
        name=card.name,
        candidates=card.candidates,
        max_len=card.max_len,
        shortest=card.shortest,
        weight=card.weight,
    )


def _json(answer: BaseModel, status: int = 200, then: BackgroundTask | None = None) -> Response:
    return Response(answer.model_dump_json(), status_code=status, media_type="application/json", background=then)


def _limit(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise HTTPException(413, f"{name}: {count:,} entries, and at most {limit:,} are read; send the newest")


def _check(query: messages.RecommendRequest, service: Service, settings: Settings) -> None:
    _limit("history", len(query.history or []), settings.max_history)
    _limit("exclude", len(query.exclude), settings.max_history)
    _within_reason(query.reasoning_steps, service.recommender.most_steps)
    _can_rank(query.rank, service.recommender.ranks)


def _within_reason(steps: int | None, most: int) -> None:
    if steps is not None and steps > most:
        raise HTTPException(
            422, f"reasoning_steps: {steps} were asked for, and the model of this bundle takes at most {most}"
        )


def _can_rank(rank: bool | None, ranks: bool) -> None:
    if rank and not ranks:
        raise HTTPException(
            422, "rank: this bundle holds no ranker; leave rank out, or serve one exported with --ranker"
        )


def _refuse_unreadable(items: Sequence[NewItem], services: Sequence[Service]) -> None:
    """Those that no bundle takes."""
    readers = [service for service in services if service.reader is not None]
    if items and not readers:
        raise HTTPException(
            409,
            f"model {services[0].bundle.card.name} takes no new items: its item vectors are not what its weights make "
            "of texts; serve a bundle of recformer (item_matrix=refreshed), or train and export anew",
        )
    for item in items:
        lacking = [service for service in readers if item.item_id not in service.bundle.catalog.rows]
        if not lacking:
            raise HTTPException(
                409,
                f"item {item.item_id!r} is part of bundle {readers[0].bundle.version}; export a new one to change it",
            )
        if not any(service.takes(item) for service in lacking):
            read = ", ".join(lacking[0].reader.attributes if lacking[0].reader else [])
            raise HTTPException(422, f"item {item.item_id!r} has no text that the model reads; it reads {read}")


def _row(service: Service, item_id: str) -> int:
    row = service.row(item_id)
    if row is None:
        raise _no_such_item(item_id, service)
    return row


def _no_such_item(item_id: str, service: Service) -> HTTPException:
    return HTTPException(404, f"item {item_id!r} is not in the catalogue of bundle {service.bundle.version}")
