"""The page of `recsys compare --report`: one HTML file with its plots inside, nothing loaded from elsewhere."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.compare import Comparison
from pipelines.evaluate import CASES
from pipelines.html_page import drawn, write_page
from recsys.comparison import MIN_USERS, Difference, pair_cases
from recsys.metrics import FloatArray, IntArray, case_metrics
from recsys.prepared import open_prepared
from recsys.splits import Part
from recsys.steps import read_manifest

POINTS = 60
"""Of a cumulative line."""


def write_report(path: Path, comparisons: Sequence[Comparison], part: Part) -> None:
    """Writes the page whole or not at all."""
    base = comparisons[0].base
    title = f"{base} against {', '.join(entry.name for entry in comparisons)}"
    note = (
        f"{part} cases, paired; users are resampled; 95 % intervals; p-values corrected for their number (Holm). "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    body = "".join(section(entry) for entry in comparisons)
    write_page(path, title, note, body)


def section(comparison: Comparison) -> str:
    """One run: the decision, guardrails, plots, and every figure."""
    lines = [
        f"<h2>{html.escape(comparison.name)}: {comparison.verdict}</h2>",
        f'<p class="{comparison.verdict}">{html.escape(comparison.sentence())}</p>',
        guardrail_table(comparison),
        "<h3>Difference by segment</h3>",
        drawn(lambda figure: forest(figure.subplots(), comparison), 0.28 * len(headlines(comparison)) + 1.2),
        "<h3>Relative difference by metric and segment</h3>",
        drawn(lambda figure: heat_map(figure.subplots(), comparison), 0.28 * len(headlines(comparison)) + 1.6),
    ]
    if line := cumulative(comparison):
        lines += ["<h3>As time goes on</h3>", line]
    return "\n".join([*lines, "<h3>All figures</h3>", figures_table(comparison.differences)])


def headlines(comparison: Comparison) -> list[Difference]:
    """The metric that decides, over all cases and in every segment of enough users."""
    metric = comparison.headline.metric
    return [entry for entry in comparison.differences if entry.metric == metric and entry.users >= MIN_USERS]


def forest(axes: Axes, comparison: Comparison) -> None:
    """Differences with their intervals, one line a segment."""
    rows = headlines(comparison)
    for place, entry in enumerate(rows):
        colour = "#12633a" if entry.low > 0 else "#9b1c1c" if entry.high < 0 else "#5a6675"
        axes.plot([entry.low, entry.high], [place, place], color=colour, linewidth=2)
        axes.plot(entry.difference, place, "o" if entry.decided else "|", color=colour)
    axes.axvline(0, color="#1c2530", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{entry.segment} ({entry.cases})" for entry in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"{comparison.headline.metric}, {comparison.name} minus {comparison.base}; dots: decided after correction"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)


def heat_map(axes: Axes, comparison: Comparison) -> None:
    """Differences as shares of the base's figures, segments by metrics."""
    segments = [entry.segment for entry in headlines(comparison)]
    metrics = list(dict.fromkeys(entry.metric for entry in comparison.differences))
    found = {(entry.segment, entry.metric): entry for entry in comparison.differences}
    shares = np.array([[share_of(found[segment, metric]) for metric in metrics] for segment in segments])
    limit = max(0.01, float(np.nanquantile(np.abs(shares), 0.9)))
    axes.imshow(shares, cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:+.0%}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_yticks(range(len(segments)), segments)
    axes.xaxis.tick_top()


def share_of(entry: Difference) -> float:
    """Of the base's figure; 1 where that is 0 and the other is not."""
    return entry.difference / entry.mean_a if entry.mean_a else float(entry.difference > 0)


def cumulative(comparison: Comparison) -> str:
    """Mean difference over all cases up to each time; nothing where the log knows only an order."""
    manifest = read_manifest(comparison.folders[0], "evaluate")
    if open_prepared(Path(manifest["inputs"][0]["path"])).time == "order":
        return ""
    cases = pair_cases(*(pl.read_parquet(folder / CASES) for folder in comparison.folders)).sort("timestamp")
    name = comparison.headline.metric
    cutoff = int(name.partition("@")[2])
    before, after = (
        case_metrics(cases[column].to_numpy().astype(np.int64), (cutoff,))[name] for column in ("rank", "rank_b")
    )
    stops = np.unique(np.linspace(1, len(cases), POINTS).astype(np.int64))
    times = cases["timestamp"].to_numpy()[stops - 1].astype("datetime64[us]")
    means, errors = running(after - before, cases["user_idx"].to_numpy(), stops)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(times, means - 1.96 * errors, means + 1.96 * errors, color="#cfd8e3")
        axes.plot(times, means, color="#1f5fbf")
        axes.axhline(0, color="#1c2530", linewidth=0.8)
        axes.set_ylabel(f"{name}, all cases so far")
        axes.set_ylim(*np.quantile(means, [0.02, 0.98]) + np.array([-3, 3]) * np.median(errors))
        axes.spines[["top", "right"]].set_visible(False)

    return drawn(draw, 3.2)


def running(differences: FloatArray, users: IntArray, stops: IntArray) -> tuple[FloatArray, FloatArray]:
    """Means and standard errors (users as units) of the first n cases, for each n of `stops`."""
    _, own = np.unique(users, return_inverse=True)
    means, errors = np.empty(len(stops)), np.empty(len(stops))
    for place, stop in enumerate(stops):
        sums, sizes = np.bincount(own[:stop], differences[:stop]), np.bincount(own[:stop])
        means[place] = sums.sum() / stop
        errors[place] = np.sqrt(((sums - means[place] * sizes) ** 2).sum()) / stop
    return means, errors


def guardrail_table(comparison: Comparison) -> str:
    """What the run must not pay with."""
    if not comparison.checks:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(check.figure)}</td><td>{check.base:.4g}</td><td>{check.value:.4g}</td>"
        f"<td>{check.change_text}</td><td>{check.allowed:+.0%}</td>"
        f'<td class="{"" if check.holds else "broken"}">{"holds" if check.holds else "broken"}</td></tr>'
        for check in comparison.checks
    )
    head = f"<th>guardrail</th><th>{html.escape(comparison.base)}</th><th>{html.escape(comparison.name)}</th>"
    return f'<div class="wide"><table><tr>{head}<th>change</th><th>allowed</th><th></th></tr>{rows}</table></div>'


def figures_table(differences: Sequence[Difference]) -> str:
    """Every difference in every segment."""
    head = (
        "segment",
        "metric",
        "cases",
        "users",
        "base",
        "run",
        "difference",
        "95 % interval",
        "p",
        "p, corrected",
        "detectable",
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in (
                entry.segment,
                entry.metric,
                str(entry.cases),
                str(entry.users),
                f"{entry.mean_a:.4f}",
                f"{entry.mean_b:.4f}",
                f"{entry.difference:+.4f}",
                f"{entry.low:+.4f} to {entry.high:+.4f}",
                f"{entry.p_value:.4f}",
                f"{entry.adjusted:.4f}",
                f"{entry.detectable:.4f}",
            )
        )
        + "</tr>"
        for entry in differences
    )
    return f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{rows}</table></div>'
