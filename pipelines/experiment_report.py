"""The page of `recsys experiment --report`: one HTML file with its plots inside, nothing loaded from elsewhere."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pipelines.experiment import Experiment
from pipelines.html_page import drawn, write_page
from recsys.experiment import MIN_USERS, Effect

LOOKS = 40
"""Of the line over users."""
CLASSES = {True: "better", False: "worse"}


def write_report(path: Path, experiment: Experiment) -> None:
    """Writes the page whole or not at all."""
    names = ", ".join(experiment.effects)
    title = f"{experiment.base} against {names}"
    note = (
        f"Users are the units; intervals of 95 %, {'of one look' if experiment.plan.once else 'valid at every look'}; "
        f"p-values corrected for their number (Holm). {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in experiment.sentences())
    body = said + "".join(section(experiment, name) for name in experiment.effects)
    write_page(path, title, note, body)


def section(experiment: Experiment, name: str) -> str:
    """One variant: plots and every figure."""
    effects = experiment.effects[name]
    mark = CLASSES[effects[0].difference > 0] if effects[0].decided and experiment.comparable else ""
    return "\n".join([
        f'<h2 class="{mark}">{html.escape(name)}</h2>',
        "<h3>Differences as shares of the base's figures</h3>",
        '<p class="note">After CUPED. Thick: the interval of one look; thin: the one that is valid at every look.</p>',
        drawn(lambda figure: forest(figure.subplots(), effects), 0.4 * len(effects) + 1.2),
        "<h3>As users come</h3>",
        drawn(lambda figure: line(figure.subplots(), experiment, name), 3.2),
        "<h3>All figures</h3>",
        figures_table(effects),
    ])


def forest(axes: Axes, effects: Sequence[Effect]) -> None:
    """Differences with their intervals, one line a metric: the thick one of one look, the thin one of any number."""
    for place, entry in enumerate(effects):
        base = abs(entry.mean_base) or 1.0
        for interval, width in ((entry.always_interval, 1.2), (entry.interval, 3.5)):
            axes.plot(np.array(interval) / base, [place, place], color="#5a6675", linewidth=width)
        axes.plot(entry.difference / base, place, "o" if entry.decided else "|", color="#1f5fbf")
    axes.axvline(0, color="#1c2530", linewidth=0.8)
    axes.set_yticks(range(len(effects)), [entry.metric for entry in effects])
    axes.xaxis.set_major_formatter("{x:+.0%}")
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)


def line(axes: Axes, experiment: Experiment, name: str) -> None:
    """The deciding metric's difference after each so many users, with the interval that is valid at every look."""
    metric, users = experiment.effects[name][0].metric, len(experiment.watched.variants)
    stops = np.unique(np.linspace(min(2 * MIN_USERS, users), users, LOOKS).astype(np.int64))
    found = [
        next(entry for entry in effects if entry.metric == metric)
        for stop in stops.tolist()
        if (effects := experiment.watched.effects(experiment.base, name, experiment.plan, stop))
    ]
    low, high = np.array([entry.always_interval for entry in found]).T
    axes.fill_between(stops, low, high, color="#cfd8e3")
    axes.plot(stops, [entry.difference for entry in found], color="#1f5fbf")
    axes.axhline(0, color="#1c2530", linewidth=0.8)
    axes.set_xlabel("users whose time is over, in order of arrival")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)


def figures_table(effects: Sequence[Effect]) -> str:
    """Every metric."""
    head = ("metric", "users", "base", "variant", "difference", "one look", "every look", "p, corrected", "CUPED saved")
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in (
                entry.metric,
                f"{entry.users[0]:,} + {entry.users[1]:,}",
                f"{entry.mean_base:.4f}",
                f"{entry.mean_variant:.4f}",
                f"{entry.difference:+.4f}",
                f"{entry.interval[0]:+.4f} to {entry.interval[1]:+.4f}",
                f"{entry.always_interval[0]:+.4f} to {entry.always_interval[1]:+.4f}",
                f"{entry.adjusted:.4f}",
                f"{entry.saved:.0%}",
            )
        )
        + "</tr>"
        for entry in effects
    )
    return f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{rows}</table></div>'
