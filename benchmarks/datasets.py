"""Every public dataset ingested by one command: `python -m benchmarks.datasets`; writes docs/datasets.md.

Counts are compared with those of the datasets' own READMEs below RECSYS_DATA (../shared/data).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.steps import git_commit

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RECSYS_DATA", REPOSITORY.parent / "shared" / "data"))
PAGE = REPOSITORY / "docs" / "datasets.md"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A dataset: its command below `folder` (`D/`), what its README counts, and what is to be known of it.

    `rows`: events before duplicates are left out; `extra`: further counts of the manifest.
    """

    folder: str
    arguments: str
    users: int
    items: int
    rows: int
    note: str = ""
    name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the output."""
        return self.name or self.folder


PLAYLIST = "--map user_id=playlist_id --map item_id=track_id"
BASKETS = "baskets, in `session_id`"
WINDOWS = "one row a window; its target is the event, and the histories that the rows repeat are left out"
ENTRIES = (
    Entry(folder="ml-1m", arguments="D/ml-1m.txt.gz", users=6040, items=3416, rows=999_611),
    Entry(
        folder="ml-1m",
        name="ml-1m-titles",
        arguments="D/interactions_joined.csv.gz --map timestamp= --items D/movies.dat",
        users=6040,
        items=3416,
        rows=999_611,
        note="original movie ids, titles and genres; times are known for 57 % of the rows only, so they are left out",
    ),
    Entry(
        folder="ml-latest-small-2016",
        arguments="D/ratings.csv.gz --items D/movies.csv",
        users=671,
        items=9066,
        rows=100_004,
    ),
    Entry(folder="ml-100k-atomic", arguments="D/ml-100k.inter", users=943, items=1682, rows=100_000),
    Entry(
        folder="amazon-beauty-2014",
        arguments="D/Beauty.txt --items D/items.jsonl.gz",
        users=22_363,
        items=12_101,
        rows=198_502,
    ),
    Entry(
        folder="yelp-s3rec", arguments="D/Yelp.txt --items D/items.jsonl.gz", users=30_431, items=20_033, rows=316_354
    ),
    Entry(
        folder="amazon-sports-2014",
        arguments="D/Sports_and_Outdoors.txt --items D/items.csv --items-map title=short_text",
        users=35_598,
        items=18_357,
        rows=296_337,
    ),
    Entry(folder="lastfm-s3rec", arguments="D/LastFM.txt", users=1090, items=3646, rows=52_551),
    Entry(
        folder="amazon-games-2018",
        arguments="D/Games-6k.test.inter.gz --items D/Games-6k.item",
        users=50_546,
        items=16_859,
        rows=440_264,
    ),
    Entry(
        folder="amazon-scientific-2018",
        arguments="D/structured/Scientific.inter.json --items D/structured/Scientific.item.json.gz",
        users=8317,
        items=4344,
        rows=58_492,
    ),
    Entry(
        folder="amazon-scientific-2018",
        name="amazon-scientific-2018-unisrec",
        arguments="D/unisrec/Scientific.test.inter",
        users=8442,
        items=4385,
        rows=59_384,
    ),
    Entry(
        folder="amazon-office-2018",
        arguments="D/Office_Products_5_2016-10-2018-11.valid.csv.gz D/Office_Products_5_2016-10-2018-11.test.csv.gz "
        "--items D/Office_Products.item.json.gz",
        users=3231,
        items=2579,
        rows=9732,
        note=f"{WINDOWS} (3,317 items with them)",
    ),
    Entry(
        folder="amazon-industrial-2018",
        arguments="D/Industrial_and_Scientific_5_2016-10-2018-11.valid.csv.gz "
        "D/Industrial_and_Scientific_5_2016-10-2018-11.test.csv.gz --items D/Industrial_and_Scientific.item.json.gz",
        users=3285,
        items=2421,
        rows=9065,
        note=f"{WINDOWS} (3,541 items with them)",
    ),
    Entry(
        folder="amazon-grocery-2014",
        arguments="D/train.csv.gz --items D/item_meta.csv.gz --items-map categories=i_category",
        users=14_681,
        items=8687,
        rows=121_892,
        note="the README has 8,713 items for the full set; the training part has 8,687",
    ),
    Entry(folder="amazon-games-2014-sasrec", arguments="D/Video.txt.gz", users=31_013, items=23_715, rows=287_107),
    Entry(folder="amazon-beauty-2014-bert4rec", arguments="D/beauty.txt.gz", users=40_226, items=54_542, rows=353_962),
    Entry(
        folder="amazon-reviews-raw-2018",
        name="amazon-all-beauty",
        arguments="D/All_Beauty_5.json.gz",
        users=991,
        items=85,
        rows=5269,
        note="reviews that come twice are told by user, item, day and rating",
    ),
    Entry(
        folder="amazon-reviews-raw-2018",
        name="amazon-gift-cards",
        arguments="D/Gift_Cards_5.json.gz --items D/meta_Gift_Cards.json.gz",
        users=458,
        items=148,
        rows=2972,
    ),
    *(
        Entry(
            folder="amazon-bundle",
            name=f"amazon-bundle-{domain}",
            arguments=f"D/{domain}/user_item.csv --items D/{domain}/item_titles.csv --items-map title=titles",
            users=users,
            items=items,
            rows=rows,
        )
        for domain, users, items, rows in (
            ("clothing", 965, 4487, 6326),
            ("electronic", 888, 3499, 6165),
            ("food", 879, 3767, 6395),
        )
    ),
    Entry(
        folder="amazon-movies-llm4dsr",
        arguments="D/noise_0.0/train_10000.csv.gz --map item_id=item_ids --map timestamp=",
        users=3448,
        items=4962,
        rows=110_000,
        note="10,000 windows of 11, a list in one cell each; they overlap, and their time is that of the last item",
    ),
    Entry(
        folder="microlens-50k",
        arguments="D/MicroLens-50k_pairs.tsv.gz --format sequences --items D/MicroLens-50k_titles.csv.gz",
        users=50_000,
        items=19_220,
        rows=359_708,
    ),
    Entry(folder="globo-clicks", arguments="D", users=297_351, items=38_448, rows=2_503_647, note="300 hourly files"),
    Entry(
        folder="foursquare-nyc",
        arguments="D/NYC.npy --columns user_id,item_id,timestamp --time-unit min --items D/NYC_POI.npy "
        "--items-map item_id=column_1 --items-map latitude=column_2 --items-map longitude=column_3",
        users=1083,
        items=5135,
        rows=147_938,
        extra={"rejected": {"duplicate": 458}},
    ),
    Entry(folder="online-retail-sequences", arguments="D/sequences.jsonl.gz", users=4234, items=3684, rows=406_632),
    Entry(folder="wikipedia-edits", arguments="D/wikipedia.txt", users=8227, items=1000, rows=157_474),
    Entry(folder="taobao-sequences", arguments="D/Taobao.txt.gz", users=47_703, items=53_324, rows=637_165),
    *(
        Entry(
            folder="baskets-dnntsp",
            name=f"baskets-{file.partition('.')[0].lower()}",
            arguments=f"D/{file}",
            users=users,
            items=items,
            rows=rows,
            note=BASKETS,
        )
        for file, users, items, rows in (
            ("TaFeng.json.gz", 9841, 4935, 396_783),
            ("DC.json", 9010, 217, 65_049),
            ("TMS.json.gz", 15_726, 1565, 533_209),
        )
    ),
    Entry(
        folder="sessions-serenade",
        arguments="D/train.txt.gz D/valid.txt D/test.txt --map user_id=SessionId",
        users=24_385,
        items=18_009,
        rows=116_285,
        note="sessions stand for users",
    ),
    Entry(
        folder="spotify-playlists",
        arguments=f"D/spotify_songs.parquet {PLAYLIST} --items D/spotify_songs.parquet --items-map item_id=track_id "
        "--items-map title=track_name --items-map categories=playlist_genre",
        users=471,
        items=28_356,
        rows=32_833,
        note="playlists stand for users",
    ),
)


def main() -> None:
    """All datasets (or those named), then the page; exit code 1 where a count differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these, without writing the page")
    names = parser.parse_args().names
    entries = [entry for entry in ENTRIES if not names or entry.label in names]
    results = list[tuple[Entry, dict[str, Any]]]()
    for entry in entries:
        counts = ingested(entry)
        print(entry.label, differences(entry, counts) or "as in its README", f"{counts['seconds']} s", flush=True)
        results.append((entry, counts))
    if not names:
        PAGE.write_text(page(results), encoding="utf-8")
    sys.exit(any(differences(entry, counts) for entry, counts in results))


def ingested(entry: Entry) -> dict[str, Any]:
    """Counts and seconds of the entry's command, run as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = entry.arguments.replace("D/", f"{DATA / entry.folder}/").split()
        arguments = [str(DATA / entry.folder) if argument == "D" else argument for argument in arguments]
        command = [sys.executable, "-m", "pipelines.cli", "ingest", *arguments, "--out", f"{folder}/out", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1], "seconds": 0}
    manifest = json.loads(done.stdout)
    counts: dict[str, Any] = manifest["counts"] | {"seconds": round(manifest["seconds"], 1)}
    return counts


def differences(entry: Entry, counts: dict[str, Any]) -> str:
    """Which counts are not those of the README."""
    if "error" in counts:
        return str(counts["error"])
    wanted = {"users": entry.users, "items": entry.items, "rows": entry.rows, **entry.extra}
    return ", ".join(f"{name} {counts[name]} for {value}" for name, value in wanted.items() if counts[name] != value)


def page(results: list[tuple[Entry, dict[str, Any]]]) -> str:
    """Markdown."""
    lines = [
        "# Public datasets, one command each",
        "",
        "Written by `python -m benchmarks.datasets`; do not edit. The files are as published, below `D` (for each "
        "dataset its own folder). Seconds are those of the step, on a machine that had other work to do.",
        "",
        "| dataset | users | items | rows | rejected | time | counts | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(row(entry, counts) for entry, counts in results),
        "",
        "```bash",
    ]
    for entry, _ in results:
        if entry.note:
            lines.append(f"# {entry.note}")
        lines.append(f"recsys ingest {entry.arguments} --out {entry.label}")
    return "\n".join([*lines, "```", "", *conditions(), ""])


def row(entry: Entry, counts: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in counts:
        return f"| {entry.label} | | | | | | {counts['error']} | |"
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in counts["rejected"].items())
    figures = " | ".join(f"{counts[name]:,}" for name in ("users", "items", "rows"))
    verdict = differences(entry, counts) or "as in its README"
    return f"| {entry.label} | {figures} | {rejected} | {counts['time']} | {verdict} | {counts['seconds']} |"


def conditions() -> list[str]:
    """Machine and version."""
    commit = (git_commit() or "unknown")[:12]
    return [f"{platform.machine()}, {os.cpu_count()} cores; commit {commit}; {datetime.now(UTC).date()}."]


if __name__ == "__main__":
    main()
