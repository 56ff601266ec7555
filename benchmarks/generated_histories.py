"""Long histories with a known reason for every event: `python -m benchmarks.generated_histories --out DIR`.

Each user's next event is of category c with a probability proportional to

    1 + sum over positions p of relevance(c, p) [event at position p is of category c]

where position 1 is the newest. Two kinds of category share out `STRENGTH` over the positions:

    fading     relevance(c, p) = STRENGTH (1 - d) d^(p - 1), d ** half-life = 1/2, half-lives of 5 to 320 events
    periodic   bumps of three events' width at p = T, 2T, 3T, each half of the one before; T of 60 to 240 events

so what matters is the pattern of DARE's paper: the same category, by how far back it lies, and for some categories far
back alone. Items of a category are exchangeable: they follow one another in an order drawn for each user, and none
comes twice while there are others. All users' clocks run alike, so that a split by time cuts all histories alike.

    events.parquet    user_id, item_id, timestamp: a log for `recsys ingest`
    items.parquet     item_id, categories: for its --items
    truth.parquet     category, position, relevance: all that is above zero
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from recsys.errors import ConfigError

STRENGTH = 80.0
HALF_LIVES = (5, 20, 80, 320)
PERIODS = (60, 120, 240)
BUMP = (0.25, 0.5, 0.25)
BUMPS = 3
SECONDS_BETWEEN, STARTED = 600, 1_600_000_000
PERIODIC_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class World:
    """How much is generated, and from which seed."""

    users: int = 300
    events: int = 10_000
    categories: int = 20
    items_of_category: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "events", "categories", "items_of_category"):
            if getattr(self, name) < 1:
                raise ConfigError(f"World: {name}={getattr(self, name)} must be at least 1.")

    @property
    def periodic(self) -> int:
        """Categories that are periodic; they come after those that fade."""
        return round(PERIODIC_SHARE * self.categories)

    def names(self) -> list[str]:
        """Of categories, in the order of their numbers."""
        return [f"c{number:03d}" for number in range(self.categories)]


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=World.users)
    parser.add_argument("--events", type=int, default=World.events, help="of each user")
    parser.add_argument("--seed", type=int, default=World.seed)
    arguments = parser.parse_args()
    write(World(users=arguments.users, events=arguments.events, seed=arguments.seed), arguments.out)


def write(world: World, folder: Path) -> None:
    """The log, the item table and the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    categories = histories(world)
    items(world, categories).write_parquet(folder / "events.parquet")
    item_table(world).write_parquet(folder / "items.parquet")
    truth(world).write_parquet(folder / "truth.parquet")


def relevance(world: World) -> Float[np.ndarray, "K P"]:
    """Of a category's event at each position (1 is place 0) for the category itself; for others it has none."""
    shapes = np.zeros((world.categories, world.events))
    back = np.arange(world.events)
    fading = world.categories - world.periodic
    for category in range(fading):
        kept = 0.5 ** (1 / HALF_LIVES[category % len(HALF_LIVES)])
        shapes[category] = (1 - kept) * kept**back
    for category in range(fading, world.categories):
        shapes[category] = _bumps(PERIODS[(category - fading) % len(PERIODS)], world.events)
    return STRENGTH * shapes


def _bumps(period: int, length: int) -> Float[np.ndarray, " P"]:
    centres = np.arange(1, BUMPS + 1) * period - 1
    halves = 0.5 ** np.arange(BUMPS)
    shape = np.zeros(max(length, centres[-1] + 2))
    for centre, half in zip(centres, halves / halves.sum(), strict=True):
        shape[centre - 1 : centre + 2] += half * np.array(BUMP)
    return shape[:length]


def histories(world: World) -> Int[np.ndarray, "U N"]:
    """Category of every event of every user, oldest first."""
    rng = np.random.default_rng(world.seed)
    weights, fading = relevance(world), world.categories - world.periodic
    of_bump, lags = np.nonzero(weights[fading:])
    strength = np.zeros((len(lags), world.categories))
    strength[np.arange(len(lags)), fading + of_bump] = weights[fading + of_bump, lags]
    kept = np.append(0.5 ** (1 / np.resize(HALF_LIVES, fading)), np.zeros(world.periodic))
    fresh = np.append(weights[:fading, 0], np.zeros(world.periodic))
    events, excited = np.full((world.users, world.events), -1), np.zeros((world.users, world.categories))
    for now in range(world.events):
        seen = lags < now
        hits = events[:, now - 1 - lags[seen]] == fading + of_bump[seen]
        up_to = (1 + excited + hits @ strength[seen]).cumsum(axis=1)
        drawn = (rng.random((world.users, 1)) * up_to[:, -1:] >= up_to).sum(axis=1)
        events[:, now] = drawn
        excited *= kept
        excited[np.arange(world.users), drawn] += fresh[drawn]
    return events


def items(world: World, categories: Int[np.ndarray, "U N"]) -> pl.DataFrame:
    """The log: which item each event was, and when."""
    rng = np.random.default_rng([world.seed, 1])
    turn = np.empty_like(categories)
    for user, row in enumerate(categories):
        orders = rng.permuted(
            np.broadcast_to(np.arange(world.items_of_category), (world.categories, world.items_of_category)), axis=1
        )
        turn[user] = orders[row, _times_before(row) % world.items_of_category]
    numbers = (categories * world.items_of_category + turn).ravel()
    users = np.repeat(np.arange(world.users), world.events)
    times = STARTED + np.tile(np.arange(world.events), world.users) * SECONDS_BETWEEN
    return pl.DataFrame({"user": users, "item": numbers, "timestamp": times}).select(
        user_id=pl.format("u{}", "user"), item_id=pl.format("i{}", "item"), timestamp="timestamp"
    )


def _times_before(row: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """How often each value stood earlier in the row."""
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], row[order])
    times = np.empty_like(row)
    times[order] = np.arange(len(row)) - starts
    return times


def item_table(world: World) -> pl.DataFrame:
    """Category of each item."""
    number = pl.Series("number", np.arange(world.categories * world.items_of_category))
    names = pl.Series("categories", np.repeat(world.names(), world.items_of_category))
    return pl.DataFrame([number, names]).select(item_id=pl.format("i{}", "number"), categories="categories")


def truth(world: World) -> pl.DataFrame:
    """Relevance of what is relevant, positions from 1."""
    weights = relevance(world)
    category, place = np.nonzero(weights)
    return pl.DataFrame({
        "category": np.array(world.names())[category],
        "position": place + 1,
        "relevance": weights[category, place],
    })


if __name__ == "__main__":
    main()
