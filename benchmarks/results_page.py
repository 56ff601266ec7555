"""docs/results.md from the records: tables of models beside floors and published figures."""

import json
from datetime import UTC, datetime
from statistics import mean, stdev
from typing import Any

from benchmarks.contrast import FEW_EVENTS, RARE_ITEMS, read_contrast
from benchmarks.records import HERE, RECORDS, Experiment, read_floors, read_record
from models.registry import FLOORS

PAGE = HERE.parent / "docs" / "results.md"
SEGMENTS = {
    "all": "all",
    "history: 1-5": "1 to 5 events",
    "history: 6-20": "6 to 20 events",
    "history: 21-50": "21 to 50 events",
    "history: 51-200": "51 to 200 events",
    RARE_ITEMS: f"items with fewer than {FEW_EVENTS} training events",
    "popularity decile: 1": "rarest tenth of items",
    "popularity decile: 10": "most popular tenth",
}
METRICS = {
    "full ranking": ("ndcg@10", "hit_rate@10", "mrr@10", "coverage@10"),
    "clicks": ("auc", "gauc", "logloss", "calibration_error"),
}


def page(experiments: list[Experiment]) -> str:
    """The whole page, experiments without a record left out."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.results` from `benchmarks/records`; do not edit. Full ranking over the whole "
        "catalogue, pessimistic ties. Mean over seeds ± standard deviation. Floors are deterministic and know all "
        "events before the test part, as do models marked *refit*; the others learned from the training part alone. "
        "Published figures are their authors'; where theirs and ours differ in protocol, the row says how.",
    ]
    parts += [section for experiment in experiments if (section := experiment_section(experiment))]
    return "\n\n".join(parts) + "\n"


def experiment_section(experiment: Experiment) -> str | None:
    """Table and provenance of one experiment, None where nothing was recorded."""
    floors = read_floors(experiment)
    if floors is None:
        return None
    counts, metrics = floors["counts"], METRICS[experiment.protocol]
    lines = [
        f"## {experiment.title}",
        "",
        f"{counts['users']} users, {counts['items']} items, {counts['events']} events; "
        f"{counts['test_cases']} test cases; seen items: {counts['seen']}.",
        "",
        "| model | seeds | " + " | ".join(metrics) + " | best epoch | seconds to it |",
        "|---|---|" + "---|" * (len(metrics) + 2),
    ]
    lines += [
        row(metrics, f"{name} (floor)", "-", [floors["floors"][name]]) for name in FLOORS if name in floors["floors"]
    ]
    lines += [
        row(metrics, f"*{entry['model']}* (published: {entry['source']})", "-", [entry])
        for entry in experiment.published
    ]
    lines += [model_row(metrics, model, records) for model in experiment.models if (records := done(experiment, model))]
    lines += ["", *(f"- {line}" for line in experiment.remarks)]
    lines += weight_lines(experiment)
    lines += contrast_lines(experiment)
    lines += cost_lines(experiment)
    return "\n".join([*lines, "", provenance(experiment)]).replace("\n\n\n", "\n\n")


def weight_lines(experiment: Experiment) -> list[str]:
    """How much each ranker adds to its retriever's scores, seed by seed."""
    weights = {
        model: [record["weight"] for record in done(experiment, model) if "weight" in record]
        for model in experiment.models
    }
    named = [
        f"{model} {'/'.join('alone' if weight is None else f'{weight:g}' for weight in found)}"
        for model, found in weights.items()
        if found
    ]
    if not named:
        return []
    return [f"- Weights that were best on the validation part (0: the retriever alone), by seed: {', '.join(named)}."]


def contrast_lines(experiment: Experiment) -> list[str]:
    """Variants beside their bases, and step by step where they reason."""
    variants = [name for name, options in experiment.models.items() if "against" in options]
    contrasts = {name: record for name in variants if (record := read_contrast(experiment, name))}
    if not contrasts:
        return []
    return [
        "",
        "Difference in NDCG@10 from the base, the same cases and seeds, with its 95 % interval over users:",
        "",
        "| variant | base | seeds | " + " | ".join(SEGMENTS.values()) + " |",
        "|---|---|---|" + "---|" * len(SEGMENTS),
        *(contrast_row(name, record) for name, record in contrasts.items()),
        *step_lines({name: record for name, record in contrasts.items() if record["steps"]}),
    ]


def step_lines(contrasts: dict[str, dict[str, Any]]) -> list[str]:
    """What each reasoning step is worth, of the variants that reason."""
    if not contrasts:
        return []
    return [
        "",
        "By steps taken, mean over the seeds (ERL answers with the mean of the states so far). *Best so far* belongs "
        "to an oracle that knows the target and picks the best of these answers for each case; *similarity* is the "
        "cosine of a state with the one before it.",
        "",
        "| variant | steps | ndcg@10 | hit_rate@10 | best so far | similarity |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {number} | {step['ndcg@10']:.4f} | {step['hit_rate@10']:.4f} | {step['best so far']:.4f} "
            f"| {step['similarity']:.3f} |"
            for name, record in contrasts.items()
            for number, step in enumerate(record["steps"])
        ),
    ]


def contrast_row(name: str, record: dict[str, Any]) -> str:
    """One line: differences of all cases and of some segments."""
    cells = [
        f"{entry['difference']:+.4f} ({entry['low']:+.4f} to {entry['high']:+.4f})" if entry else "-"
        for entry in (record["segments"].get(segment) for segment in SEGMENTS)
    ]
    return "| " + " | ".join([name, record["base"], str(len(record["seeds"])), *cells]) + " |"


def cost_lines(experiment: Experiment) -> list[str]:
    """What reasoning steps cost, where `benchmarks.reasoning_cost` has measured it."""
    path = RECORDS / experiment.name / "reasoning-cost.json"
    if not path.exists():
        return []
    cost = json.loads(path.read_text(encoding="utf-8"))
    whole, encode, request = (
        cost[name] for name in ("test_set_seconds", "encode_milliseconds", "request_milliseconds")
    )
    return [
        "",
        f"What steps cost ({cost['threads_of_test_set']} threads for the test set; requests: batch 1, one thread, ONNX "
        f"graph, then exact search of {cost['items']} items; medians, 95th percentiles; {cost['created'][:10]}, commit "
        f"{short(cost['commit'])}):",
        "",
        "| steps | test set, s | more | encode and search, ms | more | encode alone, ms | more |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {steps} | {whole[steps]:.2f} | {more(whole[steps], whole[0])} "
            f"| {request[steps][0]:.3f}, {request[steps][1]:.3f} | {more(request[steps][0], request[0][0])} "
            f"| {encode[steps][0]:.3f}, {encode[steps][1]:.3f} | {more(encode[steps][0], encode[0][0])} |"
            for steps in range(len(whole))
        ),
    ]


def more(value: float, than: float) -> str:
    """`+3.5 %`."""
    return f"{value / than - 1:+.1%}".replace("%", " %")


def done(experiment: Experiment, model: str) -> list[dict[str, Any]]:
    """The records of a model, seed by seed."""
    records = (read_record(experiment, model, seed) for seed in range(experiment.seeds))
    return [record for record in records if record is not None]


def model_row(metrics: tuple[str, ...], model: str, records: list[dict[str, Any]]) -> str:
    """One model, mean and spread over the seeds that are done."""
    epochs = "/".join(str(record["best_epoch"]) for record in records)
    seconds = f"{mean(record['seconds_to_best'] for record in records):.0f}"
    return row(metrics, model, str(len(records)), [record["metrics"] for record in records], epochs, seconds)


def row(
    metrics: tuple[str, ...],
    name: str,
    seeds: str,
    figures: list[dict[str, Any]],
    epochs: str = "-",
    seconds: str = "-",
) -> str:
    """A line of the table; a figure that nobody reported is a dash."""
    cells = [spread([entry[metric] for entry in figures]) if metric in figures[0] else "-" for metric in metrics]
    return "| " + " | ".join([name, seeds, *cells, epochs, seconds]) + " |"


def spread(values: list[float]) -> str:
    """`0.0950 ± 0.0012`."""
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


def provenance(experiment: Experiment) -> str:
    """Machine, versions, commits and days of the records."""
    records = [record for model in experiment.models for record in done(experiment, model)]
    if not records:
        return "No model has been run with today's settings yet."
    machines = sorted({record["machine"] for record in records})
    commits = sorted({short(record["commit"]) for record in records})
    seeds = sorted({record["seed"] for record in records})
    days = sorted({datetime.fromisoformat(record["created"]).astimezone(UTC).date().isoformat() for record in records})
    torches = sorted({record["libraries"]["torch"] for record in records})
    return (
        f"Seeds {', '.join(map(str, seeds))}; {', '.join(machines)}; torch {', '.join(torches)}; "
        f"commit {', '.join(commits)}; {' to '.join(dict.fromkeys([days[0], days[-1]]))}."
    )


def short(commit: str | None) -> str:
    """Twelve digits; the + of a tree with changes stays."""
    return "unknown" if commit is None else commit[:12] + ("+" if commit.endswith("+") else "")
