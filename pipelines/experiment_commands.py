"""Commands that read the service's exposure log; each imports what it needs when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.options import Json, Seed, duration, pairs
from pipelines.printing import print_json, result_console
from pipelines.reporter import Reporter
from recsys.errors import GateError

if TYPE_CHECKING:
    from pipelines.exposed import Period

app = typer.Typer()

Logs = Annotated[list[Path], typer.Argument(help="Exposure logs of the service: what RECSYS_EXPOSURES named.")]
Window = Annotated[str, typer.Option(help="How long after an item was shown an event counts as its outcome.")]
EventTypes = Annotated[
    list[str], typer.Option("--event-type", help="Only events of this type are outcomes; may be repeated.")
]
Since = Annotated[str | None, typer.Option(help="Only answers from this ISO instant (UTC) on.")]
Until = Annotated[str | None, typer.Option(help="The log as it was at this ISO instant (UTC).")]
RewardOption = Annotated[
    Literal["any", "count", "value"],
    typer.Option(help="What an item earns: 1 if it had an outcome, the number of them, or the sum of their values."),
]


@app.command()
def estimate(
    logs: Logs,
    policy: Annotated[Path, typer.Option(help="Run or bundle that is to be judged.", show_default=False)],
    variant: Annotated[list[str], typer.Option(help="Only answers of this variant.")] = [],  # noqa: B006
    shown_by: Annotated[
        list[str],
        typer.Option(help="NAME=RUN: the model of a variant that ranks without chance; the split is the chance then."),
    ] = [],  # noqa: B006
    reading: Annotated[
        Literal["independent", "cascade", "whole"],
        typer.Option(help="What an item's outcome depends on: itself and its place, also the items above, the list."),
    ] = "independent",
    reward: RewardOption = "any",
    window: Window = "24h",
    event_type: EventTypes = [],  # noqa: B006
    since: Since = None,
    until: Until = None,
    estimator: Annotated[
        Literal["ips", "snips", "clipped", "dm", "dr", "switch-dr"], typer.Option(help="The one that decides.")
    ] = "dr",
    clip: Annotated[float, typer.Option(help="Weight beyond which clipped cuts and switch-dr trusts its model.")] = 10,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of users.")] = 2000,
    seed: Seed = 0,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 3 unless the model would earn more.")] = False,
    as_json: Json = False,
) -> None:
    """Estimate what a model would have earned from what others showed, and how far the log can be trusted in that.

    Examples: `recsys estimate exposures --policy runs/new --variant explore`,
    `recsys estimate exposures --policy runs/new --shown-by a=runs/old --shown-by b=runs/other`
    """
    from pipelines.estimate import EstimateConfig, estimate_policy
    from pipelines.tables import estimate_table
    from recsys.exposures import Attribution

    result = estimate_policy(
        EstimateConfig(
            logs=tuple(logs),
            policy=policy,
            variants=tuple(variant),
            shown_by={name: Path(run) for name, run in pairs(shown_by, "--shown-by").items()},
            reading=reading,
            reward=reward,
            attribution=Attribution(window=duration(window, "--window"), event_types=event_type or None),
            period=period(since, until),
            estimator=estimator,
            clip=clip,
            draws=draws,
            seed=seed,
        ),
        Reporter(),
    )
    if as_json:
        print_json(result.as_dict())
    else:
        result_console().print(estimate_table(result))
        for sentence in result.sentences():
            typer.echo(sentence)
    if gate and result.verdict != "better":
        raise GateError(f"estimate: {result.policy} should not ship by this log: {result.verdict}.")


@app.command()
def experiment(
    logs: Logs,
    base: Annotated[str, typer.Option(help="The variant that others are compared with.", show_default=False)],
    metric: Annotated[
        Literal["outcomes a user", "users with an outcome", "outcomes a request", "value a user"],
        typer.Option(help="The one that decides."),
    ] = "outcomes a user",
    horizon: Annotated[str, typer.Option(help="How long each user is watched from the first answer on.")] = "24h",
    window: Window = "24h",
    before: Annotated[str, typer.Option(help="How long before the first answer events speak of the user (CUPED).")] = (
        "7d"
    ),
    event_type: EventTypes = [],  # noqa: B006
    since: Since = None,
    until: Until = None,
    planned: Annotated[
        int, typer.Option(help="Users at which intervals shall be the narrowest; fix it before the first look.")
    ] = 10_000,
    once: Annotated[
        bool, typer.Option("--once", help="This is the only look, at a time that was fixed: narrower intervals.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="HTML page with plots to write.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 3 unless a variant is better than the base.")] = False,
    as_json: Json = False,
) -> None:
    """Judge an online experiment: is the split as intended (sample ratio mismatch), which variant is better? Users as
    units, CUPED, intervals that are valid at every look.

    Examples: `recsys experiment exposures --base old`, `recsys experiment exposures --base old --report page.html`
    """
    from pipelines.experiment import ExperimentConfig, run_experiment
    from pipelines.tables import experiment_table
    from recsys.experiment import Plan
    from recsys.exposures import Attribution

    if report is not None:
        from pipelines.experiment_report import write_report  # what it needs is missed before the work, not after
    result = run_experiment(
        ExperimentConfig(
            logs=tuple(logs),
            base=base,
            metric=metric,
            attribution=Attribution(window=duration(window, "--window"), event_types=event_type or None),
            period=period(since, until),
            horizon=duration(horizon, "--horizon"),
            before=duration(before, "--before"),
            plan=Plan(planned=planned, once=once),
        )
    )
    if report is not None:
        write_report(report, result)
    if as_json:
        print_json(result.as_dict())
    else:
        result_console().print(experiment_table(result))
        for sentence in result.sentences():
            typer.echo(sentence)
    if gate and not result.winners:
        raise GateError(f"experiment: {', '.join(result.effects)} should not replace {base} by this log.")


def period(since: str | None, until: str | None) -> "Period":
    """Of two ISO instants."""
    from pipelines.exposed import Period
    from pipelines.prepare import instant

    return Period(since=None if since is None else instant(since), until=None if until is None else instant(until))
