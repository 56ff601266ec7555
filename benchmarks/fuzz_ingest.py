"""Damaged logs: `python -m benchmarks.fuzz_ingest --files 2000 --seed 0`.

A small log in each format is damaged at random: bytes flipped, rows cut, columns swapped, encodings mixed, blocks
doubled or dropped. Ingest must end with a dataset whose accepted and rejected rows add up to the rows read, or with a
clear error; a traceback, a hang or a sum that is off is a finding, and exit code 1.
"""

import argparse
import gzip
import io
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import polars as pl
import zstandard

from pipelines.ingest import IngestConfig, ingest
from recsys.errors import RecsysError
from recsys.schema import Dataset

SECONDS = 20
USERS, ITEMS, ROWS = 7, 9, 40
LONGEST_ERROR = 700

Damage = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Finding:
    """A file that was not handled, and how it was made."""

    number: int
    name: str
    damages: tuple[str, ...]
    what: str


class HangError(BaseException):
    """Ingest took longer than it may."""


def fuzz(files: int, seed: int) -> tuple[Counter[str], list[Finding]]:
    """How many of `files` damaged logs became datasets or errors, and what was found."""
    outcomes, findings = Counter[str](), list[Finding]()
    logs = sorted(clean_logs().items())
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            rng = np.random.default_rng([seed, number])
            name, content = logs[number % len(logs)]
            names = tuple(str(name) for name in rng.choice(sorted(DAMAGES), size=rng.integers(1, 4)))
            for damage in names:
                content = DAMAGES[damage](content, rng)
            path = Path(folder) / f"{number}-{name}"
            path.write_bytes(content)
            outcome = handled(path, Path(folder) / "out")
            outcomes[outcome if outcome in {"dataset", "error"} else "finding"] += 1
            if outcome not in {"dataset", "error"}:
                findings.append(Finding(number, name, names, outcome))
            path.unlink()
    return outcomes, findings


def handled(path: Path, out: Path) -> str:
    """`dataset`, `error`, or what is wrong."""

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a signal handler is given
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        columns = ("user_id", "item_id", "timestamp") if path.name.endswith(".npy") else ()
        return sum_of(ingest(IngestConfig(sources=(path,), out=out, columns=columns, overwrite=True)))
    except RecsysError as error:
        text = str(error)
        return (
            "error"
            if "\n" not in text and len(text) < LONGEST_ERROR
            else f"an error of {len(text)} letters: {text[:90]}"
        )
    except HangError:
        return f"no end after {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(out, ignore_errors=True)


def sum_of(dataset: Dataset) -> str:
    """Whether every row is an event or rejected, on disk as in the manifest."""
    counts, events, rejected = dataset.manifest["counts"], dataset.events(), dataset.rejected()
    if counts["rows"] != len(events) + len(rejected) or counts["accepted"] != len(events):
        return f"{counts['rows']} rows, but {len(events)} events and {len(rejected)} rejected"
    return "dataset"


def clean_logs() -> dict[str, bytes]:
    """A log in each format, by a file name that `auto` recognises."""
    rng = np.random.default_rng(0)
    rows = [
        (
            f"u{rng.integers(USERS)}é",
            f"i{rng.integers(ITEMS)}",
            1_600_000_000 + int(rng.integers(10**6)),
            int(rng.integers(5)),
        )
        for _ in range(ROWS)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    csv = frame.write_csv().encode()
    objects = [dict(zip(frame.columns, row, strict=True)) for row in rows]
    by_user = {user: [item for other, item, _, _ in rows if other == user] for user, _, _, _ in rows}
    atomic = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t, _ in rows)
    parquet, npy = io.BytesIO(), io.BytesIO()
    frame.write_parquet(parquet)
    np.save(npy, np.array([[int(user[1]), int(item[1]), time] for user, item, time, _ in rows]))
    return {
        "log.csv": csv,
        "quoted.csv": frame.write_csv(quote_style="always").replace("é", 'é\n""').encode(),
        "semicolons.txt": csv.replace(b",", b";"),
        "log.tsv": csv.replace(b",", b"\t"),
        "log.csv.gz": gzip.compress(csv, mtime=0),
        "log.csv.zst": zstandard.compress(csv),
        "latin.csv": csv.decode().encode("utf-8"),
        "ratings.dat": "".join(f"{u}::{i}::{r}::{t}\n" for u, i, t, r in rows).encode(),
        "log.inter": atomic.encode(),
        "log.jsonl": "\n".join(json.dumps(entry) for entry in objects).encode(),
        "literals.json": "\n".join(repr(entry) for entry in objects).encode(),
        "pretty.json": json.dumps(objects, indent=1).encode(),
        "users.json": json.dumps(by_user).encode(),
        "baskets.json": json.dumps({"train": {user: [items, items[:1]] for user, items in by_user.items()}}).encode(),
        "pairs.txt": "".join(f"{u} {i}\n" for u, i, _, _ in rows).encode(),
        "lines.txt": "".join(f"{user} {' '.join(items)}\n" for user, items in by_user.items()).encode(),
        "lists.jsonl": "\n".join(json.dumps(items) for items in by_user.values()).encode(),
        "cells.csv": ("user,item\n" + "".join(f"{u},\"['{i}', {r}]\"\n" for u, i, _, r in rows)).encode(),
        "log.parquet": parquet.getvalue(),
        "log.npy": npy.getvalue(),
    }


def flip_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes become others."""
    changed = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
        changed[place] = rng.integers(256)
    return bytes(changed)


def cut_rows(content: bytes, rng: np.random.Generator) -> bytes:
    """Some lines end early."""
    lines = content.split(b"\n")
    for place in rng.integers(len(lines), size=rng.integers(1, 6)):
        lines[place] = lines[place][: rng.integers(len(lines[place]) + 1)]
    return b"\n".join(lines)


def cut_end(content: bytes, rng: np.random.Generator) -> bytes:
    """The file ends early."""
    return content[: rng.integers(len(content) + 1)]


def swap_columns(content: bytes, rng: np.random.Generator) -> bytes:
    """In some lines two fields change places."""
    lines = content.split(b"\n")
    delimiter = next((mark for mark in (b"::", b"\t", b";", b",", b" ") if mark in lines[0]), b",")
    for place in rng.integers(len(lines), size=rng.integers(1, 20)):
        fields = lines[place].split(delimiter)
        one, other = rng.integers(len(fields), size=2)
        fields[one], fields[other] = fields[other], fields[one]
        lines[place] = delimiter.join(fields)
    return b"\n".join(lines)


def mix_encodings(content: bytes, rng: np.random.Generator) -> bytes:
    """Some lines are in another encoding; at times a byte order mark stands before all."""
    lines = content.split(b"\n")
    encoding = str(rng.choice(["latin-1", "utf-16", "cp1252", "utf-8-sig"]))
    for place in rng.integers(len(lines), size=rng.integers(1, 6)):
        lines[place] = lines[place].decode("utf-8", errors="replace").encode(encoding, errors="replace")
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + b"\n".join(lines)


def insert_odd(content: bytes, rng: np.random.Generator) -> bytes:
    """Odd bytes in between: quotes, nulls, separators, line ends, brackets, huge numbers."""
    odd = [
        b'"',
        b"\x00",
        b"\x1e",
        b"\x1f",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"[",
        b"{",
        b"}",
        b"9" * 400,
        b"NaN",
        b"'",
        b"\\",
        b"::",
    ]
    for _ in range(rng.integers(1, 6)):
        place = rng.integers(len(content) + 1)
        content = content[:place] + odd[rng.integers(len(odd))] + content[place:]
    return content


def double_block(content: bytes, rng: np.random.Generator) -> bytes:
    """A block comes twice, or is missing."""
    low, high = sorted(rng.integers(len(content) + 1, size=2))
    return content[:high] + content[low:] if rng.random() < 0.5 else content[:low] + content[high:]


DAMAGES: dict[str, Damage] = {
    function.__name__: function
    for function in (flip_bytes, cut_rows, cut_end, swap_columns, mix_encodings, insert_odd, double_block)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints outcomes and findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    outcomes, findings = fuzz(options.files, options.seed)
    print(dict(outcomes))
    for finding in findings:
        print(finding)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
