"""The routes for those who run the service: which bundle answers whom. They need the scope `admin`."""

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException

from recsys.errors import ConfigError
from serving import admin_messages as messages
from serving.api import Everything, RequestId
from serving.problems import PROBLEM_RESPONSE
from serving.swap import SwapError, Variant
from serving.variants import Variants

router = APIRouter(responses=dict.fromkeys((401, 403, 404, 409, 413, 422, 429, 503), PROBLEM_RESPONSE))


@router.post("/v1/models/reload")
async def reload(change: messages.ChangeRequest, variants: Everything, request_id: RequestId) -> messages.Changed:
    """Looks at once for the bundle that the variant's source names, and puts it in place if it is another one.

    A bundle that was refused, or rolled back from, is tried again. The answer comes when that is done, however long it
    takes.
    """
    variant = _named(change.variant, variants)
    own = CapacityLimiter(1)  # none of the threads that answer others; a variant allows one change at a time
    try:
        swapped = await to_thread.run_sync(variant.reload, limiter=own)
    except SwapError as error:
        raise HTTPException(409, str(error)) from None
    return _changed(variant, request_id, swapped=swapped)


@router.post("/v1/models/rollback")
def roll_back(change: messages.ChangeRequest, variants: Everything, request_id: RequestId) -> messages.Changed:
    """Brings back the bundle before, at once; the source is followed again when it names something new."""
    variant = _named(change.variant, variants)
    try:
        variant.roll_back()
    except SwapError as error:
        raise HTTPException(409, str(error)) from None
    return _changed(variant, request_id, swapped=True)


@router.get("/v1/variants")
def variants(variants: Everything, request_id: RequestId) -> messages.SplitNow:
    """Which part of the users gets which variant."""
    return _now(variants, request_id)


@router.put("/v1/variants")
def put_weights(split: messages.SplitRequest, variants: Everything, request_id: RequestId) -> messages.SplitNow:
    """Other weights, from the next request on."""
    try:
        variants.change_split(lambda now: now.changed(split.weights, split.shadows))
    except ConfigError as error:
        raise HTTPException(422, str(error)) from None
    return _now(variants, request_id)


@router.post("/v1/variants/stop")
def stop(stop: messages.StopRequest, variants: Everything, request_id: RequestId) -> messages.SplitNow:
    """The kill switch: a variant answers nobody from the next request on, or all but `control` do not."""
    if stop.variant is not None:
        _named(stop.variant, variants)
    variants.change_split(lambda now: now.without(stop.variant))
    return _now(variants, request_id)


def _now(variants: Variants, request_id: str) -> messages.SplitNow:
    split = variants.split
    return messages.SplitNow(
        request_id=request_id,
        weights=dict(split.weights),
        shares=split.shares,
        shadows=list(split.shadows),
        kept=variants.keeps_split,
    )


def _named(name: str, variants: Variants) -> Variant:
    if name not in variants.all:
        raise HTTPException(404, f"there is no variant {name!r}; there are {', '.join(variants.all)}")
    return variants.all[name]


def _changed(variant: Variant, request_id: str, *, swapped: bool) -> messages.Changed:
    return messages.Changed(
        request_id=request_id,
        variant=variant.name,
        model_version=variant.service.bundle.version,
        previous=None if variant.previous is None else variant.previous.version,
        swapped=swapped,
    )
