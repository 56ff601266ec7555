"""docs/benchmarks.md and its chart, from measured cells."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.cells import BLOCKS, DROPOUT, FFN, HEADS, MASK_SHARE, WIDTH, Measurement, Task

PAGE, CHART = "benchmarks.md", "benchmarks.png"
TITLES = {"ml-100k": "MovieLens-100K", "ml-1m": "MovieLens-1M", "sasrec": "SASRec", "bert4rec": "BERT4Rec"}
LIBRARIES = {"recsys": "recsys", "recbole": "RecBole", "rectools": "RecTools"}
BARS = {
    ("speed", "recbole", "fp32"): ("RecBole", "#c0504d"),
    ("speed", "rectools", "fp32"): ("RecTools", "#e0a030"),
    ("speed", "recsys", "fp32"): ("recsys fp32", "#6b8fd6"),
    ("speed", "recsys", "bf16"): ("recsys bf16", "#27408b"),
    ("floor", "recsys", "fp32"): ("matrix products alone, fp32", "#bbbbbb"),
    ("floor", "recsys", "bf16"): ("matrix products alone, bf16", "#777777"),
}
MISSING = "-"


@dataclass(frozen=True)
class Stamp:
    """When, where and of which source."""

    date: str
    machine: str
    commit: str


@dataclass(frozen=True)
class Facts:
    """A dataset; `targets` is what an epoch predicts."""

    users: int
    items: int
    events: int
    targets: int


@dataclass(frozen=True)
class Cell:
    """One measured task."""

    task: Task
    measurement: Measurement
    stamp: Stamp
    ndcg: float | None

    @classmethod
    def read(cls, path: Path) -> "Cell":
        """From its JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            Task(**content["task"]), Measurement(**content["measurement"]), Stamp(**content["stamp"]), content["ndcg"]
        )


@dataclass(frozen=True)
class Setting:
    """A row of the tables."""

    dataset: str
    window: int
    model: str

    @property
    def label(self) -> str:
        """First three columns."""
        return f"| {TITLES[self.dataset]} | {self.window} | {TITLES[self.model]} |"


class Cells:
    """Measured cells by what they measured."""

    def __init__(self, cells: Sequence[Cell], sizes: Mapping[str, Facts]) -> None:
        self.sizes = sizes
        self.by_name = {cell.task.name: cell for cell in cells}
        found = {(c.task.dataset, c.task.window, c.task.model) for c in cells if c.task.kind in {"speed", "floor"}}
        order = product(sizes, sorted({window for _, window, _ in found}), ("sasrec", "bert4rec"))
        self.settings = [Setting(*key) for key in order if key in found]

    def get(self, kind: str, library: str, setting: Setting, precision: str = "fp32") -> Cell | None:
        """A cell, where it was measured."""
        return self.by_name.get(f"{kind}-{library}-{setting.model}-{setting.dataset}-{setting.window}-{precision}")

    def epoch(self, kind: str, library: str, setting: Setting, precision: str = "fp32") -> float | None:
        """Seconds in which as many targets are predicted as an epoch has."""
        cell = self.get(kind, library, setting, precision)
        if cell is None:
            return None
        return cell.measurement.train_seconds / cell.measurement.train_targets * self.sizes[setting.dataset].targets


def page(cells: Sequence[Cell], sizes: Mapping[str, Facts]) -> str:
    """Markdown."""
    measured = Cells(cells, sizes)
    sections = [
        introduction(cells, sizes),
        epoch_section(measured),
        quality_section(cells),
        evaluation_section(measured),
        memory_section(measured),
        prepare_section(measured, cells),
        passes_section(measured),
        method_section(cells),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def introduction(cells: Sequence[Cell], sizes: Mapping[str, Facts]) -> str:
    """What is compared, where and when."""
    versions = sorted({f"{LIBRARIES[cell.task.library]} {cell.measurement.version}" for cell in cells})
    data = "; ".join(
        f"{TITLES[name]}: {size.users} users, {size.items} items, {size.events} events, {size.targets} targets an epoch"
        for name, size in sizes.items()
    )
    return "\n".join([
        "# Benchmarks",
        "",
        f"Written by `make bench`; do not edit. {', '.join(versions)}: the same events (leave-one-out), the same",
        f"window, the same width (D = {WIDTH}, {BLOCKS} blocks, {HEADS} heads, feed-forward {FFN}, dropout {DROPOUT}),",
        "full softmax cross-entropy, one machine, one run. How each number was taken stands at the end.",
        "",
        f"{data}.",
        "",
        f"{provenance(cells)}",
    ])


def provenance(cells: Sequence[Cell]) -> str:
    """Machine, threads, versions, commit and date; of every cell, should they differ."""
    columns: list[Callable[[Cell], str]] = [
        lambda cell: f"{cell.stamp.machine}, no accelerator",
        lambda cell: f"{cell.measurement.threads} threads",
        lambda cell: f"torch {cell.measurement.torch}",
        lambda cell: f"commit {cell.stamp.commit}",
        lambda cell: cell.stamp.date,
    ]
    return "; ".join(" and ".join(sorted({column(cell) for cell in cells})) for column in columns) + "."


def epoch_section(cells: Cells) -> str:
    """Training."""
    lines = [
        "## Training: seconds an epoch, every target once",
        "",
        f"![seconds an epoch]({CHART})",
        "",
        "| data | window | model | recsys fp32 | recsys bf16 | RecBole | RecTools | RecBole / recsys | "
        "RecTools / recsys | products fp32 | products bf16 | recsys / products |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in cells.settings:
        wide, narrow = (cells.epoch("speed", "recsys", setting, precision) for precision in ("fp32", "bf16"))
        peers = [cells.epoch("speed", library, setting) for library in ("recbole", "rectools")]
        products = [cells.epoch("floor", "recsys", setting, precision) for precision in ("fp32", "bf16")]
        columns = [
            *map(number, (wide, narrow, *peers)),
            *(f"{ratio(peer, wide)}, {ratio(peer, narrow)}" for peer in peers),
            *map(number, products),
            f"{ratio(wide, products[0])}, {ratio(narrow, products[1])}",
        ]
        lines.append(setting.label + f" {' | '.join(columns)} |")
    return "\n".join([
        *lines,
        "",
        "Ratios: fp32, then bf16 of ours (the peers run in fp32, their default). *Products* are the matrix products of",
        "our training step alone, forward and backward, on the batches of the epoch.",
    ])


def quality_section(cells: Sequence[Cell]) -> str:
    """NDCG@10 after the same time."""
    rows = [cell for cell in cells if cell.task.kind == "quality" and cell.ndcg is not None]
    if not rows:
        return ""
    first = rows[0].task
    lines = [
        f"## Quality after {first.seconds:.0f} seconds of training",
        "",
        f"SASRec, {TITLES[first.dataset]}, window {first.window}, one seed, the last state, no tuning; the best unseen",
        "items of each test user as every library ranks them, scored by our metric.",
        "",
        "| library | NDCG@10 | optimiser steps | targets predicted | passes |",
        "|---|---|---|---|---|",
    ]
    for library, title in LIBRARIES.items():
        for cell in rows:
            if cell.task.library == library:
                found = cell.measurement
                passes = found.train_batches / found.pass_batches
                lines.append(
                    f"| {title} | {cell.ndcg:.4f} | {found.train_batches} | {found.train_targets} | {passes:.1f} |"
                )
    return "\n".join(lines)


def evaluation_section(cells: Cells) -> str:
    """Full ranking."""
    return library_table(
        cells,
        "Evaluation: seconds to rank every item for every test user",
        lambda cell: cell.measurement.evaluate_seconds,
    )


def memory_section(cells: Cells) -> str:
    """Peak resident memory."""
    return library_table(
        cells,
        "Memory: peak of the measuring process, MiB",
        lambda cell: float(cell.measurement.peak_memory_mib),
    )


def library_table(cells: Cells, title: str, figure: Callable[[Cell], float]) -> str:
    """One column a library, ours in both precisions."""
    lines = [
        f"## {title}",
        "",
        "| data | window | model | recsys fp32 | recsys bf16 | RecBole | RecTools | RecBole / recsys | "
        "RecTools / recsys |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    columns = (("recsys", "fp32"), ("recsys", "bf16"), ("recbole", "fp32"), ("rectools", "fp32"))
    for setting in cells.settings:
        found = [cells.get("speed", library, setting, precision) for library, precision in columns]
        wide, narrow, *peers = (None if cell is None else figure(cell) for cell in found)
        ratios = " | ".join(f"{ratio(peer, wide)}, {ratio(peer, narrow)}" for peer in peers)
        lines.append(f"{setting.label} {' | '.join(map(number, (wide, narrow, *peers)))} | {ratios} |")
    return "\n".join(lines)


def prepare_section(cells: Cells, all_cells: Sequence[Cell]) -> str:
    """From the log to split sequences."""
    lines = [
        "## Preparation: seconds from the log to split sequences",
        "",
        "| data | window | recsys | RecBole | RecBole / recsys |",
        "|---|---|---|---|---|",
    ]
    ours = {cell.task.dataset: cell.measurement.prepare_seconds for cell in all_cells if cell.task.kind == "prepare"}
    for setting in cells.settings:
        peer = cells.get("speed", "recbole", setting)
        if setting.model == "sasrec" and peer is not None and setting.dataset in ours:
            seconds, own = peer.measurement.prepare_seconds, ours[setting.dataset]
            lines.append(
                f"| {TITLES[setting.dataset]} | {setting.window} | {number(own)} | {number(seconds)} "
                f"| {ratio(seconds, own)} |"
            )
    return "\n".join([
        *lines,
        "",
        "The same text file, read, checked and split. Ours serves every window and is written to disk with its",
        "manifest; RecBole keeps one padded row a prefix in memory, for one window.",
    ])


def passes_section(cells: Cells) -> str:
    """What each library's own epoch is."""
    lines = [
        "## What a pass over each library's own samples is",
        "",
        "| data | window | model | library | batches timed | batches a pass | seconds a pass | targets a pass | "
        "passes an epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting, (library, title) in product(cells.settings, LIBRARIES.items()):
        cell = cells.get("speed", library, setting)
        if cell is None:
            continue
        found = cell.measurement
        share = found.pass_batches / found.train_batches
        targets = found.train_targets * share
        lines.append(
            f"{setting.label} {title} | {found.train_batches} | {found.pass_batches} | "
            f"{number(found.train_seconds * share)} | {targets:.0f} | "
            f"{cells.sizes[setting.dataset].targets / targets:.2f} |"
        )
    return "\n".join(lines)


def method_section(cells: Sequence[Cell]) -> str:
    """How the numbers were taken."""
    timed = max((cell.task.seconds for cell in cells if cell.task.kind == "speed"), default=0)
    return f"""## How it was measured

- **Equal supervision.** An epoch predicts every training event of a user but the first, once. Seconds an epoch =
  seconds timed / targets predicted in them x targets of the epoch, for every library and both models alike.
- **SASRec.** Ours predicts every target once a pass, from windows laid side by side: the first targets of a window see
  little of the past. RecBole makes one sample of every prefix, so a pass predicts every target once and each sees a
  full window. RecTools trains on the newest window of each user alone; its pass predicts less, and is scaled up.
- **BERT4Rec.** All mask a share of {MASK_SHARE} of the positions (none masks the last item alone), so a pass of ours or
  RecTools' predicts about a fifth of the events. RecBole masks within every prefix: an event is masked anew in each
  window that holds it, and one pass predicts most events many times. Scaled to equal numbers of predictions this is in
  RecBole's favour: a full pass of its own is what *seconds a pass* says.
- **Timing.** Every cell is a process of its own with the same number of threads, one after the other; imports and data
  loading are outside. Ours: whole epochs of `recsys.training.Trainer` with its defaults, the median of three, fewer
  where they take longer than {timed:.0f} s. Peers: after one batch of warm-up, as many batches of their shuffled loader
  as fit {timed:.0f} s, loading included. RecBole: its models and loaders with plain Adam steps, batches of 128 samples
  (in trials no slower than its default of 2048); it also drops 0.2 of its attention weights, ours drop none.
  RecTools: its Lightning loop without log, progress bar and checkpoints, batches of 128 users (its default), pre-LN
  layers in both models, for only those have the width of the feed-forward layer compared here; for the quality table
  its SASRec has its own default layers.
- **Evaluation.** Leave-one-out test, after one warm-up, median of three: ours ranks with seen items excluded and writes
  one rank a case (bf16: the encoder under autocast, as validation inside such a training); RecBole's `Trainer.evaluate`
  (seen items stay in); RecTools' `recommend` with seen items excluded, then its NDCG.
- **Memory.** High-water mark of the resident set (`VmHWM`) of the process that trained and evaluated, libraries
  included. RecBole prepares its data in that process, for it has no prepared form on disk.
- **Products.** `benchmarks/floor.py`: linear layers on the events of each batch without padding, attention on whole
  squares, output layer on the targets; results in buffers used again, in parts that fit a cache.
- **Data.** One file for all, written from our prepared data; an event's time is its place in the user's history, for
  libraries order ties differently."""


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float | None, unit: float | None) -> str:
    """`12 x`."""
    return MISSING if value is None or not unit else f"{number(value / unit)} x"


def chart(cells: Sequence[Cell], sizes: Mapping[str, Facts], path: Path) -> None:
    """Seconds an epoch on a logarithmic axis, one panel a model; nothing where no epoch was measured."""
    measured = Cells(cells, sizes)
    if not measured.settings:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for panel, model in zip(panels, ("sasrec", "bert4rec"), strict=True):
        settings = [setting for setting in measured.settings if setting.model == model]
        for place, ((kind, library, precision), (label, colour)) in enumerate(BARS.items()):
            found = [measured.epoch(kind, library, setting, precision) for setting in settings]
            bars = [(index, seconds) for index, seconds in enumerate(found) if seconds is not None]
            drawn = panel.bar(
                [index + 0.14 * (place - 2.5) for index, _ in bars],
                [seconds for _, seconds in bars],
                width=0.13,
                color=colour,
                label=label,
            )
            panel.bar_label(drawn, fmt=number, fontsize=6, padding=1)
        panel.set_title(TITLES[model])
        panel.set_yscale("log")
        panel.set_xticks(
            range(len(settings)), [f"{TITLES[setting.dataset]}\nwindow {setting.window}" for setting in settings]
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds an epoch, every target once")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
