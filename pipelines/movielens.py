"""MovieLens-100K for the demo: the files inside RecBole's wheel, or GroupLens' own archive."""

import hashlib
import http.client
import io
import urllib.request
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import polars as pl

from recsys.errors import DataError

ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ARCHIVE_MD5 = "0e33842e24a9c977be4e0107933c0723"  # as published beside the archive
WHEEL_FILE = "dataset_example/ml-100k/ml-100k.inter"
DOWNLOAD_SECONDS = 60

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def movielens_100k(folder: Path) -> Path:
    """Path of `ml-100k.inter`, with `ml-100k.item` beside it; downloads into `folder` where RecBole is absent."""
    inside_wheel = wheel_file()
    if inside_wheel is not None:
        return inside_wheel
    downloaded = folder / "ml-100k.inter"
    if not downloaded.exists():
        write_atomic_files(download(ARCHIVE_URL, ARCHIVE_MD5), folder)
    return downloaded


def wheel_file() -> Path | None:
    """The ratings in the installed RecBole, which is not imported."""
    try:
        listed = files("recbole") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in listed if str(file).endswith(WHEEL_FILE)), None)


def download(url: str, md5: str) -> bytes:
    """The archive, checked against its published MD5."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"demo: {url} cannot be downloaded ({error}); install the extra `recbole` (Python 3.11), whose wheel holds "
            "MovieLens-100K, or try again with a network."
        ) from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"demo: {url} has MD5 {found}, but {md5} is published; the download is damaged, try again.")
    return content


def write_atomic_files(archive: bytes, folder: Path) -> None:
    """GroupLens' `u.data` and `u.item` as RecBole atomic files."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        items = pl.read_csv(
            members.read("ml-100k/u.item").decode("latin-1").encode(),
            separator="|",
            has_header=False,
            quote_char=None,
            infer_schema=False,
        )
        ratings = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + members.read("ml-100k/u.data")
    names = items.columns
    genres = pl.concat_list(
        pl.when(pl.col(column) == "1").then(pl.lit(genre))
        for genre, column in zip(GENRES, names[-len(GENRES) :], strict=True)
    ).list.drop_nulls()
    table = items.select(
        pl.col(names[0]).alias("item_id:token"),
        pl.col(names[1]).alias("movie_title:token_seq"),
        genres.list.join(" ").alias("class:token_seq"),
    )
    table.write_csv(folder / "ml-100k.item", separator="\t", quote_style="never")
    complete = folder / "ml-100k.inter.new"
    complete.write_bytes(ratings)
    complete.rename(folder / "ml-100k.inter")  # last: its presence says that both files are whole
