"""What a request may ask for beside a history: answers are the catalogue, masked, boosted and sorted by hand."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.new_items import NewItem
from serving.queries import Query
from serving.recommender import Recommender
from serving.settings import Settings

LATER = [
    NewItem(item_id="new-0", title="Title 3", categories=["War"], fields={"year": "1991"}),
    NewItem(item_id="new-1", title="Cup", categories=["Comedy", "War"], fields={"year": "2000"}),
    NewItem(item_id="new-2", fields={"year": "soon"}),
]


def post(client: TestClient, **body: Any) -> Any:
    answer = client.post("/v1/recommend", json={"history": ["item-05", "item-30"], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


class Shop:
    """A recommender with random items that came later, and its catalogue as one table."""

    def __init__(self, recommender: Recommender, vectors: np.ndarray, popularity: np.ndarray) -> None:
        new = np.random.default_rng(8).normal(size=(len(LATER), vectors.shape[1])).astype(np.float32)
        first, self.recommender, self.popularity = len(vectors), recommender, popularity
        recommender.fields.write(LATER)
        recommender.admit({item.item_id: first + place for place, item in enumerate(LATER)}, new)
        self.vectors = np.concatenate([vectors, new])
        self.ids = [recommender.fields.item_id(row) for row in range(1, len(self.vectors))]

    def about(self, row: int) -> tuple[str | None, list[str], float | None]:
        """Title, categories, year of an item."""
        fields = self.recommender.fields
        title, year = fields.names("title", row), fields.names("year", row)
        return (title[0] if title else None, fields.names("categories", row), float(year[0]) if year else None)


@pytest.fixture(scope="module")
def service(sasrec, tmp_path_factory) -> Iterator[TestClient]:
    """One service for all of this file; it keeps no user."""
    state = tmp_path_factory.mktemp("wishes") / "state.sqlite"
    with TestClient(create_app(sasrec.folder, Settings(state=state)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def shop(sasrec, tmp_path_factory) -> Iterator[Shop]:
    """Beside `service`, since its items that came later have no texts to be read."""
    state = tmp_path_factory.mktemp("shop") / "state.sqlite"
    with TestClient(create_app(sasrec.folder, Settings(state=state))) as client:
        vectors = sasrec.model.item_vectors().detach().numpy()
        yield Shop(client.app.state.variants.control.service.recommender, vectors, sasrec.no_history)


NAMES = st.sampled_from(["Drama", "War", "Comedy", "Title 3", "Title 9", "Cup"])
FEW_NAMES = st.none() | st.lists(NAMES, min_size=1, max_size=3)
YEARS = st.none() | st.integers(1988, 2045)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "categories": st.fixed_dictionaries({"any": FEW_NAMES, "none": FEW_NAMES, "known": st.none() | st.booleans()}),
        "title": st.fixed_dictionaries({"any": FEW_NAMES, "none": FEW_NAMES}),
        "year": st.fixed_dictionaries({"min": YEARS, "max": YEARS}),
    },
)
BOOSTS = st.lists(
    st.tuples(FILTERS.filter(bool), st.sampled_from([0.5, 1.0, 1.7]), st.sampled_from([-2.0, 0.0, 0.4])), max_size=3
)


def passes(about: tuple[str | None, list[str], float | None], asked: dict[str, dict[str, Any]]) -> bool:
    title, categories, year = about
    values = {"title": [title] if title else [], "categories": categories, "year": [] if year is None else [year]}
    return all(
        (rule.get("any") is None or bool(set(values[name]) & set(rule["any"])))
        and (rule.get("none") is None or not set(values[name]) & set(rule["none"]))
        and (rule.get("known") is None or bool(values[name]) == rule["known"])
        and (rule.get("min") is None or any(value >= rule["min"] for value in values[name]))
        and (rule.get("max") is None or any(value <= rule["max"] for value in values[name]))
        for name, rule in asked.items()
    )


def conditions(asked: dict[str, dict[str, Any]]) -> Any:
    from serving.filters import Condition

    return {name: Condition(**rule) for name, rule in asked.items()}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.integers(0, 52), max_size=6),
    exclude=st.lists(st.integers(0, 55), max_size=20),
    hides_seen=st.booleans(),
    asked=FILTERS,
    boosts=BOOSTS,
    k=st.integers(1, 60),
)
def test_an_answer_is_the_whole_catalogue_masked_boosted_and_sorted(
    places, exclude, hides_seen, asked, boosts, k, shop, sasrec
) -> None:
    from serving.boosts import Boost

    history = [shop.ids[place] for place in places]
    answer = shop.recommender.recommend(
        Query(
            history=history,
            k=k,
            exclude=[shop.ids[place] for place in exclude],
            exclude_seen=hides_seen,
            filter=conditions(asked),
            boosts=[Boost(filter=conditions(rule), multiply=factor, add=more) for rule, factor, more in boosts],
        )
    )
    if history:
        base = sasrec.scores(history)
        known = np.concatenate([base, shop.vectors[len(base) :] @ vector_of(sasrec, history)])
        known[list(sasrec.catalog.retired_rows)] = -np.inf
    else:
        known = np.concatenate([shop.popularity, np.full(len(LATER), -np.inf)])  # new items have no popularity
    barred = {0, *sasrec.catalog.retired_rows.tolist(), *(place + 1 for place in exclude)}
    barred |= {place + 1 for place in places} if hides_seen else set()
    scores = {}
    for row in range(1, len(known)):
        about = shop.about(row)
        if row not in barred and np.isfinite(known[row]) and passes(about, asked):
            score = float(known[row])
            for rule, factor, more in boosts:
                if passes(about, rule):
                    score = (score * factor if score >= 0 else score / factor) + more
            scores[row] = score
    best = sorted(scores.values(), reverse=True)[:k]
    assert len(set(answer.rows.tolist())) == len(answer.rows) == len(best)
    np.testing.assert_allclose(answer.scores, best, atol=1e-4)
    np.testing.assert_allclose([scores[row] for row in answer.rows.tolist()], answer.scores, atol=1e-4)


def vector_of(sasrec: Any, history: Sequence[str]) -> np.ndarray:
    import torch

    from recsys.batches import Histories

    items = torch.tensor([[sasrec.catalog.rows[item_id] for item_id in history]])
    with torch.no_grad():
        batch = Histories(items, torch.zeros_like(items), torch.tensor([items.shape[1]], dtype=torch.int32))
        return sasrec.model.encode(batch)[0].numpy()


def test_a_filter_in_a_request(service, sasrec) -> None:
    years = {item_id: 1990 + row - 1 for item_id, row in sasrec.catalog.rows.items()}
    answer = post(service, filter={"categories": {"any": ["War"]}, "year": {"max": 2005}}, k=200)
    seen = {"item-05", "item-30"}
    expected = {item_id for item_id, row in sasrec.catalog.rows.items() if row % 2 and years[item_id] <= 2005}
    assert set(ids(answer)) == expected - seen - sasrec.catalog.retired
    assert {tuple(item["categories"]) for item in answer["items"]} == {("Drama", "War")}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"filter": {"colour": {"any": ["red"]}}}, "filter.colour", "no field 'colour'; they have item_id, title, cat"),
        ({"filter": {"year": {"any": ["1990"]}}}, "filter.year.any", "compares with nothing: year holds numbers"),
        ({"filter": {"year": {}}}, "filter.year", "asks nothing; give any, none, min, max or known"),
        ({"filter": {"year": {"min": 3, "max": 2}}}, "filter.year", "min=3 is above max=2"),
        ({"filter": {"year": {"above": 3}}}, "filter.year.above", "Extra inputs"),
        ({"filter": {"year": 1990}}, "filter.year", "valid dictionary"),
        ({"filter": {"title": {"any": []}}}, "filter.title.any", "at least 1 item"),
        ({"boosts": [{"filter": {"x": {"known": True}}, "add": 1}]}, "boosts.0.filter.x", "no field 'x'"),
        ({"boosts": [{"filter": {"title": {"known": True}}}]}, "boosts.0", "changes no score; give multiply or add"),
        ({"boosts": [{"filter": {}, "add": 1}]}, "boosts.0.filter", "at least 1 item"),
        (
            {"boosts": [{"filter": {"title": {"known": True}}, "multiply": 1e-50}]},
            "boosts.0.multiply",
            "greater than or equal to 0.001",
        ),
        ({"boosts": [{"filter": {"title": {"known": True}}, "add": 1}] * 5}, "boosts", "at most 4 items"),
        ({"diversity": {}}, "diversity", "asks nothing; give quota, mmr, or both"),
        ({"diversity": {"mmr": 1.5}}, "diversity.mmr", "less than or equal to 1"),
        (
            {"diversity": {"quota": {"field": "x", "most": 1}}},
            "diversity.quota.field",
            "no field 'x'; they have item_id",
        ),
        ({"diversity": {"quota": {"field": "title", "most": 0}}}, "diversity.quota.most", "greater than or equal to 1"),
        ({"fields": ["year", "x"]}, "fields.1", "no field 'x'; they have item_id, title, categories, year"),
        ({"why": 6}, "why", "less than or equal to 5"),
        ({"after": "nonsense!"}, "after", "is not what an answer gave as next"),
    ],
)
def test_wishes_that_cannot_be_granted_are_refused_with_their_place(body, field, message, service) -> None:
    answer = service.post("/v1/recommend", json={"history": [], **body})
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert message in problem["errors"][0]["message"]


def test_a_number_too_large_for_json_is_refused(service) -> None:
    body = '{"history": [], "filter": {"year": {"min": 1e999}}}'
    answer = service.post("/v1/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("counted", ["each", "first", "last"])
def test_a_quota_limits_the_items_of_one_value(counted, service) -> None:
    """Half of the items are Drama and War, and the others have no category."""
    quota = {"field": "categories", "most": 3, "of": counted}
    plain, few = post(service, k=200), post(service, k=200, diversity={"quota": quota})
    with_category = [item["item_id"] for item in plain["items"] if item["categories"]]
    assert ids(few) == [item_id for item_id in ids(plain) if item_id not in with_category[3:]]
    assert few["next"] is None


def test_mmr_is_the_greedy_choice_of_its_formula(service, sasrec) -> None:
    vectors = sasrec.model.item_vectors().detach().numpy()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    plain = post(service, k=200)
    rows = [sasrec.catalog.rows[item_id] for item_id in ids(plain)]
    scores = np.array([item["score"] for item in plain["items"]])
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    taken: list[int] = []
    while len(taken) < 12:
        values = {
            place: 0.4 * relevance[place] - 0.6 * max([float(unit[row] @ unit[rows[t]]) for t in taken], default=0.0)
            for place, row in enumerate(rows)
            if place not in taken
        }
        taken.append(max(values, key=lambda place: values[place]))
    answer = post(service, k=12, diversity={"mmr": 0.4})
    assert ids(answer) == [ids(plain)[place] for place in taken]
    assert ids(answer) != ids(plain)[:12]
    assert ids(post(service, k=12, diversity={"mmr": 1})) == ids(plain)[:12]


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"filter": {"year": {"max": 2020}}},
        {"boosts": [{"filter": {"categories": {"any": ["War"]}}, "add": 3.0}]},
        {"diversity": {"mmr": 0.5, "quota": {"field": "categories", "most": 9}}},
    ],
    ids=["plain", "filter", "boosts", "diversity"],
)
@pytest.mark.parametrize("history", [["item-05", "item-30"], []])
def test_pages_are_the_long_list_in_pieces(history, wishes, service) -> None:
    whole = post(service, history=history, k=200, **wishes)
    pages, after = [], None
    for _ in range(20):
        page = post(service, history=history, k=7, **wishes, **({"after": after} if after else {}))
        pages.append(ids(page))
        after = page["next"]
        if after is None:
            break
    assert [item_id for page in pages for item_id in page] == ids(whole)
    assert {len(page) for page in pages[:-1]} == {7}


def test_a_page_after_another_event_repeats_nothing(service) -> None:
    first = post(service, k=10)
    second = post(service, history=["item-05", "item-30", "item-41"], k=200, after=first["next"])
    rest = post(service, history=["item-05", "item-30", "item-41"], k=200)
    assert ids(second) == [item_id for item_id in ids(rest) if item_id not in ids(first)]


def test_why_names_the_nearest_items_of_the_history(service, sasrec) -> None:
    vectors = sasrec.model.item_vectors().detach().numpy()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    history = [f"item-{number:02}" for number in range(20, 35)]  # the window holds ten
    answer = post(service, history=[*history, history[-1]], k=5, why=3)
    read = history[-9:]
    for item in answer["items"]:
        own = unit[sasrec.catalog.rows[item["item_id"]]]
        cosines = {event: float(own @ unit[sasrec.catalog.rows[event]]) for event in read}
        nearest = sorted(read, key=lambda event: -cosines[event])[:3]
        assert [event["item_id"] for event in item["why"]] == nearest
        np.testing.assert_allclose(
            [event["cosine"] for event in item["why"]], sorted(cosines.values())[:-4:-1], atol=1e-5
        )
    assert item["why"][0]["title"] == f"Title {sasrec.catalog.rows[nearest[0]]}"
    assert all(item["why"] == [] for item in post(service, history=[], why=2)["items"])


def test_fields_are_shown_where_they_are_asked_for(service, sasrec) -> None:
    for item in post(service, fields=["year", "categories", "title"])["items"]:
        row = sasrec.catalog.rows[item["item_id"]]
        assert item["fields"] == {
            "year": 1989 + row,
            "categories": ["Drama", "War"] if row % 2 else None,
            "title": item["title"],
        }
    assert all(item["fields"] is None for item in post(service)["items"])


def test_a_number_too_large_to_compare_is_refused(service) -> None:
    body = {"history": [], "filter": {"year": {"any": [10**400]}}}
    answer = service.post("/v1/recommend", json=body)
    assert answer.status_code == 422
    assert "less than 9223372036854775808" in answer.text
