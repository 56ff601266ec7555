"""The dashboard: what this process did lately, as a page and in a real browser."""

import html
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from listening import listening
from playwright.sync_api import Page, expect, sync_playwright

from serving.api_keys import create_key
from serving.dashboard import HEIGHT, WIDTH, bars
from serving.recent import ANSWERS, SLOT_SECONDS, SLOTS, Recent, Slot
from serving.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert('x')</script> & \"quoted\""
PHONE = {"width": 360, "height": 740}


class TestRecent:
    """Bounded, and right."""

    def test_requests_fall_into_slots_of_the_last_five_minutes(self) -> None:
        now = [1_000.0]
        recent = Recent(clock=lambda: now[0])
        for status in (200, 200, 404, 503):
            recent.request(status, 0.01)
        now[0] += 2 * SLOT_SECONDS
        recent.request(200, 0.03)
        first = 1_000 // SLOT_SECONDS
        traffic = recent.lately(5).traffic
        assert len(traffic) == SLOTS
        assert traffic[-3:] == [Slot(first, 4, 1, 1), Slot(first + 1), Slot(first + 2, 1)]
        now[0] += SLOTS * SLOT_SECONDS
        assert sum(slot.requests for slot in recent.lately(5).traffic) == 0

    def test_answers_are_bounded_and_counted_by_hand(self) -> None:
        recent = Recent()
        seconds = {"state": 0.0, "encode": 0.002, "search": 0.001, "rank": 0.0}
        for number in range(ANSWERS + 50):
            answer: Any = SimpleNamespace(seconds=seconds, encoding=("full", "step", "cached", None)[number % 4])
            recent.answered("control" if number % 2 else "other", answer, [f"item-{number % 3}", "always"])
        lately = recent.lately(2)
        assert lately.items == [("always", ANSWERS), (f"item-{2}", 667)]
        assert lately.encodings == Counter(full=500, step=500, cached=500)
        assert lately.hit_ratio == pytest.approx(2 / 3)
        assert {name: times.count for name, times in lately.variants.items()} == {"control": 1_000, "other": 1_000}
        assert lately.stages["encode"].quantiles == pytest.approx((2, 2, 2))
        assert lately.stages["state"].count == 0

    def test_nothing_yet(self) -> None:
        lately = Recent().lately(5)
        assert (lately.hit_ratio, lately.items, lately.requests.count) == (None, [], 0)


def test_bars_share_the_width_and_the_busiest_is_the_highest() -> None:
    found = bars([Slot(0, 5), Slot(1, 10, failed=4), Slot(2)])
    assert [bar.all for bar in found] == [HEIGHT / 2, HEIGHT, 0]
    assert found[1].failed == pytest.approx(0.4 * HEIGHT)
    assert found[-1].left + WIDTH / 3 == pytest.approx(WIDTH)
    assert [bar.all for bar in bars([Slot(0), Slot(1)])] == [0, 0]


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    part = text.split(f'id="{heading}"')[1].split("</section>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in part.split("<tr>")[2:]]
    return {re.sub(r"<.*", "", first).strip(): [value.strip() for value in others] for first, *others in cells}


def test_it_shows_what_was_asked_and_answered(client) -> None:
    answers = [client.post("/v1/recommend", json={"history": [f"item-{n:02}"], "k": 4}).json() for n in (5, 6, 5, 7)]
    client.post("/v1/recommend", json={"k": 0, "history": []})
    text = client.get("/dashboard").text
    assert rows(text, "latency-heading")["encode"][0] == "4"
    assert rows(text, "latency-heading")["state"] == ["0", "–", "–", "–"]
    assert rows(text, "variants-heading")["control"][:2] == ["100%", "4"]
    assert client.app.state.variants.control.service.bundle.version in text
    assert "Kept or continued: 25.0% of the latest" in text
    shown = Counter(item["title"] or item["item_id"] for answer in answers for item in answer["items"])
    top = text.split('id="items-heading"')[1]
    titles = [html.unescape(title) for title in re.findall(r'class="title">(.*?)</span>', top)]
    counts = [int(count) for count in re.findall(r'class="score">(\d+)', top)]
    assert dict(zip(titles, counts, strict=True)).items() <= shown.items()
    assert counts == sorted(shown.values(), reverse=True)[:10]
    assert "Refused (4xx), 5 minutes</dt><dd>1</dd>" in text


def test_titles_are_escaped_and_nothing_comes_from_elsewhere(client) -> None:
    client.app.state.metrics.recent.answered(
        "control", SimpleNamespace(seconds=dict.fromkeys(("state", "encode", "search", "rank"), 0.1), encoding=None),
        ["a/b", HOSTILE],
    )  # fmt: skip
    answer = client.get("/dashboard")
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;").replace('"', "&#34;") in answer.text
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="static/htmx.min.js" defer>']
    assert "//" not in answer.text
    assert not re.search(r"<[^>]+ (style|on\w+)=", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.get("/static/htmx.min.js").status_code == 200


def test_the_part_that_changes_is_the_middle_of_the_page(client) -> None:
    part, page, still = (client.get(f"/dashboard{path}").text for path in ("/figures", "", "?paused=true"))
    shape = re.sub(r"[\d.]+", "0", part).strip()
    assert shape in re.sub(r"[\d.]+", "0", page)
    assert 'hx-trigger="every 2s"' in page
    assert "hx-" not in still
    assert "<script" not in still


def test_it_needs_an_administrators_key_which_a_browser_may_send(client_of, sasrec, tmp_path) -> None:
    keys = tmp_path / "keys.json"
    admin, shop = create_key(keys, "ops", ["admin"]), create_key(keys, "shop", ["recommend"])
    client = client_of(sasrec, keys=keys)
    for path in ("/dashboard", "/dashboard/figures"):
        assert client.get(path).status_code == 401
        assert client.get(path).headers["WWW-Authenticate"].startswith("Basic ")
        assert client.get(path, auth=("any", shop)).status_code == 403
        assert client.get(path, auth=("any", admin)).status_code == 200


@pytest.fixture(scope="module")
def address(sasrec, tmp_path_factory) -> Iterator[str]:
    settings = Settings(state=tmp_path_factory.mktemp("state") / "state.sqlite", drain_seconds=0)
    with listening(sasrec.folder, settings) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; `apt-get install chromium` brings it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """Any complaint of the browser, such as of the content policy, fails the test."""
    complaints: list[str] = []
    opened = browser.new_page(viewport=PHONE)
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"{address}/dashboard")
    yield opened
    opened.close()
    assert complaints == []


def test_in_a_browser_it_renews_itself(page, address) -> None:
    count = page.locator("tr", has_text="encode").locator("td").first
    before = int(count.inner_text())
    for item in ("item-05", "item-06"):
        httpx.post(f"{address}/v1/recommend", json={"history": [item]})
    expect(count).to_have_text(str(before + 2), timeout=15_000)


def test_it_fits_a_phone_and_works_by_keyboard(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText"))
    assert reached == ["Skip to the figures", "recsys", "Pause"]
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard?paused=true")
    expect(page.get_by_role("link", name="Renew once")).to_be_visible()
