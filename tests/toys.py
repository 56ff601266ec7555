"""A shop of toys, and a model that knows them, over HTTP: honestly or through faults."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
from builders import random_rows, write_dataset
from llm_server import Reply, Server, chat_reply

from pipelines.enrich import EnrichConfig
from pipelines.language_models import LanguageModelConfig
from pipelines.reporter import Reporter
from recsys.llm.endpoint import EndpointConfig
from recsys.llm.retries import Backoff

QUIET = Reporter(quiet=True)
ITEMS = 60
PROMPT = "Which age and themes? Title: {title}. About: {about:30}. As {{JSON}}."
SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0},
        "themes": {"type": "array", "items": {"type": "string"}},
        "note": {"type": ["string", "null"]},
    },
    "required": ["age", "themes", "note"],
    "additionalProperties": False,
}


def number_in(messages: list[dict[str, str]]) -> int:
    """Of the item that is asked about."""
    return int(re.findall(r"toy (\d+)", messages[1]["content"])[0])


def truth(number: int) -> dict[str, Any]:
    """What the model knows of an item."""
    note = None if number % 7 == 0 else f"n\u00b0 {number} \U0001f9f8"
    return {"age": number % 12, "themes": [f"theme {number % k}" for k in (2, 3)], "note": note}


def honest(_: str, body: dict[str, Any], __: int) -> Reply:
    """Always answers."""
    return chat_reply(json.dumps(truth(number_in(body["messages"]))), body["messages"])


def faulty(path: str, body: dict[str, Any], before: int) -> Reply:
    """Fails in nine ways: first asks of two items in three, and half of all further attempts, but never five times."""
    number, again = number_in(body["messages"]), len(body["messages"]) > 2
    good = honest(path, body, before)
    wrong_content = [
        chat_reply("I am not sure.", body["messages"]),
        chat_reply(json.dumps({"age": "young"}), body["messages"]),
        chat_reply(json.dumps(truth(number))[:9], body["messages"], finish="length"),
        chat_reply(f"Sure:\n```json\n{json.dumps(truth(number))}\n```", body["messages"]),
    ]
    fault = (number + 3 * before + 5 * again) % 12
    if before > 4 or fault > 8:
        return good
    transport = [
        Reply({"error": "oops"}, status=500),
        Reply({}, status=429, headers={"retry-after": "0"}),
        Reply(None),
        Reply(raw=b'{"choices": [{"mess'),
        Reply({}, seconds=0.5),
    ]
    if fault < 5:
        return transport[fault]
    return good if again else wrong_content[fault - 5]


def toy_shop(folder: Path) -> Path:
    """A dataset of toys; one has no text, two have the same. Prompt and schema lie beside it."""
    rows = random_rows(1, 20, ITEMS, 400)
    titles: list[str | None] = [f"toy {number}" for number in range(ITEMS)]
    titles[9] = None
    titles[8] = titles[7]
    about = [
        None if number % 5 == 0 or number == 9 else f"<b>for &amp; by {number % 4}</b> " * 3 for number in range(ITEMS)
    ]
    about[8] = about[7]
    items = pl.DataFrame({"item_id": [f"i{number:03}" for number in range(ITEMS)], "title": titles, "about": about})
    (folder / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    return write_dataset(folder / "shop", rows, items)


def config_of(shop: Path, server: Server, **settings: Any) -> EnrichConfig:
    """With short waits."""
    backoff = Backoff(base=0.001, cap=0.01)
    endpoint = EndpointConfig(url=server.url, backoff=backoff, timeout=settings.pop("timeout", 20.0), concurrency=4)
    gate = settings.pop("max_invalid", 0.01)
    return EnrichConfig(
        dataset=shop,
        prompt=shop.parent / "prompt.txt",
        schema=shop.parent / "schema.json",
        fields=("age", "themes", "note"),
        language_model=LanguageModelConfig(model="toy-expert", endpoint=endpoint, **settings),
        max_invalid=gate,
    )


def arguments(shop: Path, url: str, *more: object) -> list[object]:
    """Of the command."""
    files = ["--prompt", shop.parent / "prompt.txt", "--schema", shop.parent / "schema.json"]
    fields = ["--field", "age", "--field", "themes"]
    return ["enrich", shop, *files, *fields, "--endpoint", url, "--model", "toy-expert", *more]


def data_files(folder: Path) -> dict[str, bytes]:
    """Content of all files but the manifest, which knows the time."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
