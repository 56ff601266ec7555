"""The dashboard: what this process does now, as a page that renews itself; without scripts, a link renews it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Response

from serving.api import Counted, Everything
from serving.page import HEADERS, TEMPLATES
from serving.recent import SLOT_SECONDS, Lately, Slot, Times
from serving.variants import Variants

TOP_ITEMS, MINUTE = 10, 60 // SLOT_SECONDS
WIDTH, HEIGHT = 600, 80
"""Of the chart, in its own units; the page decides how large they are."""
POLICY = {
    **HEADERS,
    "Content-Security-Policy": f"{HEADERS['Content-Security-Policy']}; script-src 'self'; connect-src 'self'",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Bar:
    """One slot of the chart: where it stands, and how high its failed and all its requests reach."""

    left: float
    width: float
    all: float
    failed: float


@dataclass(frozen=True)
class VariantLine:
    """One variant: the bundle that answers, its share of the users, and its latest answers."""

    name: str
    model: str
    version: str
    share: float
    shadow: bool
    times: Times


@dataclass(frozen=True)
class ItemLine:
    """An item and in how many of the latest answers it was."""

    item_id: str
    title: str
    answers: int


@router.get("/dashboard")
def dashboard(variants: Everything, metrics: Counted, paused: Annotated[bool, Query()] = False) -> Response:
    """The whole page."""
    content = {**_content(variants, metrics.recent.lately(TOP_ITEMS)), "paused": paused}
    return _html(TEMPLATES.get_template("dashboard.html").render(content))


@router.get("/dashboard/figures")
def figures(variants: Everything, metrics: Counted) -> Response:
    """The part of it that changes."""
    content = _content(variants, metrics.recent.lately(TOP_ITEMS))
    return _html(TEMPLATES.get_template("dashboard_figures.html").render(content))


def _html(text: str) -> Response:
    return Response(text, media_type="text/html", headers={**POLICY, "Cache-Control": "no-store"})


def _content(variants: Variants, lately: Lately) -> Mapping[str, object]:
    """For the templates."""
    minute = lately.traffic[-MINUTE - 1 : -1]  # the last slot is still being filled
    sizes = [service.recommender.cache_size() for service in variants.services()]
    return {
        "lately": lately,
        "per_second": sum(slot.requests for slot in minute) / (MINUTE * SLOT_SECONDS),
        "refused": sum(slot.refused for slot in lately.traffic),
        "failed": sum(slot.failed for slot in lately.traffic),
        "state_answers": variants.state_answers(),
        "bars": bars(lately.traffic),
        "busiest": max(slot.requests for slot in lately.traffic) / SLOT_SECONDS,
        "width": WIDTH,
        "height": HEIGHT,
        "entries": sum(size.entries for size in sizes),
        "mebibytes": sum(size.bytes for size in sizes) / 2**20,
        "variants": _variants(variants, lately),
        "items": _items(variants, lately),
    }


def bars(traffic: list[Slot]) -> list[Bar]:
    """Of equal width, the busiest as high as the chart."""
    most, width = max(1, *(slot.requests for slot in traffic)), WIDTH / len(traffic)
    return [
        Bar(place * width, 0.8 * width, HEIGHT * slot.requests / most, HEIGHT * slot.failed / most)
        for place, slot in enumerate(traffic)
    ]


def _variants(variants: Variants, lately: Lately) -> list[VariantLine]:
    split = variants.split
    return [
        VariantLine(
            name=name,
            model=variant.service.bundle.card.name,
            version=variant.service.bundle.version,
            share=split.shares.get(name, 0.0),
            shadow=name in split.shadows,
            times=lately.variants.get(name, Times.of([])),
        )
        for name, variant in variants.all.items()
    ]


def _items(variants: Variants, lately: Lately) -> list[ItemLine]:
    """Titles as the first bundle says them that knows the item."""
    return [ItemLine(item_id, _title(variants, item_id), answers) for item_id, answers in lately.items]


def _title(variants: Variants, item_id: str) -> str:
    for service in variants.services():
        row = service.row(item_id)
        if row is not None and (title := service.items.title(row)):
            return title
    return item_id
