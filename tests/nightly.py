"""A small shop's nightly job: its logs, its PIPELINE.yaml, and a webhook that listens."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import polars as pl
import yaml
from tiny import START_OF_TIME, cyclic_histories

from pipelines import run_pipeline
from pipelines.pipeline_config import load_pipeline
from pipelines.reporter import Reporter
from recsys.registry import alias_holders

USERS, LENGTH = 100, 16
SMALL = {
    "model.max_len": 6,
    "model.embedding_dim": 16,
    "model.num_blocks": 1,
    "model.ffn_dim": 16,
    "model.dropout": 0.0,
    "training.batch_size": 16,
    "training.learning_rate": 0.01,
    "training.epochs": 20,
    "training.patience": 20,
    "training.checkpoint_seconds": 0,
}
WEAK = SMALL | {"training.epochs": 10, "training.learning_rate": 0.003}
WALKS = cyclic_histories(2 * USERS, LENGTH)
HISTORIES = [
    [item for pair in zip(WALKS[user], WALKS[USERS + user], strict=True) for item in pair] for user in range(USERS)
]
"""The item before the last decides the next, which floors by the last item cannot see."""


def write_logs(folder: Path, nights: int) -> None:
    """One file a night, of four further events of each user, the first of twelve; new users' walks never begin."""
    folder.mkdir(exist_ok=True)
    for night in range(nights):
        places = range(12) if night == 0 else range(8 + 4 * night, 12 + 4 * night)
        rows = [
            (f"u{user:02}", f"i{HISTORIES[user][place]:02}", START_OF_TIME // 1_000_000 + 60 * (place * USERS + user))
            for place in places
            for user in range(USERS)
        ]
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        table.write_csv(folder / f"night-{night}.csv")


def write_pipeline(folder: Path, name: str = "shop", **changes: Any) -> Path:
    """PIPELINE.yaml of a small shop."""
    content: dict[str, Any] = {
        "name": name,
        "work": f"work-{name}",
        "sources": ["logs/*.csv"],
        "prepare": {"seen": "keep"},
        "train": {"model": "sasrec", "set": SMALL, "tracking": False},
        "compare": {"draws": 200, "report": False, "guard": {"coverage@10": -0.9}},
        "register": {"name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def cycle(folder: Path, name: str = "shop", **changes: Any) -> run_pipeline.Outcome:
    """One call of `recsys run`."""
    config = load_pipeline(write_pipeline(folder, name, **changes))
    return run_pipeline.run_pipeline(config, Reporter(quiet=True))


def train_section(warm: bool = False, **settings: Any) -> dict[str, Any]:
    """Section `train` of PIPELINE.yaml."""
    return {"model": "sasrec", "set": settings or SMALL, "tracking": False, "warm": warm}


def champion_version(name: str) -> str | None:
    """Which version the alias points at."""
    holders = alias_holders(name, "champion")
    return holders[0].version if holders else None


def snapshot(folder: Path) -> dict[str, int]:
    """All files but the lock, with the instants of their last change."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"
    }


class Webhook:
    """A server that keeps what is posted to it, as long as the block runs."""

    def __init__(self, status: int = 200) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
