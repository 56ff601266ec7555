"""The page and the pictures of `benchmarks.attention_analysis`."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.mutual_information import CategoryCounts

POSITIONS_DRAWN, CANDIDATES_DRAWN, METHODS_DRAWN = 20, 3, 4


def page(name: str, figures: dict[str, Any]) -> str:
    """Tables, pictures and provenance."""
    return "\n".join([
        f"# What rankers attend to: {figures['title']}",
        "",
        "Written by `python -m benchmarks.attention_analysis`; do not edit. Definitions: the modules named there.",
        "",
        *information_lines(figures["information"]),
        f"![Information and attention by category and position]({name}-maps.png)",
        "",
        *attention_lines(figures["attention"]),
        *search_lines(figures["search"], figures["information"]["test_rows"]),
        *gradient_lines(figures["gradients"]),
        f"![Gradients and discriminability]({name}-curves.png)",
        "",
        *discriminability_lines(figures["discriminability"]),
        f"{figures['created'][:10]}, {figures['threads']} thread, 2 cores, no accelerator, {figures['seconds']:.0f} s, "
        f"commit {(figures['commit'] or 'unknown')[:12]}. Runs: {', '.join(figures['runs'])}; the newest "
        f"{next(iter(figures['runs'].values()))} events are read.",
        "",
    ])


def information_lines(figures: dict[str, Any]) -> list[str]:
    """Bits by position."""
    return [
        "## Where a click is foretold",
        "",
        f"Bits that the category of an event tells about a click ({figures['rows']} rows: training events and two",
        "popular items beside each), mean over categories of the candidate by rows. Chance alone gives "
        f"{figures['by_chance']:.1e}.",
        "",
        "| position, 1 = newest | " + " | ".join(str(place) for place in figures["positions"]) + " |",
        "|---" * (1 + len(figures["positions"])) + "|",
        "| event of the candidate's category | "
        + " | ".join(f"{bits:.1e}" for bits in figures["same_category"])
        + " |",
        "| of another, mean | " + " | ".join(f"{bits:.1e}" for bits in figures["another_category"]) + " |",
        "",
    ]


def attention_lines(figures: dict[str, Any]) -> list[str]:
    """Correlations."""
    return [
        "## Attention beside information",
        "",
        "Spearman's correlation of attention's scores (items left out) with the information, over categories and",
        "positions with at least 50 clicked and 50 other rows; mean over categories of the candidate by rows.",
        "",
        "| method | seeds | correlation |",
        "|---|---|---|",
        *(f"| {method} | {len(each['seeds'])} | {spread(each)} |" for method, each in figures.items()),
        "",
    ]


def search_lines(figures: dict[str, Any], rows: int) -> list[str]:
    """NDCG of each method and rule."""
    rules = figures["rules"]
    tables = [name for name in figures if name != "rules"]
    methods = {method: len(each["seeds"]) for method, each in figures[tables[0]].items()}
    return [
        "## What the search finds",
        "",
        f"NDCG@20 of stage 1 over {rows} test rows: the gain of an event is what its category and position tell of a",
        "click on a candidate of that category, by training events (planted: by the rule that made the data). `mean`,",
        "`sdim` and `din` search nothing; their order is that of their weights. With items left out a model knows",
        "categories and positions alone, as in the released analysis.",
        "",
        "| method | seeds | " + " | ".join(tables) + " |",
        "|---" * (2 + len(tables)) + "|",
        *(
            f"| {method} | {seeds} | " + " | ".join(spread(figures[table][method]) for table in tables) + " |"
            for method, seeds in methods.items()
        ),
        *(
            f"| rule: {rule} | | " + " | ".join(f"{rules[table.split(',')[0]][rule]:.4f}" for table in tables) + " |"
            for rule in next(iter(rules.values()))
        ),
        "",
    ]


def gradient_lines(figures: dict[str, Any]) -> list[str]:
    """Conflicts by field."""
    rows = [
        f"| {name} | {field} | {each['batches']} | {opposition(each) if name.startswith('twin') else '| |'} | "
        f"{each['length_ratio']:.1f} |"
        for name, fields in figures.items()
        if name != "cosines"
        for field, each in fields.items()
    ]
    return [
        "## Do attention and representation pull apart?",
        "",
        "TWIN's one table taken as two that stay equal: what comes through attention's weights, beside what comes",
        "through the vectors they weigh (in length: the latter over the former, median of batches). DARE keeps the two",
        "apart: there is nothing to oppose.",
        "",
        "| model | table | batches | opposed batches | opposed rows | mean cosine | lengths |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def opposition(figures: dict[str, float]) -> str:
    """Three cells."""
    return f"{figures['opposed_batches']:.1%} | {figures['opposed_rows']:.1%} | {figures['cosine']:.3f}"


def discriminability_lines(figures: dict[str, Any]) -> list[str]:
    """Normalised information at each number of clusters."""
    clusters = figures["clusters"]
    rows = [
        f"| {method} | {name} | " + " | ".join(f"{value:.4f}" for value in each["labels"]) + " |"
        for method, vectors in figures.items()
        if method != "clusters"
        for name, each in vectors.items()
    ]
    chance = next(each["product"]["chance"] for method, each in figures.items() if method != "clusters")
    return [
        "## What the network reads",
        "",
        "Normalised mutual information of the click with k-means clusters of test rows, mean of three seeds: of the",
        "product of candidate and history alone, and of both without it.",
        "",
        "| method | vectors | " + " | ".join(str(number) for number in clusters[: len(chance)]) + " |",
        "|---" * (2 + len(chance)) + "|",
        *rows,
        "| shuffled labels | | " + " | ".join(f"{value:.4f}" for value in chance) + " |",
        "",
    ]


def spread(figures: dict[str, Any]) -> str:
    """Mean, with the standard deviation where there are several seeds."""
    several = len(figures["seeds"]) > 1
    return f"{figures['mean']:.4f}" + (f" ± {figures['sd']:.4f}" if several else "")


def draw(
    stem: Path,
    figures: dict[str, Any],
    counts: CategoryCounts,
    maps: dict[str, Float[np.ndarray, "K K P"]],
    names: list[str],
) -> None:
    """Heat maps, and curves."""
    import matplotlib

    matplotlib.use("Agg")
    _draw_maps(stem.with_name(f"{stem.name}-maps.png"), counts, maps, names)
    _draw_curves(stem.with_name(f"{stem.name}-curves.png"), figures)


def _draw_maps(
    path: Path, counts: CategoryCounts, maps: dict[str, Float[np.ndarray, "K K P"]], names: list[str]
) -> None:
    from matplotlib import pyplot

    information, rows = counts.information(), counts.clicks + counts.others
    told = np.where(rows >= np.sort(rows)[len(rows) // 2], information.max(axis=(1, 2)), -1)
    candidates = np.argsort(-told)[:CANDIDATES_DRAWN]
    methods = list(maps)[:METHODS_DRAWN]
    shape = (len(candidates), 1 + len(methods))
    size = (2.6 * shape[1], 2.4 * shape[0])
    figure, panels = pyplot.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for line, candidate in zip(panels, candidates, strict=True):
        pictures = {"information": information[candidate]} | {
            method: softmax(maps[method][candidate]) for method in methods
        }
        for panel, (name, picture) in zip(line, pictures.items(), strict=True):
            panel.imshow(unit_range(picture[1:, :POSITIONS_DRAWN]), aspect="auto", cmap="viridis", vmin=0, vmax=1)
            panel.set_title(f"{names[candidate]}: {name}", fontsize=8)
            panel.set_xticks([0, 9, 19], ["1", "10", "20"], fontsize=6)
            panel.set_yticks([])
        line[0].set_yticks(range(len(names) - 1), names[1:], fontsize=5)
    figure.supxlabel("position, 1 = newest (each panel from its least to its greatest value)", fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _draw_curves(path: Path, figures: dict[str, Any]) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for field, cosines in figures["gradients"].get("cosines", {}).items():
        left.hist(cosines, bins=40, range=(-1, 1), histtype="step", label=field)
    left.axvline(0, color="grey", linewidth=0.8)
    left.set_xlabel("cosine of the two gradients of TWIN's table, a batch")
    left.set_ylabel("batches in training")
    left.legend(frameon=False, fontsize=8)
    of_methods = figures["discriminability"]
    for method, vectors in of_methods.items():
        if method != "clusters":
            values = vectors["product"]["labels"]
            right.plot(of_methods["clusters"][: len(values)], values, marker=".", label=method)
    right.set_xscale("log")
    right.set_xlabel("clusters of the product of candidate and history")
    right.set_ylabel("normalised information about the click")
    right.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def softmax(scores: Float[np.ndarray, "K P"]) -> Float[np.ndarray, "K P"]:
    """Over all categories and positions; absent categories have none."""
    powers = np.exp(np.where(np.isnan(scores), -np.inf, scores - np.nanmax(scores)))
    return powers / powers.sum()


def unit_range(picture: Float[np.ndarray, "K P"]) -> Float[np.ndarray, "K P"]:
    """From 0 to 1."""
    low, high = picture.min(), picture.max()
    return (picture - low) / (high - low) if high > low else np.zeros_like(picture)
