"""`recsys enrich` over real HTTP through faults, kills and budgets: the same table, each answer paid for once."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from builders import write_dataset
from command_line import run_recsys
from llm_server import Reply, serving
from toys import ITEMS, QUIET, arguments, config_of, faulty, honest, toy_shop

from pipelines.enrich import ANSWERS, enrich, estimated, sampled
from recsys.errors import BudgetError, EndpointError
from recsys.llm.budget import Limit, Prices
from recsys.schema import open_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of toys, with a cache of answers beside it."""
    monkeypatch.setenv("RECSYS_LLM_ANSWERS", str(tmp_path / "answers.sqlite"))
    return toy_shop(tmp_path)


def test_faults_do_not_change_the_table(shop: Path) -> None:
    """Two items in three meet a fault; the tables are the same, retries bounded, the account that of the server."""
    with serving(honest) as server:
        clean = enrich(config_of(shop, server), shop.parent / "clean", QUIET)
    (shop.parent / "answers.sqlite").unlink()
    prices = Prices(prompt=3.0, output=7.0)
    with serving(faulty) as server:
        through = enrich(config_of(shop, server, timeout=0.2, prices=prices), shop.parent / "faulty", QUIET)
        assert max(server.times.values()) <= 7
    assert through.items().equals(clean.items())
    counts = through.manifest["counts"]["enrichment"]
    paid = counts["paid"]
    usages = [usage for _, usage in server.answered]
    assert paid["calls"] == len(usages)
    assert paid["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert paid["output_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    assert paid["cost"] == pytest.approx((3 * paid["prompt_tokens"] + 7 * paid["output_tokens"]) / 1e6, abs=1e-6)
    assert paid["retries"] == len(server.requests) - len(usages)
    assert paid["lost"] == sum(reply.status == 200 for reply in server.replies) - len(usages)
    assert counts["asked_again"] > 5
    assert paid["asked_again"] == sum(len(body["messages"]) > 2 for body, _ in server.answered)
    assert counts["extracted"] > 2
    assert counts["invalid"] == counts["refused"] == counts["invalid_share"] == 0
    assert counts["strict"] + counts["extracted"] + counts["asked_again"] == counts["asked"] == ITEMS - 1


def test_no_more_calls_than_allowed_are_in_flight(shop: Path) -> None:
    def slow(path: str, body: dict[str, Any], before: int) -> Reply:
        reply = honest(path, body, before)
        return Reply(reply.body, seconds=0.02)

    with serving(slow) as server:
        enrich(config_of(shop, server), shop.parent / "new", QUIET)
    assert server.most_in_flight == 4


@pytest.mark.parametrize("limit", [Limit(tokens=6000), Limit(cost=0.03)])
def test_the_budget_is_never_exceeded_and_the_rest_comes_with_a_larger_one(shop: Path, limit: Limit) -> None:
    prices = Prices(prompt=5.0, output=5.0)
    with serving(honest) as server:
        config = config_of(shop, server, prices=prices, limit=limit)
        for _ in range(2):
            with pytest.raises(BudgetError, match="run again with a larger budget"):
                enrich(config, shop.parent / "new", QUIET)
            spent = sum(usage["total_tokens"] for _, usage in server.answered)
            assert 3000 < spent <= 6000
        assert not (shop.parent / "new").exists()
        enrich(config_of(shop, server, prices=prices), shop.parent / "new", QUIET)
        assert len(server.requests) == ITEMS - 2


def test_killed_at_any_point_it_asks_nothing_twice(shop: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, twice: only what was in flight then is asked again."""

    def slow(path: str, body: dict[str, Any], before: int) -> Reply:
        return Reply(honest(path, body, before).body, seconds=0.05)

    with serving(slow) as server:
        command = [*map(str, arguments(shop, server.url, "--out", tmp_path / "new", "--concurrency", 2))]
        for kill_after in (5, 30):
            process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *command], cwd=REPOSITORY)
            while len(server.requests) < kill_after and process.poll() is None:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "new").exists()
        code, _, error = run_recsys(*command)
        assert code == 0, error
        times = Counter(server.prompts)
    assert len(times) == ITEMS - 2
    assert sum(times.values()) - len(times) <= 2 * 2
    with serving(honest) as clean:
        (tmp_path / "answers.sqlite").rename(tmp_path / "old.sqlite")
        (tmp_path / "answers.sqlite-wal").unlink(missing_ok=True)
        whole = enrich(config_of(shop, clean), tmp_path / "whole", QUIET)
    assert open_dataset(tmp_path / "new").items().equals(whole.items().drop("note"))


def test_the_key_is_nowhere(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with serving(faulty) as server:
        code, output, error = run_recsys(
            *arguments(shop, server.url, "--out", shop.parent / "new", "--api-key-env", "MY_KEY", "--timeout", 0.2)
        )
        assert code == 0, error
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    files = [path for path in shop.parent.rglob("*") if path.is_file()]
    assert {"manifest.json", "answers.sqlite", ANSWERS} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in output + error


def write_large_shop(folder: Path) -> Path:
    """A thousand items with texts of very different length; a tokeniser that is the server's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = [" ".join(f"w{place % 13}" for place in range(number * number % 97)) for number in range(1000)]
    titles = [f"toy {number}" for number in range(1000)]
    items = pl.DataFrame({"item_id": [f"i{number:03}" for number in range(1000)], "title": titles, "about": about})
    (folder / "prompt.txt").write_text("Which age? Title: {title}. About: {about}", encoding="utf-8")
    return write_dataset(folder / "large", [("u", "i000", 1), ("u", "i001", 2)], items)


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", None])
def test_the_estimate_is_within_two_per_cent_of_a_thousand_calls(shop: Path, tokenizer: str | None) -> None:
    """Prompts are counted; the length of answers, and what letters are worth, is known from a sample of a hundred."""
    large = write_large_shop(shop.parent)
    settings = {"tokenizer": shop.parent / tokenizer if tokenizer else None, "prices": Prices(prompt=1.0, output=4.0)}
    with serving(honest) as server:
        config = config_of(large, server, **settings)
        before = estimated(config)
        sampled(config, 100, QUIET)
        after = estimated(config)
        paid = enrich(config, shop.parent / "new", QUIET).manifest["counts"]["enrichment"]["paid"]
        prompts = sum(usage["prompt_tokens"] for _, usage in server.answered)
    assert (before.to_ask, after.to_ask, after.measured_on, paid["calls"]) == (1000, 900, 100, 900)
    if tokenizer:
        assert before.usage.prompt == pytest.approx(prompts, rel=0.02)
    assert after.usage.prompt == pytest.approx(paid["prompt_tokens"], rel=0.02)
    assert after.usage.output == pytest.approx(paid["output_tokens"], rel=0.02)
    assert after.cost == pytest.approx(paid["cost"], rel=0.02)


def test_a_server_that_is_down_is_explained_and_nothing_is_written(shop: Path) -> None:
    with serving(lambda *_: Reply({"error": "down"}, status=503)) as server:
        with pytest.raises(EndpointError, match="no answer in 7 attempts"):
            enrich(config_of(shop, server), shop.parent / "new", QUIET)
        assert len(server.requests) == 7, "the first call goes alone"
    assert not (shop.parent / "new").exists()
