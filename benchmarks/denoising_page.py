"""The page of `benchmarks.denoising`: tables of its figures."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

INTRODUCTION = """Written by `python -m benchmarks.denoising`; do not edit. Amazon Movies windows of LLM4DSR with a
tenth of the events replaced by uniformly drawn items; 2 cores, no accelerator, no pretrained
language model. How the data are made: `benchmarks/denoising_data.py`; what is measured:
`benchmarks/denoising.py`; what `recsys denoise` does: [data.md](data.md); why:
[decisions/denoising.md](decisions/denoising.md)."""
DETECTION = """AUC over the ten history positions of 5,000 test windows; label: the event was replaced. Top-1: of
the windows with exactly one such event, those in which it has the highest score. Thirds: AUC among
events of the least, middle and most popular third; noise is drawn uniformly, so whatever likes
popular items finds some of it without a look at the window. Means over seeds 0, 1, 2, and ranges where they
differ; cascades have seed 0 alone."""
VIEWS = """Corrections act where {precision:.0%} of what is touched is expected to be noise, on at most 3
events and a fifth of a user's, never on the last training event. Expected: by `recsys.calibration`,
which knows no label, before those limits; true: by the labels, after them. `weight` gives every
training event but the last the weight 1 - p."""
TRAINING = """NDCG@10 by full ranking of 5,101 items for the clean targets of 5,000 test windows, nothing
excluded. Recovered: (arm - noisy) / (clean - noisy) with noisy histories, of the means over seeds
and by seed. Arms differ in training events alone. Settings are the same for all arms, were searched
for none, and stop before models have learned all they can."""


def page(figures: Mapping[str, Any]) -> str:
    """All figures."""
    parts = [
        "# What denoising finds and wins",
        f"{joined(INTRODUCTION)} {datetime.now(UTC).date().isoformat()}.",
        "## Finding noise",
        detection_table(figures["detection"]),
        joined(DETECTION),
        "## Correcting it",
        view_table(figures["views"]),
        joined(VIEWS.format(precision=figures["precision"])),
        "## Training on it",
        *(training_table(model, arms) for model, arms in figures["models"].items()),
        floor_table(figures["floors"]),
        joined(TRAINING),
    ]
    return "\n\n".join(parts) + "\n"


def joined(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def detection_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a detector."""
    rows = [
        [
            name,
            spread([one["auc"] for one in seeds.values()], 3),
            spread([one["top1"] for one in seeds.values()], 3),
            ", ".join(f"{np.mean([one['strata'][part] for one in seeds.values()]):.3f}" for part in range(3)),
        ]
        for name, seeds in found.items()
    ]
    return table(["detector", "AUC", "top-1", "AUC in thirds, rare to popular"], rows)


def view_table(views: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a view."""
    rows = [
        [
            arm,
            str(one["corrected"]),
            f"{one['precision']:.3f}",
            f"{one['recall']:.3f}",
            f"{one['false_corrections']:.4f}",
            f"{one['true_precision']:.3f}",
            f"{one['true_recall']:.3f}",
            f"{one['mean_probability_of_noise']:.3f} / {one['mean_probability_of_others']:.3f}",
        ]
        for arm, one in views.items()
        if one
    ]
    head = ["action", "events", "expected precision", "recall", "false corrections", "true precision", "recall"]
    return table([*head, "mean p of noise / of others"], rows)


def training_table(model: str, arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One row an arm."""
    rows = []
    for arm, seeds in arms.items():
        own, noisy, clean = ([one[s]["noisy"] for s in seeds] for one in (arms[arm], arms["noisy"], arms["clean"]))
        shares = [share(*values) for values in zip(own, noisy, clean, strict=True)]
        recovered = "" if arm in {"clean", "noisy"} else share(*(float(np.mean(one)) for one in (own, noisy, clean)))
        rows.append([
            arm,
            spread(own, 4),
            spread([one["clean"] for one in seeds.values()], 4),
            f"{recovered} ({', '.join(shares)})" if recovered else "",
        ])
    number = len(arms["clean"])
    head = ["trained on", "NDCG@10, noisy histories", "clean histories", "recovered (by seed)"]
    return f"### {model}, {number} seed{'s' * (number > 1)}\n\n" + table(head, rows)


def floor_table(floors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One row a floor, with noisy histories; counting has no seeds, and no weights."""
    rows = []
    for name in floors["clean"]:
        values = {arm: one[name]["noisy"] for arm, one in floors.items()}
        shares = {arm: f" ({share(value, values['noisy'], values['clean'])})" for arm, value in values.items()}
        rows.append([
            name,
            *(f"{value:.4f}{'' if arm in {'clean', 'noisy'} else shares[arm]}" for arm, value in values.items()),
        ])
    return "### Models that count\n\n" + table(["model", *floors], rows)


def share(own: float, noisy: float, clean: float) -> str:
    """What an arm wins back of the loss, as a percentage."""
    return f"{(own - noisy) / (clean - noisy):+.0%}" if clean > noisy else "no loss"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the range where values differ."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if max(values) == min(values) else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
