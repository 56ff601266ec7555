"""The page of `recsys backtest --report`: quality and cost over time, one HTML file, nothing loaded from elsewhere."""

import html
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.backtest_results import HITS, NDCG, Backtest, Figures
from pipelines.comparison_report import figures_table
from pipelines.html_page import drawn, write_page

COLOURS = {"never": "#9b1c1c", "warm": "#1f5fbf", "cold": "#12633a"}
GREYS = ("#9aa5b1", "#b8860b", "#7b5ea7", "#4f9d9d", "#8c6d5a")


def write_report(path: Path, result: Backtest) -> None:
    """Writes the page whole or not at all."""
    model, every = result.settings["model"], result.settings["every"]
    title = f"{model}, trained again or not: {result.num_periods} periods of {every}"
    note = (
        f"{result.overall[0].cases} cases after the first period, in which all policies are one model. Every event "
        "is predicted from all that its user did before it; items that the model in charge was not taught are misses. "
        f"Users are resampled; 95 % intervals. {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in result.sentences())
    parts = [
        f"<ul>{sentences}</ul>",
        *(f"<h2>{name}</h2>{drawn(draw(result), height)}" for name, draw, height in PLOTS),
        f"<h2>All periods but the first</h2>{table(result, result.overall)}",
        f"<h2>Every period</h2>{table(result, result.periods)}",
        "<h2>Differences</h2>",
        *(
            f"<h3>{html.escape(entry.b)} against {html.escape(entry.a)}</h3>{figures_table(entry.differences)}"
            for entry in result.versus
        ),
    ]
    write_page(path, title, note, "\n".join(parts))


def quality(result: Backtest) -> Callable[[Figure], None]:
    """NDCG of every policy and floor by period."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in (*result.floors, *result.policies):
            rows = rows_of(result, name)
            axes.plot(times(rows), [row.ndcg for row in rows], **style(result, name))
        finish(axes, NDCG)

    return draw


def gains(result: Backtest) -> Callable[[Figure], None]:
    """What the first policy lacks, with intervals."""
    base = result.policies[0]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        instants = dict(zip((row.period for row in rows_of(result, base)), times(rows_of(result, base)), strict=True))
        for name in result.policies[1:]:
            entries = [entry for entry in result.versus_by_period if entry.b == name]
            where = [instants[entry.period] for entry in entries]
            axes.fill_between(
                where,
                [entry.headline.low for entry in entries],
                [entry.headline.high for entry in entries],
                color=COLOURS[name],
                alpha=0.2,
                linewidth=0,
            )
            axes.plot(where, [entry.headline.difference for entry in entries], **style(result, name))
        axes.axhline(0, color="#1c2530", linewidth=0.8)
        finish(axes, f"{NDCG} minus that of {base}")

    return draw


def cost(result: Backtest) -> Callable[[Figure], None]:
    """Seconds of training so far."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in result.policies:
            rows = rows_of(result, name)
            axes.plot(times(rows), np.cumsum([row.training_seconds for row in rows]), **style(result, name))
        finish(axes, "seconds of training so far")

    return draw


def unknown(result: Backtest) -> Callable[[Figure], None]:
    """Share of the targets that the model in charge was not taught."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in result.policies:
            rows = rows_of(result, name)
            axes.plot(times(rows), [row.new_item_share for row in rows], **style(result, name))
        finish(axes, "share of new items")

    return draw


PLOTS: Sequence[tuple[str, Callable[[Backtest], Callable[[Figure], None]], float]] = (
    ("Quality over time", quality, 3.4),
    ("What training again wins", gains, 3.0),
    ("Cost over time", cost, 2.6),
    ("Targets that the model in charge does not know", unknown, 2.6),
)


def rows_of(result: Backtest, name: str) -> list[Figures]:
    """Of one policy or floor, by period."""
    return [row for row in result.periods if row.name == name]


def times(rows: Sequence[Figures]) -> np.ndarray:
    """Where the periods begin."""
    return np.array([str(row.start).removesuffix("+00:00") for row in rows], dtype="datetime64[us]")


def style(result: Backtest, name: str) -> dict[str, Any]:
    """Policies thick and in their colours, floors thin."""
    if name in result.floors:
        return {"label": name, "color": GREYS[result.floors.index(name)], "linewidth": 0.9}
    return {"label": name, "color": COLOURS[name], "linewidth": 2.0}


def finish(axes: Axes, label: str) -> None:
    """Label, legend and no box."""
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8, ncols=4)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def table(result: Backtest, rows: Sequence[Figures]) -> str:
    """One row a policy or floor, and period."""
    head = ("trained again", "period", "cases", NDCG, HITS, "new items", "seconds of training")
    cells = [
        (
            f"{row.name} (floor)" if row.name in result.floors else row.name,
            row.start or "all but the first",
            str(row.cases),
            f"{row.ndcg:.4f}",
            f"{row.hit_rate:.4f}",
            f"{row.new_item_share:.1%}",
            f"{row.training_seconds:.1f}",
        )
        for row in rows
    ]
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in cells)
    return f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{body}</table></div>'
