"""Commands that train, judge and compare; each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.options import Json, Overwrite, PartOption, Seed, whole_numbers
from pipelines.printing import finish, print_json, result_console
from pipelines.reporter import Reporter
from recsys.errors import GateError

app = typer.Typer()


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Output of `recsys prepare`.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of a model; see docs/models.md.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    refit: Annotated[
        Path | None,
        typer.Option(help="A finished run: train it anew on training and validation events, for its best epochs."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            "--warm-start",
            help="A finished run of the same model whose weights this one begins with; its data may be others.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="A finished recformer run on the same data, which model hierarchical learns from."),
    ] = None,
    retriever: Annotated[
        Path | None,
        typer.Option(help="A finished sasrec run on the same data, whose lists a ranker learns to correct."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A named preset of the model in place of its default, e.g. demo.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file over the preset.")] = None,
    set: Annotated[  # noqa: A002 - the option's public name
        list[str], typer.Option(help="section.key=value over file and preset, e.g. model.dropout=0.1.")
    ] = [],  # noqa: B006
    seed: Seed = 0,
    tracking: Annotated[bool, typer.Option(help="Log to MLflow (MLFLOW_TRACKING_URI or ./mlflow.db).")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run with other settings.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a model; an interrupted run goes on where it was, bit for bit.

    Example: `recsys train data/shop-prepared --model sasrec --set model.dropout=0.3 --out runs/sasrec`

    Several processes: `torchrun --nproc-per-node 2 -m pipelines.cli train ...`
    """
    from pipelines.plan import TrainConfig
    from pipelines.train import train as run_training

    run = run_training(
        TrainConfig(
            data=data,
            model=model,
            out=out,
            refit=refit,
            init=init,
            teacher=teacher,
            retriever=retriever,
            preset=preset,
            config_file=config,
            settings=tuple(set),
            seed=seed,
            tracking=tracking,
            restart=restart,
            overwrite=overwrite,
        ),
        Reporter(),
    )
    if run is not None:
        finish(out, run.manifest, as_json)


@app.command()
def sweep(
    data: Annotated[Path, typer.Argument(help="Output of `recsys prepare`.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of a model; see docs/models.md.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; the same command goes on there.", show_default=False)],
    space: Annotated[
        Path | None, typer.Option(help="YAML file with what to search; the model's own by default. See docs/sweeps.md.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Stop after so many, those of earlier calls included.")] = 50,
    seconds: Annotated[
        float | None, typer.Option(help="Begin no trial after so many seconds of training, earlier calls included.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="The preset that trials start from, e.g. demo.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file over the preset.")] = None,
    set: Annotated[  # noqa: A002 - the option's public name
        list[str], typer.Option(help="section.key=value of every trial, over file, preset and the space's `fixed`.")
    ] = [],  # noqa: B006
    seed: Seed = 0,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep every trial's run, not only the best.")] = False,
    as_json: Json = False,
) -> None:
    """Search settings on the validation part; the best become a config file for `recsys train`.

    Examples: `recsys sweep data/shop-prepared --model sasrec --trials 40 --out sweeps/sasrec`,
    `recsys sweep data/shop-prepared --model sasrec --space mine.yaml --seconds 36000 --out sweeps/mine`
    """
    from pipelines.search import SweepConfig
    from pipelines.sweep import sweep as run
    from pipelines.sweep_results import best_table

    result = run(
        SweepConfig(
            data=data,
            model=model,
            out=out,
            space=space,
            trials=trials,
            seconds=seconds,
            preset=preset,
            config_file=config,
            settings=tuple(set),
            seed=seed,
            keep_runs=keep_runs,
        ),
        Reporter(),
    )
    if as_json:
        print_json(result.as_dict())
    else:
        result_console().print(best_table(result))
        typer.echo(f"best settings: {out / 'best.yaml'}; train with them:\n  {result.train_command()}")


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Outputs of `recsys train`.", show_default=False)],
    part: PartOption = "test",
    cutoffs: Annotated[str, typer.Option(help="List lengths, comma-separated.")] = "10,20",
    seen: Annotated[Literal["exclude", "keep"] | None, typer.Option(help="Over the rule of the prepared data.")] = None,
    segments: Annotated[bool, typer.Option("--segments", help="Also a table by segment.")] = False,
    rerank: Annotated[
        Path | None,
        typer.Option(help="Run of a retriever, whose best items the runs, rankers, put in their own order."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many of them (with --rerank); 500 by default.", show_default=False)
    ] = None,
    rank_weight: Annotated[
        float | None,
        typer.Option(
            help="How much a ranker adds to the retriever's scores (with --rerank); inf: its order alone. By default "
            "what is best on the validation part.",
            show_default=False,
        ),
    ] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 3 unless every run beats every floor.")] = False,
    as_json: Json = False,
) -> None:
    """Rank every case by runs and floors among all items; keeps one row a case for `recsys compare`.

    Rankers are judged by clicks: AUC, GAUC per user, logloss, calibration.

    Examples: `recsys evaluate runs/sasrec runs/bert4rec --segments`, `recsys evaluate runs/dare`,
    `recsys evaluate runs/dare --rerank runs/sasrec`
    """
    from pipelines.evaluate import EvaluateConfig
    from pipelines.evaluate import evaluate as run
    from pipelines.tables import evaluation_table, segment_table

    config = EvaluateConfig(
        runs=tuple(runs),
        part=part,
        cutoffs=whole_numbers(cutoffs, "--cutoffs"),
        seen=seen,
        rerank=rerank,
        candidates=candidates,
        rank_weight=rank_weight,
        segments=segments,
    )
    evaluation = run(config, Reporter())
    if as_json:
        print_json(evaluation.as_dict())
    else:
        result_console().print(evaluation_table(evaluation))
        if segments:
            result_console().print(segment_table(evaluation))
        for sentence in evaluation.verdicts():
            typer.echo(sentence)
    if gate and evaluation.losers():
        raise GateError(f"evaluate: {', '.join(evaluation.losers())} did not beat every floor; nothing should ship.")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Run or evaluation folder; a floor lies in DATA/floors/PART/NAME.")],
    runs: Annotated[list[Path], typer.Argument(help="Those that might replace it.")],
    part: PartOption = "test",
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples and permutations.")] = 10_000,
    seed: Seed = 0,
    margin: Annotated[float, typer.Option(help="Share of the base's figure by which none may be worse.")] = 0.01,
    guard: Annotated[
        list[str] | None,
        typer.Option(help="FIGURE=CHANGE over the standard guardrails, e.g. coverage@10=-0.1: may fall by a tenth."),
    ] = None,
    segments: Annotated[bool, typer.Option("--segments", help="Also every segment.")] = False,
    report: Annotated[Path | None, typer.Option(help="HTML page with plots to write.")] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with 3 unless a run is better on NDCG and no guardrail broken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Decide which of some evaluated models is better than the base: paired bootstrap intervals and permutation tests
    (users as units, Holm's correction), guardrails.

    Examples: `recsys compare runs/sasrec runs/bert4rec`, `recsys compare runs/old runs/a runs/b --report report.html`
    """
    from pipelines.compare import CompareConfig
    from pipelines.compare import compare as run
    from pipelines.guardrails import Guardrail, with_standard
    from pipelines.tables import comparison_table

    guardrails = with_standard([Guardrail.parse(text) for text in guard or ()])
    config = CompareConfig(
        base=base, runs=tuple(runs), part=part, draws=draws, seed=seed, margin=margin, guardrails=guardrails
    )
    if report is not None:
        from pipelines.comparison_report import write_report  # what it needs is missed before the work, not after
    comparisons = run(config)
    if report is not None:
        write_report(report, comparisons, part)
    if as_json:
        print_json({"base": str(base), "part": part, "comparisons": [entry.as_dict() for entry in comparisons]})
    else:
        for entry in comparisons:
            shown = [row for row in entry.differences if segments or row.segment == "all"]
            result_console().print(comparison_table(shown, entry.base, entry.name))
            typer.echo(entry.sentence())
    if gate and not any(entry.may_replace for entry in comparisons):
        raise GateError(
            f"compare: {' and '.join(entry.name for entry in comparisons)} should not replace {base.name}: none is "
            f"better on {comparisons[0].headline.metric} within the guardrails."
        )


@app.command()
def backtest(
    dataset: Annotated[Path, typer.Argument(help="Output of `recsys ingest`, with times.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of a model; see docs/models.md.", show_default=False)],
    every: Annotated[str, typer.Option(help="Length of a period: 30m, 1h, 1d, 4w.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the backtest; the same command goes on there.")],
    policies: Annotated[
        str, typer.Option(help="Of never, warm, cold; by default all that the model can follow.", show_default=False)
    ] = "",
    floors: Annotated[bool, typer.Option(help="Floors too, counted anew before every period.")] = True,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="ISO instant, UTC, of the first period; by default half of the log lies before.",
            metavar="ISO",
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--until", help="ISO instant, UTC, to replay until.", metavar="ISO")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A named preset of the model in place of its default.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file over the preset.")] = None,
    set: Annotated[  # noqa: A002 - the option's public name
        list[str],
        typer.Option(help="section.key=value over file and preset; training.epochs are trained, all of them."),
    ] = [],  # noqa: B006
    warm_set: Annotated[
        list[str], typer.Option(help="The same for warm trainings alone, e.g. training.epochs=1.")
    ] = [],  # noqa: B006
    seen: Annotated[
        Literal["auto", "exclude", "keep"],
        typer.Option(help="May items of the history be recommended? auto: keep where users repeat items."),
    ] = "auto",
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples and permutations.")] = 10_000,
    seed: Seed = 0,
    report: Annotated[Path | None, typer.Option(help="HTML page with plots to write.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a log period by period: what is a model worth that is never trained again, trained on, or trained anew?

    Examples: `recsys backtest data/news --model sasrec --every 1h --warm-set training.epochs=1 --out backtests/news`,
    `recsys backtest data/shop --model markov --every 1d --report shop.html --out backtests/shop`
    """
    from pipelines.backtest import backtest as run
    from pipelines.replay import BacktestConfig
    from pipelines.tables import backtest_table

    replayed = BacktestConfig(
        dataset=dataset,
        out=out,
        model=model,
        every=every,
        policies=tuple(name.strip() for name in policies.split(",") if name.strip()),
        floors=floors,
        begin=begin,
        end=end,
        preset=preset,
        config_file=config,
        settings=tuple(set),
        warm_settings=tuple(warm_set),
        seen=seen,
        draws=draws,
        seed=seed,
    )
    if report is not None:
        from pipelines.backtest_report import write_report  # what it needs is missed before the work, not after
    result = run(replayed, Reporter())
    if report is not None:
        write_report(report, result)
    if as_json:
        print_json(result.as_dict())
        return
    result_console().print(backtest_table(result))
    for sentence in result.sentences():
        typer.echo(sentence)
