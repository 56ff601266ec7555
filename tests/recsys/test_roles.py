"""Columns and the roles they play."""

import pytest

from recsys.errors import ConfigError
from recsys.roles import event_roles, item_roles, looks_like_log


@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        (
            ["userId", "movieId", "rating", "timestamp"],
            {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "value": "rating"},
        ),
        (
            ["asin", "reviewerID", "reviewTime", "unixReviewTime"],
            {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime"},
        ),
        (["uid", "Item-ID", "user_id"], {"user_id": "user_id", "item_id": "Item-ID"}),
    ],
)
def test_well_known_names_are_recognised(columns: list[str], roles: dict[str, str]) -> None:
    assert event_roles(columns, {}, "log.csv") == roles


def test_a_mapping_wins_and_its_column_is_not_given_away_again() -> None:
    columns = ["SessionId", "ItemId", "Time", "shop"]
    assert event_roles(columns, {"user_id": "SessionId"}, "log.csv") == {
        "user_id": "SessionId",
        "item_id": "ItemId",
        "timestamp": "Time",
    }
    assert event_roles(columns, {"user_id": "shop", "timestamp": ""}, "log.csv") == {
        "user_id": "shop",
        "item_id": "ItemId",
        "session_id": "SessionId",
    }


def test_errors_list_the_columns_and_say_how_to_map() -> None:
    with pytest.raises(
        ConfigError, match=r"log.csv: no column for user_id; it has 'who', 'item'.*--map user_id=COLUMN"
    ):
        event_roles(["who", "item"], {}, "log.csv")
    with pytest.raises(ConfigError, match=r"log.csv: --map user_id=whom: no such column; it has 'who', 'item'\."):
        event_roles(["who", "item"], {"user_id": "whom"}, "log.csv")
    with pytest.raises(ConfigError, match=r"no column for item_id; it has 'a'.*--items-map item_id=COLUMN"):
        item_roles(["a"], {}, "items.csv")
    with pytest.raises(ConfigError, match="'c11' and 3 more"):
        event_roles([f"c{place}" for place in range(15)], {}, "log.csv")


def test_item_roles_may_name_attributes() -> None:
    columns = ["movie_id", "movie_title", "class", "lat"]
    assert item_roles(columns, {"latitude": "lat"}, "items.csv") == {
        "latitude": "lat",
        "item_id": "movie_id",
        "title": "movie_title",
        "categories": "class",
    }


def test_a_header_is_told_from_data() -> None:
    assert looks_like_log(["user", "item"])
    assert not looks_like_log(["1", "31"])
