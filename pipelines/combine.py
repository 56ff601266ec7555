"""`recsys combine`: several datasets become one, every id behind its dataset's name; what pretraining reads."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.errors import ConfigError
from recsys.partitions import write_events
from recsys.schema import Dataset, Items, open_dataset
from recsys.steps import writing_step


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """Settings of `recsys combine`."""

    datasets: tuple[Path, ...]
    out: Path
    overwrite: bool = False

    def __post_init__(self) -> None:
        if len(self.datasets) < 2:
            raise ConfigError("combine: give at least two datasets (outputs of `recsys ingest`).")
        names = [folder.resolve().name for folder in self.datasets]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"combine: two datasets are called {doubled[0]!r}, and ids are told apart by it; rename one folder."
            )


def combine(config: CombineConfig) -> Dataset:
    """Users and items are `NAME/ID`, NAME the folder's; attributes of the same name share a column.

    Times are kept where every dataset has them; otherwise the result knows the order of a user's events alone.
    """
    datasets = {folder.resolve().name: open_dataset(folder) for folder in config.datasets}
    settings = {"datasets": [str(folder) for folder in config.datasets]}
    with writing_step(
        "ingest", config.out, config=settings, inputs=config.datasets, overwrite=config.overwrite
    ) as step:
        named = [(name, dataset.events(), dataset.items()) for name, dataset in datasets.items()]
        events = pl.concat([_renamed(table, name, ["user_id", "item_id"]) for name, table, _ in named], how="diagonal")
        tables = _same_types([_renamed(table, name, ["item_id"]) for name, _, table in named])
        items = pl.concat(tables, how="diagonal")
        Items.validate(items.select("item_id"))
        write_events(events.sort("user_id", "timestamp", maintain_order=True), step.folder / "events")
        items.write_parquet(step.folder / "items.parquet")
        step.counts.update({
            "events": len(events),
            "users": events["user_id"].n_unique(),
            "items": len(items),
            "sources": list(datasets),
            "time": "order" if any(dataset.time == "order" for dataset in datasets.values()) else "timestamp",
        })
    return open_dataset(config.out)


def _renamed(table: pl.DataFrame, name: str, columns: list[str]) -> pl.DataFrame:
    return table.with_columns(pl.format("{}/{}", pl.lit(name), column).alias(column) for column in columns)


def _same_types(tables: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """A column that is a list in one table and text in another becomes text, its entries parted by blanks."""
    kinds: dict[str, set[pl.DataType]] = {}
    for table in tables:
        for name, dtype in table.schema.items():
            kinds.setdefault(name, set()).add(dtype)
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    return [
        table.with_columns(
            pl.col(name).list.join(" ") if isinstance(table.schema[name], pl.List) else pl.col(name).cast(pl.String)
            for name in mixed & set(table.columns)
        )
        for table in tables
    ]
