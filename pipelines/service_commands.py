"""Commands from a run to the service, and all of them in one; each imports what it needs when it is called."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.options import Json, Overwrite, Seed
from pipelines.printing import finish, print_json, result_console
from pipelines.reporter import Reporter
from recsys import __version__
from recsys.errors import ConfigError, GateError

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Output of `recsys train`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.", show_default=False)],
    ranker: Annotated[
        Path | None, typer.Option(help="Run of dare on the same data: a second stage, which ranks what RUN finds.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="How many items it ranks (with --ranker); 500 by default.", show_default=False)
    ] = None,
    rank_weight: Annotated[
        float | None,
        typer.Option(
            help="Final score = RUN's + weight x ranker's (with --ranker), inf: the ranker's alone. By default what "
            "`recsys evaluate RANKER --rerank RUN` found best.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        Literal["auto", "flat", "ivf", "hnsw", "ivfpq"],
        typer.Option(
            help="Index beside the exact one, as thorough as recall@100 of 0.99 needs; auto: none up to 200,000 items, "
            "the fastest beyond. Exits with 3 where none is good enough."
        ),
    ] = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the bundle that serving reads: weights, ONNX encoder, index, catalogue, hashes of all.

    Examples: `recsys export runs/sasrec --out bundles/sasrec`,
    `recsys export runs/sasrec --ranker runs/dare --out bundles/two-stages`
    """
    from pipelines.export import ExportConfig
    from pipelines.export import export as write
    from pipelines.export_ranker import RankingConfig
    from recsys.approximate import IndexChoice

    given = {"candidates": candidates, "weight": rank_weight}
    ranking = RankingConfig(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    choice = IndexChoice(kind=index)
    config = ExportConfig(run=run, out=out, overwrite=overwrite, index=choice, ranker=ranker, ranking=ranking)
    finish(out, write(config).manifest, as_json)


@app.command()
def register(
    bundle: Annotated[Path | None, typer.Argument(help="Output of `recsys export`.")] = None,
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = "recsys",
    alias: Annotated[str, typer.Option(help="Alias to point at the new version.")] = "champion",
    rollback: Annotated[bool, typer.Option("--rollback", help="Point the alias back at the version before.")] = False,
    as_json: Json = False,
) -> None:
    """Put a bundle into the MLflow registry under an alias, or move the alias back.

    Examples: `recsys register bundles/sasrec --alias champion`, `recsys register --rollback`
    """
    from recsys.bundle import open_bundle
    from recsys.registry import register_bundle, roll_back

    if rollback == (bundle is not None):
        raise ConfigError("register: name a bundle to register, or pass --rollback, one of the two.")
    entry = roll_back(name, alias) if bundle is None else register_bundle(open_bundle(bundle), name, alias)
    if as_json:
        print_json(asdict(entry))
    else:
        before = f" (was version {entry.previous})" if entry.previous else ""
        typer.echo(f"models:/{entry.name}@{entry.alias} is version {entry.version}{before}")


@app.command()
def serve(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Bundle folder, a folder of bundles, or models:/NAME@ALIAS; followed as it changes.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    state: Annotated[
        str | None, typer.Option(help="SQLite file with the users' histories, or redis://HOST:PORT/NUMBER.")
    ] = None,
) -> None:
    """Serve a bundle over HTTP, with a page at /.

    Examples: `recsys serve bundles/sasrec`, `recsys serve models:/recsys@champion --port 8080`
    """
    from serving.run import serve as run

    run(bundle, host=host, port=port, state=state)


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="PIPELINE.yaml; see docs/pipeline.md.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """The nightly job: logs to a candidate, judged beside the champion on the same cases; a better one takes its place.

    Killed at any instant it goes on where it was; with the same logs it does nothing; it exits with 3 where the
    candidate is refused.

    Examples: `recsys run pipeline.yaml --dry-run`, `recsys run pipeline.yaml`
    """
    from pipelines.pipeline_config import load_pipeline
    from pipelines.run_pipeline import Outcome, forecast, run_pipeline

    config = load_pipeline(pipeline)
    result = forecast(config) if dry_run else run_pipeline(config, Reporter())
    if as_json:
        print_json(result.as_dict())
    else:
        typer.echo("\n".join(result.sentences()))
    if isinstance(result, Outcome) and result.refused:
        raise GateError(f"run: the candidate of cycle {result.record['cycle']} was refused; the champion stays.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes but the MLflow store.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """All of it on MovieLens-100K: ingest, prepare, train, evaluate, compare, export, register.

    Example: `recsys demo` then `recsys serve demo/bundle`
    """
    from pipelines.demo import demo as run
    from pipelines.demo import print_demo

    result = run(out, seed, Reporter())
    if as_json:
        print_json(result.as_dict())
    else:
        print_demo(result, result_console())


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
