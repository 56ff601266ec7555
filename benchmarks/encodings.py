"""What a kept encoding saves: `python -m benchmarks.encodings`, on a quiet machine; writes docs/latency.md.

A history of L events, encoded in full, and by one step from the first L - 1 of them; SASRec with random weights (they
change no time), the bundle's graphs on the service's own runtime, batch 1, one thread. Full and step alternate, so that
a slow moment of the machine hits both.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from models.sasrec import SASRec, SASRecConfig
from recsys.export import export_encoder, export_step
from recsys.steps import git_commit, write_text
from serving.encoder import Encoder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "latency.md"
LENGTHS, WIDTHS = (50, 200, 500), (64, 128)
NUM_ITEMS, SECONDS, FEWEST = 12_101, 4.0, 50


def main() -> None:
    """Measures and writes the page."""
    rows = [row for width in WIDTHS for row in measured(width)]
    write_text(PAGE, "\n".join([*HEAD, *rows, "", stamp(), ""]))
    print(PAGE.read_text(encoding="utf-8"))


HEAD = (
    "# Latency: what a kept encoding saves",
    "",
    "Written by `python -m benchmarks.encodings`; do not edit. SASRec of two blocks and two heads, batch 1, one",
    "thread of ONNX Runtime: a history encoded in full, and by one step from the same history without its last event,",
    "the copy of the memory included. Medians and 95th percentiles in milliseconds.",
    "",
    "| width | events | full | step | full / step | memory of a kept history, KiB |",
    "|---|---|---|---|---|---|",
)


def measured(width: int) -> list[str]:
    """One row of the table a length."""
    torch.manual_seed(0)
    config = SASRecConfig(num_items=NUM_ITEMS, max_len=max(LENGTHS), embedding_dim=width, ffn_dim=4 * width)
    model = SASRec(config).eval()
    with TemporaryDirectory() as folder:
        paths = Path(folder) / "encoder.onnx", Path(folder) / "step.onnx"
        export_encoder(model, model.max_len, paths[0])
        export_step(model, model.max_len, paths[1])
        encoder = Encoder(*paths)
        return [row_of(encoder, width, length) for length in LENGTHS]


def row_of(encoder: Encoder, width: int, length: int) -> str:
    """Alternates both for a while."""
    rows = np.random.default_rng(length).integers(1, NUM_ITEMS + 1, length)
    before, times = encoder.encode(rows[:-1]), []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(times) < FEWEST:
        began = time.perf_counter()
        encoder.encode(rows)
        between = time.perf_counter()
        after = encoder.go_on(before, int(rows[-1]))
        times.append((between - began, time.perf_counter() - between))
    (full, full_late), (step, step_late) = np.quantile(np.array(times) * 1e3, (0.5, 0.95), axis=0).T
    return (
        f"| {width} | {length} | {full:.3f}, {full_late:.3f} | {step:.3f}, {step_late:.3f} | {full / step:.1f} x "
        f"| {after.nbytes / 1024:.0f} |"
    )


def stamp() -> str:
    """When, and of which code."""
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_commit() or 'unknown')[:12]}, torch {torch.__version__}."


if __name__ == "__main__":
    main()
