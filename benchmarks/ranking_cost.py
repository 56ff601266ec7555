"""What a ranker's answer costs by length of history: `python -m benchmarks.ranking_cost`; writes a page.

Every method of `dare`, fresh weights (they change no time), width 128 a field, item, category and position as fields,
scores 500 candidates after the newest N events of one user, in torch on one thread without gradients. Times are those
of the processor, so that others' work on the machine counts less; methods take turns, and the median is shown. `search`
is stage 1 alone: scores of all events and the choice of 20. Memory is what scoring holds at its peak beside the model.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from models.dare import DARE, DAREConfig, Method
from recsys.batches import Histories
from recsys.event_search import kept
from recsys.memory import keep_freed_memory
from recsys.steps import git_commit, write_json, write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
LENGTHS, CANDIDATES, WIDTH = (100, 1_000, 10_000, 100_000), 500, 128
ITEMS, CATEGORIES = 20_000, 100
NARROW = (32, 64)
REPEATS, LONG_SECONDS = 5, 2.0
UNIT_SCORES = 1 << 20
"""Pairs of candidate and event that DIN's network takes at once: it makes 36 numbers of each."""


@dataclass(frozen=True)
class Case:
    """A method, and the width that its attention compares a field in."""

    method: Method
    attention: int = WIDTH

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"dare, attention {self.attention}" if self.method == "dare" else self.method


CASES = [*(Case("dare", width) for width in NARROW), *(Case(method) for method in get_args(Method))]


@dataclass(frozen=True)
class Question:
    """A model and what it is asked."""

    model: DARE
    histories: Histories
    candidates: Tensor

    def score(self) -> Tensor:
        """The answer; DIN's in parts."""
        if self.model.unit is None:
            return self.model.score(self.histories, self.candidates)
        most = max(1, UNIT_SCORES // self.histories.items.shape[1])
        return torch.cat([self.model.score(self.histories, part) for part in self.candidates.split(most, dim=1)], dim=1)  # type: ignore[no-untyped-call]

    def search(self) -> Tensor:
        """Places of the events that stage 1 keeps."""
        lookup, priorities = self.model.explain(self.histories, self.candidates)
        return kept(priorities, lookup.seen.visible, self.model.config.kept, CANDIDATES)[0]

    @property
    def searches(self) -> bool:
        """Whether there is a stage 1."""
        return self.model.search is not None


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of page, numbers and picture")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first = {
        length: {case.name: first_call(question(case, length).score) for case in CASES} for length in arguments.lengths
    }
    keep_freed_memory()
    figures: dict[str, Any] = {
        "lengths": list(arguments.lengths),
        "memory": by_case({length: {name: each.mib for name, each in row.items()} for length, row in first.items()}),
        **seconds({length: {name: each.seconds for name, each in row.items()} for length, row in first.items()}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "torch": torch.__version__,
    }
    draw(arguments.out / "ranking-cost.png", figures)
    write_json(arguments.out / "ranking-cost.json", figures)
    write_text(arguments.out / "ranking-cost.md", page(figures))


def question(case: Case, length: int) -> Question:
    """Random items, the same for all methods."""
    torch.manual_seed(0)
    attention = case.attention if case.method == "dare" and case.attention != WIDTH else 0
    model = DARE(
        DAREConfig(
            num_items=ITEMS,
            num_categories=CATEGORIES,
            method=case.method,
            max_len=length,
            embedding_dim=WIDTH,
            attention_dim=attention,
        )
    )
    model.learn_categories(torch.arange(ITEMS + 1) % CATEGORIES + 1)
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, ITEMS + 1, (1, length), generator=generator)
    candidates = torch.randint(1, ITEMS + 1, (1, CANDIDATES), generator=generator)
    return Question(model.eval(), Histories(items, torch.zeros_like(items), torch.tensor([length])), candidates)


class FirstCall(NamedTuple):
    """What the process holds more at most while it works than before (Linux), and its processor time."""

    mib: float
    seconds: float


@torch.no_grad()
def first_call(work: Callable[[], Tensor]) -> FirstCall:
    """Of fresh memory."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = held_mib("VmRSS")
    taken = processor_seconds(work)
    return FirstCall(max(0.0, held_mib("VmHWM") - before), taken)


def held_mib(kind: str) -> float:
    """`VmRSS`: now; `VmHWM`: at most since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1024


@torch.no_grad()
def seconds(first: dict[int, dict[str, float]]) -> dict[str, dict[str, list[float | None]]]:
    """Medians of scoring and of the search alone, by method; what took long the first time is not measured again."""
    score: dict[int, dict[str, float]] = {}
    search: dict[int, dict[str, float]] = {}
    for length, known in first.items():
        questions = {case.name: question(case, length) for case in CASES}
        works = {name: each.score for name, each in questions.items()}
        searches = {name: each.search for name, each in questions.items() if each.searches}
        score[length], search[length] = in_turn(works, known), in_turn(searches, {})
    return {"score": by_case(score), "search": by_case(search)}


def in_turn(works: dict[str, Callable[[], Tensor]], known: dict[str, float]) -> dict[str, float]:
    """Median processor seconds of each, or what is known of those that take long."""
    long = {name: taken for name, taken in known.items() if taken >= LONG_SECONDS}
    taken: dict[str, list[float]] = {name: [] for name in works if name not in long}
    for _ in range(REPEATS):
        for name, values in taken.items():
            values.append(processor_seconds(works[name]))
    return {name: float(np.median(values)) for name, values in taken.items()} | long


def processor_seconds(work: Callable[[], Tensor]) -> float:
    """Of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def by_case(figures: dict[int, dict[str, float]]) -> dict[str, list[float | None]]:
    """One row a method, one column a length."""
    return {case.name: [row.get(case.name) for row in figures.values()] for case in CASES}


def page(figures: dict[str, Any]) -> str:
    """Tables and provenance."""
    lengths: list[int] = figures["lengths"]
    head = [
        "| method | " + " | ".join(f"N = {length:,}" for length in lengths) + " |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    return "\n".join([
        "# What ranking costs, by length of history",
        "",
        "Written by `python -m benchmarks.ranking_cost`; do not edit. 500 candidates after the newest N events of one",
        "user, fields item, category and position of width 128 each, fresh weights, torch, one thread, float32, no",
        "gradients. Processor time, methods in turn, median of five; where an answer takes over",
        "two seconds, the first, which also fetches its memory from the system.",
        "",
        *ratio_lines(figures, lengths),
        "![Milliseconds by length of history](ranking-cost.png)",
        "",
        "## Milliseconds of the whole ranker",
        "",
        *head,
        *(row(name, values, 1e3) for name, values in figures["score"].items()),
        "",
        "## Milliseconds of the search alone",
        "",
        "Scores of all events and the choice of 20. They are computed whatever the rule is, as the one path of all",
        "methods has it: `last-k`, `random-k` and `sim-hard` could do without.",
        "",
        *head,
        *(row(name, values, 1e3) for name, values in figures["search"].items() if any(values)),
        "",
        "## MiB held at the peak, beside the model",
        "",
        "Of one answer; up to some 20 MiB come out of what earlier answers left free: short histories say little.",
        "",
        *head,
        *(row(name, values, 1) for name, values in figures["memory"].items()),
        "",
        f"{str(figures['created'])[:10]}, 2 cores shared with other work, no accelerator, commit "
        f"{str(figures['commit'] or 'unknown')[:12]}, torch {figures['torch']}.",
        "",
    ])


def ratio_lines(figures: dict[str, Any], lengths: list[int]) -> list[str]:
    """Narrow attention beside TWIN."""
    lines = []
    for place, length in enumerate(lengths):
        ratios = [
            f"{figures[part]['twin'][place] / figures[part][f'dare, attention {width}'][place]:.1f} x"
            for width in NARROW
            for part in ("search", "score")
        ]
        lines.append(f"| {length:,} | " + " | ".join(ratios) + " |")
    return [
        "TWIN's time over DARE's, whose attention is narrower than what it pools:",
        "",
        "| N | search, 32 | whole, 32 | search, 64 | whole, 64 |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def row(name: str, values: list[float | None], unit: float) -> str:
    """Three significant digits."""
    return f"| {name} | " + " | ".join("" if value is None else number(value * unit) for value in values) + " |"


def number(value: float) -> str:
    """Without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Time over length, both by powers of ten."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    colours = pyplot.get_cmap("tab20")
    for panel, part in zip(panels, ("score", "search"), strict=True):
        for place, (name, values) in enumerate(figures[part].items()):
            if any(values):
                style = "-" if name.startswith("dare") or name in {"twin", "din"} else "--"
                milliseconds = [1e3 * value for value in values if value is not None]
                panel.plot(figures["lengths"], milliseconds, style, marker=".", color=colours(place), label=name)
        panel.set(xscale="log", yscale="log", xlabel="events of the history")
        panel.set_title({"score": "whole ranker", "search": "search alone"}[part])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("processor milliseconds, 500 candidates")
    panels[0].legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
