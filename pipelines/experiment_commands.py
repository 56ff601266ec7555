"""Commands that read the service's exposure log; each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.options import Json, Seed, duration, pairs
from pipelines.printing import print_json, result_console
from pipelines.reporter import Reporter
from recsys.errors import GateError

app = typer.Typer()

Logs = Annotated[list[Path], typer.Argument(help="Exposure logs of the service: what RECSYS_EXPOSURES named.")]
Window = Annotated[str, typer.Option(help="How long after an item was shown an event counts as its outcome.")]
EventTypes = Annotated[
    list[str], typer.Option("--event-type", help="Only events of this type are outcomes; may be repeated.")
]
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
