"""MovieLens-100K from RecBole's wheel, or from an archive as GroupLens serves it."""

import hashlib
import io
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from pipelines import movielens
from pipelines.ingest import IngestConfig, ingest
from pipelines.movielens import GENRES, download, movielens_100k, wheel_file
from recsys.errors import DataError

RATINGS = "196\t2\t3\t881250949\n186\t1\t4\t891717742\n196\t1\t5\t881250950\n"


def item_line(number: int, title: str, *genres: str) -> str:
    """One line of `u.item`."""
    flags = "|".join(str(int(genre in genres)) for genre in GENRES)
    return f"{number}|{title}|01-Jan-1995||http://us.imdb.com/M/title-exact?x|{flags}\n"


def archive() -> bytes:
    """A zip of two films laid out as GroupLens' own."""
    items = item_line(1, "Misérables, Les (1995)", "Drama", "Musical") + item_line(2, 'The "Quoted" One (1990)')
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as members:
        members.writestr("ml-100k/u.data", RATINGS)
        members.writestr("ml-100k/u.item", items.encode("latin-1"))
    return content.getvalue()


@dataclass
class Site:
    """What a local server answers with, and how often it was asked."""

    body: bytes
    announced: int | None = None
    status: int = 200
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the site's body."""

    def __init__(self, site: Site, *args: object) -> None:
        self.site = site
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The body, or as much of it as there is of what was announced."""
        self.site.asked.append(self.path)
        self.send_response(self.site.status)
        self.send_header("Content-Length", str(self.site.announced or len(self.site.body)))
        self.end_headers()
        self.wfile.write(self.site.body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """GroupLens on this machine, and no RecBole."""
    site = Site(archive())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, site)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(movielens, "wheel_file", lambda: None)
        monkeypatch.setattr(movielens, "ARCHIVE_URL", f"http://127.0.0.1:{server.server_port}/ml-100k.zip")
        monkeypatch.setattr(movielens, "ARCHIVE_MD5", hashlib.md5(site.body, usedforsecurity=False).hexdigest())
        yield site
        server.shutdown()
        thread.join()


def test_the_file_in_the_wheel_is_found_without_importing_recbole() -> None:
    imported = "recbole" in sys.modules
    path = wheel_file()
    if path is None:
        pytest.skip("RecBole is not installed (extra `recbole`, Python 3.11)")
    with path.open() as lines:
        assert next(lines).split() == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        assert sum(1 for _ in lines) == 100_000
    assert path.with_suffix(".item").is_file()
    assert ("recbole" in sys.modules) == imported


def test_without_recbole_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(movielens, "files", absent)
    assert wheel_file() is None


def test_the_archive_becomes_atomic_files(site: Site, tmp_path: Path) -> None:
    log = movielens_100k(tmp_path / "log")
    assert log.read_text() == "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS
    assert log.with_suffix(".item").read_text(encoding="utf-8").splitlines() == [
        "item_id:token\tmovie_title:token_seq\tclass:token_seq",
        "1\tMisérables, Les (1995)\tDrama Musical",
        '2\tThe "Quoted" One (1990)\t',
    ]
    assert site.asked == ["/ml-100k.zip"]
    assert movielens_100k(tmp_path / "log") == log
    assert len(site.asked) == 1, "a second call must not download again"


def test_what_was_downloaded_is_a_log_with_titles(site: Site, tmp_path: Path) -> None:  # noqa: ARG001 - it serves
    dataset = ingest(IngestConfig(sources=(movielens_100k(tmp_path / "log"),), out=tmp_path / "dataset"))
    assert dataset.events().select("user_id", "item_id", "timestamp").rows() == [
        ("186", "1", 891_717_742_000_000),
        ("196", "2", 881_250_949_000_000),
        ("196", "1", 881_250_950_000_000),
    ]
    assert dataset.items().select("item_id", "title").rows() == [
        ("1", "Misérables, Les (1995)"),
        ("2", 'The "Quoted" One (1990)'),
    ]


def test_a_damaged_archive_is_refused(site: Site, tmp_path: Path) -> None:
    site.body = site.body[:-1] + b"x"
    with pytest.raises(DataError, match=r"ml-100k\.zip has MD5 [0-9a-f]{32}, but [0-9a-f]{32} is published"):
        movielens_100k(tmp_path / "log")
    assert not (tmp_path / "log" / "ml-100k.inter").exists()


def test_an_answer_that_breaks_off_is_a_failed_download(site: Site, tmp_path: Path) -> None:
    site.announced = len(site.body) + 10
    with pytest.raises(DataError, match=r"ml-100k\.zip cannot be downloaded \(.*\); install the extra `recbole`"):
        movielens_100k(tmp_path / "log")


def test_a_missing_archive_is_a_failed_download(site: Site, tmp_path: Path) -> None:
    site.status = 404
    with pytest.raises(DataError, match=r"cannot be downloaded \(HTTP Error 404: Not Found\)"):
        movielens_100k(tmp_path / "log")


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/ml-100k.zip"
        with pytest.raises(DataError, match=r"cannot be downloaded \(.*refused.*\); install the extra `recbole`"):
            download(url, "0" * 32)
