"""The page: plain links and forms, everything escaped, nothing from elsewhere."""

import html
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient

HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Tags(HTMLParser):
    """Every tag with its attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def links(self, label: str) -> list[str]:
        return [
            attrs["href"] or ""
            for tag, attrs in self.found
            if tag == "a" and (attrs.get("aria-label") or "").startswith(label)
        ]


def page(client: TestClient, **params: object) -> str:
    answer = client.get("/", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def titles(text: str, section: str) -> list[str]:
    """Titles below the heading with id `section`."""
    part = text.split(f'id="{section}"')[1].split("</section>")[0]
    return [html.unescape(title) for title in re.findall(r'class="title">(.*?)</span>', part)]


@pytest.mark.parametrize(
    "params", [{"q": "script"}, {"item": "a/b"}, {"q": HOSTILE}, {"user": HOSTILE}, {"item": HOSTILE}]
)
def test_titles_and_input_are_escaped(params, client) -> None:
    text = page(client, **params)
    assert "<script" not in text
    assert html.escape("<script>alert('x')</script>", quote=False).replace("'", "&#39;") in text
    assert not [tag for tag, _ in Tags(text).found if tag == "script"]


def test_the_page_needs_nothing_from_elsewhere(client) -> None:
    answer = client.get("/", params={"item": "item-05", "q": "title"})
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    tags = Tags(answer.text).found
    sources = [attrs[name] or "" for _, attrs in tags for name in ("src", "href", "action") if name in attrs]
    assert not [source for source in sources if urlsplit(source).netloc]
    assert not [attrs for _, attrs in tags for name in attrs if name == "style" or name.startswith("on")]
    for source in ("static/style.css", "static/icon.svg"):
        assert source in sources
        assert client.get(f"/{source}").status_code == 200


def test_it_shows_what_the_api_answers(client) -> None:
    history = ["item-05", "item-30"]
    text = page(client, item=history)
    answer = client.post("/v1/recommend", json={"history": history}).json()
    assert titles(text, "answer-heading") == [item["title"] or item["item_id"] for item in answer["items"]]
    assert f"{answer['items'][0]['score']:.3f}" in text
    assert "2 of 2" in text
    assert "No known history" not in text


def test_without_history_it_says_that_popularity_answers(client) -> None:
    text = page(client)
    assert "No known history, so this is what everyone gets: popularity, recent." in text
    assert "Popular now" in text


def test_search_finds_parts_of_titles_in_any_case_most_popular_first(client, sasrec) -> None:
    found = titles(page(client, q="TITLE 1"), "find-heading")
    matching = [row for row in range(3, sasrec.catalog.num_items + 1) if f"Title {row}".startswith("Title 1")]
    expected = sorted(matching, key=lambda row: (-sasrec.no_history[row], row))[:8]
    assert found == [f"Title {row}" for row in expected]
    assert titles(page(client, q="item-01"), "find-heading") == ["item-01"]
    assert "No title contains “zebra”" in page(client, q="zebra")


def test_clicking_add_and_remove_composes_a_history(client) -> None:
    text = page(client, q="title 5")
    for _ in range(2):
        link = Tags(text).links("Add Title 5 ")[0]
        text = page(client, **parse_qs(urlsplit(link).query))
    assert titles(text, "history-heading") == ["Title 5", "Title 5"]
    assert 'value="title 5"' in text
    link = Tags(text).links("Remove Title 5 ")[1]
    assert titles(page(client, **parse_qs(urlsplit(link).query)), "history-heading") == ["Title 5"]


def test_forms_carry_what_was_chosen_before(client) -> None:
    tags = Tags(page(client, item=["item-05", "a/b"], user="ann", q="title")).found
    hidden = [(attrs["name"], attrs["value"]) for tag, attrs in tags if attrs.get("type") == "hidden"]
    items = [("item", "item-05"), ("item", "a/b")]
    assert hidden == [("user", "ann"), *items, ("q", "title"), *items]


def test_a_user_shows_the_stored_events_and_their_answer(client) -> None:
    client.post("/v1/events", json=[{"user_id": "ann", "item_id": f"item-{number}"} for number in range(20, 31)])
    text = page(client, user="ann", item="item-05")
    stored = [client.get(f"/v1/items/item-{number}").json()["title"] for number in range(23, 31)]
    assert titles(text, "history-heading") == [*stored, client.get("/v1/items/item-05").json()["title"]]
    assert "11 events, the newest 8 below" in text
    assert "10 of 12" in text
    assert "Nothing is stored for this user." in page(client, user="bob")


def test_unknown_items_are_named(client) -> None:
    text = page(client, item=["zebra", "item-05"])
    assert "Ignored, not in the catalogue: zebra." in text
    assert "zebra (unknown item)" in text


def test_every_input_has_a_label(client) -> None:
    tags = Tags(page(client, user="ann")).found
    inputs = {attrs["id"] for tag, attrs in tags if tag == "input" and attrs.get("type") != "hidden"}
    assert inputs == {attrs["for"] for tag, attrs in tags if tag == "label"}
    assert ("html", {"lang": "en"}) in tags


@pytest.fixture
def compared(client_of, sasrec, bert4rec) -> TestClient:
    """A service of two further variants."""
    variants = {"new": str(bert4rec.folder), "twin": str(sasrec.folder)}
    return client_of(sasrec, variants=variants, watch_seconds=0)


def test_two_variants_stand_side_by_side(compared) -> None:
    ask = {"history": ["item-05", "item-30"]}
    compared.put("/v1/variants", json={"weights": {"new": 1}})
    own = [item["title"] or item["item_id"] for item in compared.post("/v1/recommend", json=ask).json()["items"]]
    compared.post("/v1/variants/stop", json={})
    control = [item["title"] or item["item_id"] for item in compared.post("/v1/recommend", json=ask).json()["items"]]
    text = page(compared, item=ask["history"])
    assert titles(text, "answer-heading") == control
    assert titles(text, "answer-heading-new") == own != control
    assert "Recommendations by control" in text
    assert f"<dd>{len(set(own) & set(control))} of 10</dd>" in text
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_another_variant_can_be_chosen_and_stays(compared) -> None:
    text = page(compared, item="item-05")
    (link,) = [attrs["href"] for tag, attrs in Tags(text).found if tag == "a" and "beside=twin" in str(attrs["href"])]
    text = page(compared, **parse_qs(urlsplit(str(link)).query))
    assert titles(text, "answer-heading") == titles(text, "answer-heading-twin")
    assert "<dd>10 of 10</dd>" in text
    assert all("beside=twin" in added for added in Tags(text).links("Add "))
    hidden = [attrs["value"] for _, attrs in Tags(text).found if attrs.get("name") == "beside"]
    assert hidden == ["twin", "twin"]
    assert compared.get("/", params={"beside": "nobody"}).status_code == 404
    assert compared.get("/", params={"beside": HOSTILE[:64]}).status_code == 404


def test_one_variant_stands_alone(client) -> None:
    text = page(client, item="item-05")
    assert '<h2 id="answer-heading">Recommendations</h2>' in text
    assert 'class="two"' not in text
