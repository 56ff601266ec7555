"""The HTML card of `recsys describe`: warnings, figures, plots."""

import html
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.describe import Card, headline_figures
from pipelines.html_page import drawn, write_page
from recsys.description import PERIODS, Calendar, Curve, Description

BLUE, RED, GREY = "#1f5fbf", "#9b1c1c", "#5a6675"
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def write_card(path: Path, card: Card) -> None:
    """Writes the page whole or not at all."""
    kind = "prepared data" if card.step == "prepare" else "dataset"
    note = f"{kind}; written by recsys describe, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Times and days are UTC."
    body = "\n".join([warnings(card), figures_table(card.log), *plots(card.log)])
    write_page(path, f"{card.folder.resolve().name}: what this log is like", note, body)


def warnings(card: Card) -> str:
    """One paragraph a trap."""
    if not card.traps:
        return '<h2>Warnings</h2><p class="better">No known trap was found.</p>'
    rows = "".join(
        f'<li><b class="broken">{html.escape(trap.name)}</b>: {html.escape(trap.found)}.<br>'
        f'<span class="note">What to do: {html.escape(trap.advice)}.</span></li>'
        for trap in card.traps
    )
    return f"<h2>Warnings ({len(card.traps)})</h2><ul>{rows}</ul>"


def figures_table(log: Description) -> str:
    """Name and text, one row each."""
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="text">{html.escape(value)}</td></tr>'
        for name, value in headline_figures(log)
    )
    return f"<h2>Figures</h2><table>{rows}</table>"


def plots(log: Description) -> list[str]:
    """A heading and a plot each; those of times only where there are any."""
    found = [
        "<h2>Users and items</h2>",
        drawn(lambda figure: _lengths_and_popularity(figure, log), 3.2),
        "<h2>What a split asks of a model</h2>",
        drawn(lambda figure: splits(figure.subplots(), log), 0.7 * max(1, 2 * len(log.splits)) + 0.6),
    ]
    if distances := log.repeats.distances:
        title = "events since the item's last time"
        draw = partial(bars, labels=doubling_labels(distances), values=distances, x=title, y="repeats")
        found += ["<h2>Repeats</h2>", drawn(lambda figure: draw(figure.subplots()), 2.8)]
    if (time := log.calendar) is not None:
        found += [
            f"<h2>Events by {html.escape(time.period)}</h2>",
            drawn(lambda figure: over_time(figure.subplots(), time), 2.8),
            "<h2>Season</h2>",
            drawn(lambda figure: _season(figure, time), 2.6),
        ]
    return found


def _lengths_and_popularity(figure: Figure, log: Description) -> None:
    left, right = figure.subplots(1, 2)
    bars(left, doubling_labels(log.lengths.histogram), log.lengths.histogram, "events of a user", "users")
    popularity(right, log.popularity)


def bars(axes: Axes, labels: list[str], values: tuple[int, ...], x: str, y: str) -> None:
    """Counts by label."""
    axes.bar(range(len(values)), values, color=BLUE, width=0.85)
    axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 7 else 0, fontsize=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def doubling_labels(counts: tuple[int, ...]) -> list[str]:
    """`1`, `2-3`, `4-7`, ..."""
    return [str(1 << b) if b == 0 else f"{1 << b}-{(2 << b) - 1}" for b in range(len(counts))]


def popularity(axes: Axes, curve: Curve) -> None:
    """Events of items by their rank, both axes in log."""
    axes.loglog(curve.ranks, curve.counts, color=BLUE)
    axes.set_xlabel("rank of the item")
    axes.set_ylabel("events")
    axes.spines[["top", "right"]].set_visible(False)


def splits(axes: Axes, log: Description) -> None:
    """Cold items, new users and training events of the future, by split and part."""
    parts = [(kind, part, shares) for kind, found in log.splits.items() for part, shares in found.items()]
    kinds = (("cold items", BLUE), ("new users", GREY), ("training of the future", RED))
    for place, (name, colour) in enumerate(kinds):
        values = [(shares.cold_item, shares.new_user, shares.future or 0.0)[place] for _, _, shares in parts]
        axes.barh(np.arange(len(parts)) + (place - 1) * 0.26, values, height=0.24, color=colour, label=name)
    axes.set_yticks(range(len(parts)), [f"{kind}, {part}" for kind, part, _ in parts])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("share of the cases; of the training events")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def over_time(axes: Axes, time: Calendar) -> None:
    """Events of each period."""
    edges = time.first_period + PERIODS[time.period] * np.arange(len(time.counts) + 1)
    axes.stairs(time.counts, edges.astype("datetime64[us]"), fill=True, color=BLUE)
    axes.set_ylabel("events")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def _season(figure: Figure, time: Calendar) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(24, 12))
    bars(left, [str(hour) for hour in range(24)], time.hours, "hour of the day, UTC", "events")
    bars(right, list(WEEKDAYS), time.weekdays, "day of the week", "events")
