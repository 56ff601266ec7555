"""Tables of results for people; the same figures are in `--json`."""

from collections.abc import Sequence

from rich.table import Table

from pipelines.backtest_results import HITS, NDCG, Backtest
from pipelines.estimate import PolicyEstimate
from pipelines.evaluate import Evaluation, table_rows
from pipelines.experiment import Experiment
from pipelines.exposed import UNITS
from recsys.clicks import NEGATIVES
from recsys.comparison import Difference
from recsys.metrics import METRICS
from recsys.off_policy import LOGGED

SEEN_WORDS = {"exclude": "excluded", "keep": "kept"}


def evaluation_table(evaluation: Evaluation) -> Table:
    """One row a model, floors first; the best of each ranking metric is bold."""
    rows = list(table_rows(evaluation))
    metrics = list(rows[-1][1])
    cases = next(iter(evaluation.runs.values()))["cases"]
    lists = "" if evaluation.seen is None else f"full ranking, seen items {SEEN_WORDS[evaluation.seen]}"
    table = Table(
        title=f"{evaluation.part}: {cases} cases, " + (lists or f"clicks beside {NEGATIVES} popular items"),
        caption="Floors and refits know all events before this part; the other runs the training part alone.",
    )
    table.add_column("model")
    for metric in metrics:
        table.add_column(metric, justify="right")
    ranking = [metric for metric in metrics if metric.partition("@")[0] in {*METRICS, "auc", "gauc"}]
    best = {metric: max(values[metric] for _, values in rows) for metric in ranking}
    for name, values in rows:
        table.add_row(name, *(cell(values.get(metric), best.get(metric)) for metric in metrics))
    return table


def segment_table(evaluation: Evaluation) -> Table:
    """The first metric of every model in every segment."""
    reports = {**{f"{name} (floor)": report for name, report in evaluation.floors.items()}, **evaluation.runs}
    metric = next(iter(next(iter(reports.values()))["metrics"]))
    names = list(next(iter(reports.values()))["segments"])
    table = Table(title=f"{metric} by segment")
    table.add_column("segment")
    table.add_column("cases", justify="right")
    for model in reports:
        table.add_column(model, justify="right")
    for name in names:
        entries = [report["segments"][name] for report in reports.values()]
        best = max(entry["metrics"][metric] for entry in entries)
        figures = [figure(entry["metrics"][metric], bold=entry["metrics"][metric] == best) for entry in entries]
        table.add_row(name, str(entries[0]["cases"]), *figures)
    return table


def comparison_table(differences: Sequence[Difference], a: str, b: str) -> Table:
    """One row a metric and segment."""
    table = Table(title=f"{b} against {a}, paired by case, users resampled")
    for column in ("segment", "metric", "cases", "users", a, b, "difference", "95 % interval", "p, corrected"):
        table.add_column(column, justify="left" if column in {"segment", "metric"} else "right")
    for entry in differences:
        table.add_row(
            entry.segment,
            entry.metric,
            str(entry.cases),
            str(entry.users),
            figure(entry.mean_a),
            figure(entry.mean_b),
            f"{entry.difference:+.4f}",
            f"{entry.low:+.4f} to {entry.high:+.4f}",
            f"{entry.adjusted:.4f}",
        )
    return table


def estimate_table(result: PolicyEstimate) -> Table:
    """One row an estimator, what was shown first."""
    table = Table(title=f"{result.policy}: {UNITS[result.reward]} a request, users resampled")
    for column in ("estimator", "value", "95 % interval", "difference", "95 % interval "):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for entry in result.estimates:
        (low, high), (least, most) = entry.interval, entry.difference_interval
        table.add_row(
            "(what was shown)" if entry.estimator == LOGGED else entry.estimator,
            figure(entry.value, bold=entry.estimator == result.estimator),
            f"{low:.4f} to {high:.4f}",
            "" if entry.estimator == LOGGED else f"{entry.difference:+.4f}",
            "" if entry.estimator == LOGGED else f"{least:+.4f} to {most:+.4f}",
        )
    return table


def backtest_table(result: Backtest) -> Table:
    """One row a policy or floor, over all periods after the first."""
    first, last = result.periods[0].start, result.periods[-1].start
    table = Table(
        title=f"{result.overall[0].cases} cases after the first period, of {result.num_periods} from {first} to {last}",
        caption="New items: targets that the model in charge was not taught. Floors are counted before every period.",
    )
    for column in ("trained again", NDCG, HITS, "new items", "seconds of training"):
        table.add_column(column, justify="left" if column == "trained again" else "right")
    best = {NDCG: max(row.ndcg for row in result.overall), HITS: max(row.hit_rate for row in result.overall)}
    for row in result.overall:
        table.add_row(
            f"{row.name} (floor)" if row.name in result.floors else row.name,
            cell(row.ndcg, best[NDCG]),
            cell(row.hit_rate, best[HITS]),
            f"{row.new_item_share:.1%}",
            f"{row.training_seconds:.1f}",
        )
    return table


def experiment_table(result: Experiment) -> Table:
    """One row a variant and metric."""
    table = Table(title=f"against {result.base}, users as units, {'one look' if result.plan.once else 'any look'}")
    names = ("variant", "metric", "users", result.base, "variant's", "difference", "95 % interval", "p, corrected")
    for column in (*names, "CUPED saved"):
        table.add_column(column, justify="left" if column in {"variant", "metric"} else "right")
    for name, effects in result.effects.items():
        for entry in effects:
            low, high = entry.deciding_interval
            table.add_row(
                name,
                entry.metric,
                f"{entry.users[0]} + {entry.users[1]}",
                figure(entry.mean_base),
                figure(entry.mean_variant),
                f"{entry.difference:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{entry.adjusted:.4f}",
                f"{entry.saved:.0%}",
            )
    return table


def cell(value: float | None, best: float | None) -> str:
    """A figure, bold where it is the best; nothing where a model has none."""
    return "" if value is None else figure(value, bold=value == best)


def figure(value: float, bold: bool = False) -> str:
    """Four decimals."""
    return f"[bold]{value:.4f}[/bold]" if bold else f"{value:.4f}"
