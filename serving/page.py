"""The page for people: works without scripts, since every click is a plain link or a GET form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlencode

import jinja2
from fastapi import APIRouter, HTTPException, Query, Response

from recsys.bundle import Bundle
from serving import messages
from serving.api import Configured, Counted, Everything
from serving.queries import Answer
from serving.queries import Query as RecommendQuery
from serving.service import Service
from serving.split import CONTROL

RESULTS, RECOMMENDED, STORED_SHOWN = 8, 10, 8
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("serving"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Choice:
    """What the visitor has put together so far; it lives in the address alone."""

    items: tuple[str, ...]
    user: str
    search: str
    beside: str = ""

    def with_item(self, item_id: str) -> str:
        """Link to the page with one more event."""
        return self.link((*self.items, item_id))

    def without(self, place: int) -> str:
        """Link to the page with one event less."""
        return self.link(self.items[:place] + self.items[place + 1 :])

    def link(self, items: Sequence[str]) -> str:
        """To the page with these events."""
        pairs = [
            ("user", self.user),
            ("q", self.search),
            ("beside", self.beside),
            *(("item", item_id) for item_id in items),
        ]
        return "?" + urlencode([(name, value) for name, value in pairs if value])


@dataclass(frozen=True)
class Line:
    """One item on the page, and where a click on it leads."""

    item_id: str
    title: str
    categories: Sequence[str] = ()
    link: str = ""
    score: str = ""


@dataclass(frozen=True)
class Column:
    """What one variant answers to the choice."""

    variant: str
    bundle: Bundle
    answer: Answer
    items: Sequence[Line]

    @property
    def milliseconds(self) -> float:
        """All stages together."""
        return sum(self.answer.seconds.values()) * 1_000

    def shared(self, other: "Column") -> int:
        """How many items both show."""
        return len({line.item_id for line in self.items} & {line.item_id for line in other.items})


@router.get("/")
def page(
    variants: Everything,
    metrics: Counted,
    settings: Configured,
    item: Annotated[list[messages.ItemId] | None, Query()] = None,
    user: Annotated[str, Query(max_length=512)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    beside: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Search, history and recommendations: of `control`, and of another variant beside it where there is one."""
    choice = Choice(tuple(item or ()), user.strip(), q.strip(), beside)
    if len(choice.items) > settings.max_history:
        raise HTTPException(413, f"item: {len(choice.items):,} entries, and at most {settings.max_history:,} are read")
    others = [name for name in variants.all if name != CONTROL]
    if beside and beside not in others:
        raise HTTPException(404, f"there is no variant {beside!r} to show beside {CONTROL}")
    second = beside or next(iter(others), None)
    shown = [variants.all[name] for name in (CONTROL, second) if name is not None]
    columns = [_column(variant.name, variant.service, choice) for variant in shown]
    for column in columns:
        metrics.answer(column.answer)
    content = _content(variants.control.service, choice, columns[0].answer)
    further = [_link_beside(choice, name) for name in others if name != second]
    html = TEMPLATES.get_template("page.html").render(content, columns=columns, further=further)
    return Response(html, media_type="text/html", headers=HEADERS)


def _column(variant: str, service: Service, choice: Choice) -> Column:
    answer = service.recommender.recommend(
        RecommendQuery(history=choice.items, user_id=choice.user or None, k=RECOMMENDED)
    )
    score_format = ".3f" if answer.source == "model" else ",.0f"  # popularity counts
    items = [
        _line(scored, choice.with_item(scored.item_id), format(scored.score, score_format))
        for scored in service.ranking(answer.rows, answer.scores)
    ]
    return Column(variant, service.bundle, answer, items)


def _link_beside(choice: Choice, name: str) -> tuple[str, str]:
    """A variant that is not shown, and where it is."""
    return name, replace(choice, beside=name).link(choice.items)


def _content(service: Service, choice: Choice, answer: Answer) -> Mapping[str, object]:
    stored = answer.history[: len(answer.history) - len(choice.items)]
    return {
        "bundle": service.bundle,
        "choice": choice,
        "results": _results(service, choice),
        "chosen": [_named(service, item_id, choice.without(place)) for place, item_id in enumerate(choice.items)],
        "stored": [_named(service, item_id, "") for item_id in stored[-STORED_SHOWN:]],
        "num_stored": len(stored),
        "answer": answer,
    }


def _results(service: Service, choice: Choice) -> list[Line]:
    """Matches of the search; without one, what is popular now."""
    table, popular = service.items, service.recommender.popular
    rows = table.find(choice.search, RESULTS) if choice.search else popular(RESULTS)
    items = [service.item(row) for row in rows.tolist()]
    return [_line(item, choice.with_item(item.item_id)) for item in items]


def _line(item: messages.Item, link: str, score: str = "") -> Line:
    return Line(item.item_id, item.title or item.item_id, item.categories, link, score)


def _named(service: Service, item_id: str, link: str) -> Line:
    row = service.row(item_id)
    return Line(item_id, f"{item_id} (unknown item)", (), link) if row is None else _line(service.item(row), link)
