"""Items that come while the service runs: found at once by their text, and still there after a restart."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.hierarchical import Hierarchical, HierarchicalConfig, Teacher
from models.recformer import Recformer, RecformerConfig
from recsys.batches import Histories
from recsys.bundle import ModelCard, SentenceCard
from recsys.catalog import Catalog
from recsys.contracts import TrainableRetriever
from recsys.export import write_bundle_files
from recsys.item_sentences import attribute_names, item_attributes, item_sentences
from recsys.steps import MANIFEST, sha256, writing_step
from serving.app import create_app
from serving.settings import Settings

COLOURS = ("red", "blue", "green", "old", "new")
THINGS = ("shoe", "hat", "book", "saw", "lamp", "cup", "door")
WORDS = ("[PAD]", "[CLS]", "[MASK]", "[UNK]", "title", "brand", "acme", *COLOURS, *THINGS)
SPECIAL = (1, 0, 2)
NUM_ITEMS = 23
CARD = SentenceCard(
    takes_new_items=True, attributes=["title", "brand"], max_attributes=2, attribute_tokens=4, temperature=0.1
)


class Shop:
    """A bundle of a model that reads titles and brands, and torch's own vectors."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        self.tokenizer, self.folder = tokenizer, folder
        catalog = Catalog.from_ids(f"item-{row:02}" for row in range(NUM_ITEMS))
        titles = [f"{COLOURS[row % 5]} {THINGS[row % 7]}" for row in range(NUM_ITEMS)]
        items = pl.DataFrame({"item_id": catalog.item_ids, "title": titles, "brand": [None] * NUM_ITEMS}).cast(
            pl.String
        )
        self.items = items
        self.recformer = self.network(NUM_ITEMS)
        self.learn(self.recformer, items)
        self.model = self.over(self.recformer)
        card = ModelCard(
            name="recformer", config={}, max_len=6, seen="exclude", no_history="popularity", sentences=CARD
        )
        no_history = np.arange(NUM_ITEMS + 1, dtype=np.float32)
        with writing_step("export", folder, config={}) as step:
            write_bundle_files(step.folder, self.model, card, catalog, items, no_history, {}, self.recformer)
            tokenizer.save(str(step.folder / "tokenizer.json"))

    def over(self, recformer: Recformer) -> TrainableRetriever:
        """What is served: here the network itself."""
        return recformer

    def network(self, num_items: int) -> Recformer:
        """Large weights, for vectors that differ."""
        sizes = {"embedding_dim": 16, "num_blocks": 2, "num_heads": 2, "ffn_dim": 16, "vocab_size": len(WORDS)}
        texts = {"max_tokens": 40, "max_attributes": 2, "attribute_tokens": 4, "max_len": 6}
        model = Recformer(RecformerConfig(num_items=num_items, temperature=0.1, pooling="mean", **sizes, **texts))
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.3 * torch.randn_like(weights)
        return model.eval()

    def learn(self, model: Recformer, items: pl.DataFrame) -> None:
        attributes = item_attributes(items, attribute_names(items, CARD.attributes), CARD.max_attributes)
        model.learn_sentences(item_sentences(attributes, self.tokenizer, CARD.attribute_tokens), SPECIAL)
        model.refresh_items()

    def grown(self, *items: dict[str, Any]) -> TrainableRetriever:
        """The same model over the catalogue with further items, as training would have it."""
        rows = [{"item_id": item["item_id"], "title": item.get("title"), "brand": item.get("brand")} for item in items]
        table = pl.concat([self.items, pl.DataFrame(rows, schema=self.items.schema)])
        model = self.network(len(table))
        model.load_state_dict(dict(self.recformer.named_parameters()), strict=False)
        self.learn(model, table)
        return self.over(model)


class HierarchicalShop(Shop):
    """The same items behind a model that goes on from one event to the next, over the network's item vectors."""

    def over(self, recformer: Recformer) -> Hierarchical:
        torch.manual_seed(5)
        sizes = {"max_len": 6, "embedding_dim": 12, "num_blocks": 1, "num_heads": 2, "ffn_dim": 16, "text_width": 16}
        student = Hierarchical(HierarchicalConfig(num_items=len(recformer.item_matrix) - 1, cosine=True, **sizes))
        with torch.no_grad():
            for weights in student.parameters():
                weights += 0.3 * torch.randn_like(weights)
        student.learn_from(Teacher(recformer))
        return student.eval()


@pytest.fixture(scope="module", params=[Shop, HierarchicalShop], ids=["tokens", "hierarchical"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made: Shop = request.param(tmp_path_factory.mktemp("shop") / "bundle")
    return made


@pytest.fixture
def client(client_of: Any, shop: Shop) -> TestClient:
    return client_of(shop)


def scores(model: TrainableRetriever, history: list[int]) -> np.ndarray:
    """Torch's, of every row; seen ones and padding are -inf."""
    items = torch.tensor([history[-6:]])
    batch = Histories(items, torch.zeros_like(items), torch.tensor([items.shape[1]], dtype=torch.int32))
    with torch.no_grad():
        found = (model.encode(batch) @ model.item_vectors().T)[0].numpy().copy()
    found[[0, *history]] = -np.inf
    return found


def post(client: TestClient, items: Any, status: int = 201) -> dict[str, Any]:
    answer = client.post("/v1/items", json=items)
    assert answer.status_code == status, answer.text
    return answer.json()


def ranking(client: TestClient, history: list[str], k: int = 30) -> dict[str, float]:
    answer = client.post("/v1/recommend", json={"history": history, "k": k})
    assert answer.status_code == 200, answer.text
    return {item["item_id"]: item["score"] for item in answer.json()["items"]}


LAMP = {"item_id": "lamp", "title": "old lamp", "fields": {"brand": "acme"}}
DOOR = {"item_id": "door", "title": "Green door", "categories": ["not read"]}


def test_a_new_item_ranks_as_if_it_had_been_there_all_along(client: TestClient, shop: Shop) -> None:
    assert post(client, [LAMP, DOOR])["stored"] == 2
    grown = shop.grown(
        {"item_id": "lamp", "title": "old lamp", "brand": "acme"}, {"item_id": "door", "title": "Green door"}
    )
    ids = [f"item-{row:02}" for row in range(NUM_ITEMS)] + ["lamp", "door"]
    for history in ([3], [7, 24], [24, 25, 1, 2, 3, 4, 5]):
        expected = scores(grown, history)
        found = ranking(client, [ids[row - 1] for row in history])
        assert len(found) == len(ids) - len(history)
        by_hand = {ids[row - 1]: expected[row] for row in range(1, len(expected)) if np.isfinite(expected[row])}
        assert found == pytest.approx(by_hand, abs=1e-4)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_it_is_shown_excluded_and_similar_to_others(client: TestClient) -> None:
    post(client, LAMP)
    details = client.get("/v1/items/lamp").json()
    assert details == {
        "item_id": "lamp",
        "title": "old lamp",
        "categories": [],
        "retired": False,
        "fields": {"brand": "acme"},
    }
    assert "lamp" in ranking(client, ["item-03"])
    without = client.post("/v1/recommend", json={"history": ["item-03"], "k": 30, "exclude": ["lamp"]}).json()
    assert "lamp" not in [item["item_id"] for item in without["items"]]
    assert without["unknown_items"] == []
    near = client.get("/v1/similar/lamp?k=30").json()["items"]
    assert len(near) == NUM_ITEMS
    assert "lamp" not in [item["item_id"] for item in near]
    back = {item["item_id"]: item["score"] for item in client.get("/v1/similar/item-03?k=30").json()["items"]}
    assert back["lamp"] == pytest.approx({item["item_id"]: item["score"] for item in near}["item-03"], abs=1e-5)
    assert client.get("/version").json()["new_items"] == 1
    assert "old lamp" in client.get("/?q=LAMP&item=item-03").text


def test_it_can_be_deleted_and_comes_back_as_it_was_or_anew(client_of: Any, shop: Shop) -> None:
    client = client_of(shop)
    post(client, LAMP)
    before = ranking(client, ["item-03"])
    for again, replaced, restored in (({"item_id": "lamp"}, 0, 1), (LAMP, 1, 0)):
        assert client.delete("/v1/items/lamp").status_code == 204
        assert "lamp" not in ranking(client, ["item-03"])
        assert "lamp" not in ranking(client_of(shop), ["item-03"]), "nor after a restart"
        answer = post(client, again)
        assert (answer["replaced"], answer["restored"]) == (replaced, restored)
        assert ranking(client, ["item-03"]) == pytest.approx(before)
    assert "has no text that the model reads" in post(client, {"item_id": "lamp"}, 422)["detail"]


def test_filters_and_fields_know_it(client: TestClient) -> None:
    post(client, [LAMP, DOOR])
    wishes = {"filter": {"brand": {"any": ["acme"]}}, "fields": ["brand", "item_id"]}
    answer = client.post("/v1/recommend", json={"history": ["item-03"], **wishes}).json()
    assert [item["fields"] for item in answer["items"]] == [{"brand": "acme", "item_id": "lamp"}]
    post(client, {"item_id": "lamp", "title": "old lamp", "fields": {"brand": "other"}})
    assert client.post("/v1/recommend", json={"history": ["item-03"], **wishes}).json()["items"] == []


def test_it_survives_a_restart_and_events_know_it(client_of: Any, shop: Shop) -> None:
    first = client_of(shop)
    post(first, [LAMP, DOOR])
    stored = first.post("/v1/events", json={"user_id": "ann", "item_id": "door"}).json()
    assert stored["unknown_items"] == []
    before = ranking(first, ["lamp", "item-03"])
    first.__exit__(None, None, None)
    second = client_of(shop)
    assert ranking(second, ["lamp", "item-03"]) == pytest.approx(before, abs=1e-6)
    assert second.post("/v1/recommend", json={"user_id": "ann"}).json()["history_length"] == 1


def test_one_that_is_sent_again_is_read_anew(client: TestClient, shop: Shop) -> None:
    post(client, {"item_id": "lamp", "title": "red shoe"})
    before = ranking(client, ["lamp"])
    assert post(client, LAMP) | {"request_id": ""} == {
        "request_id": "",
        "model_version": client.get("/version").json()["bundle"],
        "stored": 1,
        "replaced": 1,
        "restored": 0,
    }
    after = ranking(client, ["lamp"])
    assert after != pytest.approx(before, abs=1e-3), "what was kept of histories with it is forgotten"
    grown = shop.grown({"item_id": "lamp", "title": "old lamp", "brand": "acme"})
    assert after["item-03"] == pytest.approx(float(scores(grown, [24])[4]), abs=1e-4)
    assert client.get("/version").json()["new_items"] == 1


def test_many_items_come_at_once(client_of: Any, shop: Shop) -> None:
    client = client_of(shop)
    post(
        client, [{"item_id": f"n{place}", "title": f"{COLOURS[place % 5]} {THINGS[place % 7]}"} for place in range(90)]
    )
    assert client.get("/version").json()["new_items"] == 90
    twins = ranking(client, ["item-04"], k=200)
    assert twins["n3"] == pytest.approx(twins["item-03"], abs=1e-5), "the same words"


@pytest.mark.parametrize(
    ("item", "status", "message"),
    [
        ({"item_id": "item-03", "title": "red hat"}, 409, "item 'item-03' is part of bundle"),
        ({"item_id": "x"}, 422, "item 'x' has no text that the model reads; it reads title, brand"),
        ({"item_id": "x", "title": " ", "categories": ["a"]}, 422, "item 'x' has no text that the model reads"),
        ({"item_id": "x", "title": "a", "fields": {"title": "b"}}, 422, "title has a place of its own, beside fields"),
        ({"item_id": "", "title": "a"}, 422, "at least 1 character"),
        ({"item_id": "x", "titel": "a"}, 422, "titel: Extra inputs are not permitted"),
        ([{"item_id": f"n{place}", "title": "a"} for place in range(101)], 413, "items: 101 entries, and at most 100"),
    ],
)
def test_what_cannot_be_added_is_refused_whole(client: TestClient, item: Any, status: int, message: str) -> None:
    items = [LAMP, item] if isinstance(item, dict) else item
    assert message in post(client, items, status)["detail"]
    assert client.get("/version").json()["new_items"] == 0


def test_an_item_that_fails_leaves_nothing_behind(client_of: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(shop)
    reader = client.app.state.variants.control.service.reader
    with monkeypatch.context() as patch:
        patch.setattr(reader, "write", lambda *_: 1 / 0)
        post(client, [LAMP, DOOR], 500)
    assert client.get("/version").json()["new_items"] == 0
    assert client.get("/v1/items/lamp").status_code == 404
    post(client, DOOR)
    assert client.get("/v1/items/door").json()["title"] == "Green door"
    client.__exit__(None, None, None)
    assert client_of(shop).get("/version").json()["new_items"] == 1


def test_a_later_bundle_that_reads_other_attributes_still_starts(client_of: Any, shop: Shop, tmp_path: Path) -> None:
    first = client_of(shop)
    post(first, [{"item_id": "plain", "title": "old lamp"}, LAMP])
    first.__exit__(None, None, None)
    later = shutil.copytree(shop.folder, tmp_path / "later")
    model = json.loads((later / "model.json").read_text())
    model["sentences"]["attributes"] = ["brand"]
    (later / "model.json").write_text(json.dumps(model))
    manifest = json.loads((later / MANIFEST).read_text())
    manifest["files"]["model.json"] = sha256(later / "model.json")
    (later / MANIFEST).write_text(json.dumps(manifest))
    assert client_of(SimpleNamespace(folder=later)).get("/version").json()["new_items"] == 1


def test_a_matrix_that_the_weights_did_not_make_takes_none(client_of: Any, shop: Shop, tmp_path: Path) -> None:
    frozen = shutil.copytree(shop.folder, tmp_path / "frozen")
    model = json.loads((frozen / "model.json").read_text())
    model["sentences"]["takes_new_items"] = False
    (frozen / "model.json").write_text(json.dumps(model))
    manifest = json.loads((frozen / MANIFEST).read_text())
    manifest["files"]["model.json"] = sha256(frozen / "model.json")
    (frozen / MANIFEST).write_text(json.dumps(manifest))
    client = client_of(SimpleNamespace(folder=frozen))
    assert "takes no new items" in post(client, LAMP, 409)["detail"]


def test_requests_go_on_while_items_come(client: TestClient) -> None:
    """Every answer is one of a state before or after, and none fails."""
    post(client, LAMP)

    def ask(number: int) -> list[float]:
        return list(ranking(client, ["lamp", f"item-{number % 20:02}"]).values())

    def write(number: int) -> int:
        title = f"{COLOURS[number % 5]} {THINGS[number % 7]}"
        return post(client, [{"item_id": "lamp", "title": title}, {"item_id": f"n{number}", "title": title}])["stored"]

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(write if number % 5 == 0 else ask, number) for number in range(60)]
        for answer in answers:
            assert answer.result()
    last = {item["item_id"]: item["score"] for item in client.get("/v1/similar/lamp?k=200").json()["items"]}
    titled = {item["title"]: item_id for item_id in last for item in [client.get(f"/v1/items/{item_id}").json()]}
    same = titled.get(client.get("/v1/items/lamp").json()["title"])
    assert same is not None
    assert last[same] == pytest.approx(1, abs=1e-5), "tokens and vector are of the same text"


def test_a_model_of_ids_takes_none(client_of: Any, sasrec) -> None:
    assert "model sasrec takes no new items" in post(client_of(sasrec), LAMP, 409)["detail"]


def test_new_items_survive_another_bundle_and_the_way_back(shop: Shop, tmp_path: Path) -> None:
    """Those that came before it was loaded, while it was, and while it answered; and what was written anew."""
    later = Path(shutil.copytree(shop.folder, tmp_path / "later"))
    manifest = json.loads((later / MANIFEST).read_text())
    (later / MANIFEST).write_text(json.dumps(manifest | {"seed": 1}))
    link = tmp_path / "link"
    link.symlink_to(shop.folder)
    with TestClient(create_app(link, Settings(state=tmp_path / "state.sqlite", watch_seconds=0))) as client:
        post(client, LAMP)
        before = ranking(client, ["lamp", "item-03"])
        link.unlink()
        link.symlink_to(later)
        assert client.post("/v1/models/reload", json={}).json()["swapped"] is True
        assert ranking(client, ["lamp", "item-03"]) == pytest.approx(before, abs=1e-5)
        post(client, [DOOR, {"item_id": "lamp", "title": "red shoe"}])
        after = ranking(client, ["lamp", "door"])
        assert client.post("/v1/models/rollback", json={}).status_code == 200
        assert ranking(client, ["lamp", "door"]) == pytest.approx(after, abs=1e-5)
        assert client.get("/v1/items/lamp").json()["title"] == "red shoe"
        assert client.get("/version").json()["new_items"] == 2
