"""`recsys enrich`: a model's answers become columns of a new dataset, and what is there is not asked again."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import run_recsys
from llm_server import Reply, chat_reply, serving
from toys import (
    ITEMS,
    PROMPT,
    QUIET,
    SCHEMA,
    arguments,
    config_of,
    data_files,
    faulty,
    honest,
    number_in,
    toy_shop,
    truth,
)

from pipelines.enrich import ANSWERS, enrich
from pipelines.prepare import PrepareConfig, prepare
from recsys.item_text import item_texts
from recsys.schema import open_dataset


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of toys, with a cache of answers beside it."""
    monkeypatch.setenv("RECSYS_LLM_ANSWERS", str(tmp_path / "answers.sqlite"))
    return toy_shop(tmp_path)


def test_answers_become_columns(shop: Path) -> None:
    with serving(honest) as server:
        dataset = enrich(config_of(shop, server), shop.parent / "new", QUIET)
    items, before = dataset.items(), open_dataset(shop).items()
    assert items.select(before.columns).equals(before)
    assert items.schema["age"] == pl.String
    assert items.schema["themes"] == pl.List(pl.String)
    known = [number for number in range(ITEMS) if number not in {8, 9}]
    for number in known:
        row, expected = items.row(number, named=True), truth(number)
        assert (row["age"], row["themes"], row["note"]) == (str(expected["age"]), expected["themes"], expected["note"])
    assert items["age"][8] == items["age"][7]
    assert items["age"][9] is None
    assert len(server.requests) == ITEMS - 2, "item 8 is as 7, and 9 has no text"
    assert dataset.events().equals(open_dataset(shop).events())
    answers = pl.read_parquet(dataset.folder / ANSWERS)
    assert answers["item_id"].equals(items["item_id"])
    assert answers["how"][9] == "nothing to ask"
    prepared = prepare(PrepareConfig(dataset=dataset.folder, out=shop.parent / "prepared"))
    assert "theme 1" in item_texts(prepared.items)[1]


def test_a_second_run_makes_no_call_and_gives_the_same_bytes(shop: Path) -> None:
    with serving(faulty) as server:
        config = config_of(shop, server, timeout=0.2)
        first, asked = enrich(config, shop.parent / "one", QUIET), len(server.requests)
        second = enrich(config, shop.parent / "two", QUIET)
        assert len(server.requests) == asked
    assert data_files(second.folder) == data_files(first.folder)
    paid = [dataset.manifest["counts"]["enrichment"]["paid"] for dataset in (first, second)]
    assert (paid[1]["calls"], paid[1]["cost"], paid[1]["cache_hits"]) == (0, 0, paid[0]["calls"])
    assert paid[1]["earlier_tokens"] == paid[0]["prompt_tokens"] + paid[0]["output_tokens"]


def test_what_changes_is_asked_and_nothing_else(shop: Path) -> None:
    with serving(honest) as server:
        enrich(config_of(shop, server), shop.parent / "one", QUIET)
        before = len(server.requests)
        items = open_dataset(shop).items()
        changed = items.with_columns(title=pl.col("title").replace("toy 3", "toy 3, new"))
        changed.write_parquet(shop / "items.parquet")
        enrich(config_of(shop, server), shop.parent / "two", QUIET)
        assert server.prompts[before:] == [prompt for prompt in server.prompts[before:] if "toy 3, new" in prompt]
        assert len(server.requests) == before + 1
        (shop.parent / "prompt.txt").write_text(PROMPT + " Be brief.", encoding="utf-8")
        enrich(config_of(shop, server), shop.parent / "three", QUIET)
        assert len(server.requests) == 2 * before + 1


def test_the_manifest_says_where_the_columns_come_from(shop: Path) -> None:
    with serving(honest) as server:
        dataset = enrich(config_of(shop, server), shop.parent / "new", QUIET)
        manifest = dataset.manifest
    counts = manifest["counts"]["enrichment"]
    assert [Path(entry["path"]).name for entry in manifest["inputs"]] == ["shop", "prompt.txt", "schema.json"]
    assert (counts["model"], counts["fields"], counts["nothing_to_ask"]) == ("toy-expert", ["age", "themes", "note"], 1)
    assert len(counts["prompt_sha256"]) == len(counts["schema_sha256"]) == 64
    assert manifest["config"]["language_model"]["sampling"]["temperature"] == 0
    assert manifest["config"]["language_model"]["endpoint"]["url"] == server.url
    assert manifest["counts"]["time"] == "timestamp"


def test_the_gate_says_no_and_a_larger_share_lets_it_pass(shop: Path) -> None:
    def stubborn(path: str, body: dict[str, Any], before: int) -> Reply:
        if number_in(body["messages"]) in {1, 2, 3}:
            return chat_reply("never", body["messages"])
        return honest(path, body, before)

    with serving(stubborn) as server:
        code, _, error = run_recsys(*arguments(shop, server.url, "--out", shop.parent / "new"))
        assert code == 3
        assert "3 of 59 items have no valid answer (3 x it is not JSON" in error
        assert "more than the share of 0.01 allowed" in error
        assert not (shop.parent / "new").exists()
        asked = len(server.requests)
        code, _, _ = run_recsys(*arguments(shop, server.url, "--out", shop.parent / "new", "--max-invalid", 0.1))
        assert (code, len(server.requests)) == (0, asked)
    items, answers = open_dataset(shop.parent / "new").items(), pl.read_parquet(shop.parent / "new" / ANSWERS)
    assert items["age"][:5].to_list() == ["0", None, None, None, "4"]
    assert answers["how"][:5].to_list() == ["strict", "invalid", "invalid", "invalid", "strict"]
    assert "it is not JSON" in answers["problem"][1]


def test_a_sample_is_shown_and_kept(shop: Path) -> None:
    with serving(honest) as server:
        code, output, _ = run_recsys(*arguments(shop, server.url, "--sample", 5))
        assert code == 0
        assert len(output.splitlines()) == len(server.requests) == 5
        assert output.startswith('i000: strict: {"age": 0')
        code, output, _ = run_recsys(*arguments(shop, server.url, "--sample", 5, "--json"))
        assert [answer["item_id"] for answer in json.loads(output)["answers"]][-1] == "i059"
        assert len(server.requests) == 5
        enrich(config_of(shop, server), shop.parent / "new", QUIET)
        assert len(server.requests) == ITEMS - 2


def test_options_reach_the_request(shop: Path) -> None:
    options = ("--constrained", "--body", "top_k=3", "--temperature", 0.5, "--seed", 7, "--max-tokens", 50)
    with serving(honest) as server:
        code, _, error = run_recsys(*arguments(shop, server.url, "--sample", 1, *options))
        assert code == 0, error
        request = server.requests[0]
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    sent = {name: request[name] for name in ("model", "top_k", "temperature", "seed", "max_tokens")}
    assert sent == {"model": "toy-expert", "top_k": 3, "temperature": 0.5, "seed": 7, "max_tokens": 50}


def test_a_dry_run_needs_no_server(shop: Path) -> None:
    prices = ("--price-prompt", 1, "--price-output", 2, "--max-tokens", 10)
    code, output, error = run_recsys(*arguments(shop, "http://127.0.0.1:9/v1", "--dry-run", "--json", *prices))
    assert code == 0, error
    figures = json.loads(output)
    assert (figures["questions"], figures["to_ask"], figures["output_tokens"]) == (59, 58, 580)
    assert figures["prompts"] == "estimated, a token for 4 letters"
    assert figures["cost"] == pytest.approx((figures["prompt_tokens"] + 2 * 580) / 1e6, abs=1e-6)
    code, output, _ = run_recsys(*arguments(shop, "http://127.0.0.1:9/v1", "--dry-run"))
    assert "answers: the most allowed" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--field": "size"}, "--field size: is no property of"),
        ({"--field": "title"}, "--field title: the items have such a column already"),
        ({"prompt": "Title: {name}"}, "{name} is no column of the item table; it has item_id, title, about"),
        ({"prompt": "No placeholder"}, "has no placeholder, so all items would have the same prompt"),
        ({"prompt": "{title!r}"}, "{title!r} is no placeholder; write {column} or {column:400}"),
        ({"prompt": "{title:>9}"}, "{title:>9} is no placeholder"),
        ({"prompt": "{title.__class__}"}, "{title.__class__} is no column of the item table"),
        ({"prompt": "{title"}, "braces that are meant are doubled: {{ and }}"),
        ({"--out": None}, "--out: name the folder of the new dataset"),
        ({"--max-invalid": "2"}, "--max-invalid 2.0: must lie in [0, 1]"),
        ({"--max-cost": "1"}, "stops nothing without prices"),
        ({"--body": "messages=[]"}, "the field 'messages' of a request cannot be set"),
        ({"--tokenizer": "absent"}, "cannot be read as a tokenizer"),
    ],
)
def test_what_cannot_be_done_is_explained(shop: Path, change: dict[str, str | None], message: str) -> None:
    schema = {**SCHEMA, "properties": {**SCHEMA["properties"], "title": {"type": "string"}}}  # type: ignore[dict-item]
    (shop.parent / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    if "prompt" in change:
        (shop.parent / "prompt.txt").write_text(str(change["prompt"]), encoding="utf-8")
    options = {"--out": str(shop.parent / "new"), **{name: value for name, value in change.items() if name[0] == "-"}}
    more = [part for name, value in options.items() if value is not None for part in (name, value)]
    code, _, error = run_recsys(*arguments(shop, "http://127.0.0.1:9/v1", *more))
    assert code == 2, error
    assert message in error
    assert not (shop.parent / "new").exists()


def test_an_output_that_exists_is_left_alone(shop: Path) -> None:
    with serving(honest) as server:
        code, _, error = run_recsys(*arguments(shop, server.url, "--out", shop))
        assert (code, len(server.requests)) == (1, 0)
    assert "exists already; choose another folder" in error
