"""`recsys describe`: text, JSON and card say the same, of a dataset and of prepared data."""

import json
import re
from pathlib import Path

import pytest
from builders import random_rows, write_dataset
from command_line import run_recsys

from pipelines.dataset_card import doubling_labels, write_card
from pipelines.describe import describe_folder
from pipelines.prepare import PrepareConfig, prepare


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and the same prepared by both splits."""
    folder = tmp_path_factory.mktemp("shop")
    dataset = write_dataset(folder / "dataset", random_rows(0, 30, 20, 900))
    prepare(PrepareConfig(dataset=dataset, out=folder / "by-time"))
    prepare(PrepareConfig(dataset=dataset, out=folder / "last-item", split="last-item"))
    return folder


def test_the_text_names_figures_traps_and_the_card(shop: Path, tmp_path: Path) -> None:
    page = tmp_path / "shop.html"
    code, output, error = run_recsys("describe", shop / "dataset", "--report", page)
    assert (code, error) == (0, "")
    assert "users, items, events: 30, 20, 900" in output
    assert "time: 1970-01-01T00:00:00 to 1970-01-01T00:14:59 UTC, 0.0 days" in output
    assert "split time, test: 90 cases, 0.0% new users" in output
    assert re.search(r"^warning: repeats: .*\. What to do: .*\.$", output, flags=re.MULTILINE)
    assert output.endswith(f"card: {page}\n")
    text = page.read_text()
    assert "30, 20, 900" in text
    assert text.count("<svg") == 5
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text), "nothing is loaded from elsewhere"
    for trap in describe_folder(shop / "dataset").traps:
        assert f'<b class="broken">{trap.name}</b>' in text


def test_prepared_data_has_the_split_it_was_given(shop: Path) -> None:
    for kind in ("by-time", "last-item"):
        code, output, _ = run_recsys("describe", shop / kind, "--json", "--no-card")
        found = json.loads(output)
        assert (code, found["step"], found["card"]) == (0, "prepare", None)
        assert list(found["splits"]) == ["time" if kind == "by-time" else kind]
        assert ("leave-one-out" in {trap["name"] for trap in found["traps"]}) == (kind == "last-item")
        assert not (shop / kind / "card.html").exists()


def test_a_dataset_and_what_was_prepared_of_it_agree(shop: Path) -> None:
    dataset, prepared = (describe_folder(shop / name).log for name in ("dataset", "by-time"))
    assert dataset.splits["time"] == prepared.splits["time"]
    for name in ("users", "items", "events", "sparsity", "lengths", "popularity", "repeats", "ties", "calendar"):
        assert getattr(dataset, name) == getattr(prepared, name), name


def test_the_card_lies_in_the_folder_unless_told_otherwise(shop: Path) -> None:
    code, output, _ = run_recsys("describe", shop / "dataset", "--json")
    assert json.loads(output)["card"] == str(shop / "dataset" / "card.html")
    assert code == 0
    assert (shop / "dataset" / "card.html").is_file()
    describe_folder(shop / "dataset")


def test_the_card_of_events_in_an_order_has_no_plot_of_time(tmp_path: Path) -> None:
    rows = [(f"<b>{user}", item, place) for user in "uv" for place, item in enumerate("abcd")]
    dataset = write_dataset(tmp_path / "<i>log", rows, time="order")
    write_card(tmp_path / "card.html", describe_folder(dataset))
    text = (tmp_path / "card.html").read_text()
    assert text.count("<svg") == 2
    assert "<i>log" not in text
    assert "order-only" in text


def test_other_folders_are_refused(shop: Path, tmp_path: Path) -> None:
    code, _, error = run_recsys("describe", tmp_path / "absent")
    assert (code, error) == (
        1,
        f"error: {tmp_path / 'absent'}: no such folder; expected the output of `recsys ingest`.\n",
    )
    code, _, error = run_recsys("describe", shop)
    assert code == 1
    assert "has no manifest.json" in error


def test_columns_double() -> None:
    assert doubling_labels((5, 0, 2)) == ["1", "2-3", "4-7"]
