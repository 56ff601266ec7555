"""The `recsys` command line: one command an arrow of the data's path (see docs/commands.md).

Results go to standard output, remarks and progress to standard error. Exit codes: 0 done, 1 failed, 2 usage,
3 a quality gate said no. Commands import what they need when they are called, so that serving needs no torch.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.explained import explained
from pipelines.printing import finish, print_json, result_console
from pipelines.reporter import Reporter
from recsys import __version__
from recsys.errors import ConfigError, GateError, RecsysError

app = typer.Typer(
    name="recsys",
    help="Sequential recommendation: from raw logs to a served, measured recommender.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output where it exists already.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every random number.")]
PartOption = Annotated[Literal["validation", "test"], typer.Option(help="Which cases.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; may stand anywhere.")] = False,
) -> None:
    """Names `--debug` in the help; `main` takes it out of the arguments before they come here."""


@app.command()
def ingest(
    sources: Annotated[list[Path], typer.Argument(help="Log files or folders, .gz too.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new dataset.", show_default=False)],
    format: Annotated[  # noqa: A002 - the option's public name
        Literal["auto", "recbole", "csv", "jsonl", "json", "parquet", "movielens", "sequences", "npy"],
        typer.Option(help="Form of the sources."),
    ] = "auto",
    map: Annotated[  # noqa: A002 - the option's public name
        list[str], typer.Option(help="role=column, e.g. user_id=uid; an empty column says the role is not there.")
    ] = [],  # noqa: B006 - typer copies it
    columns: Annotated[str, typer.Option(help="Names of the fields of files without a header: a,b,c.")] = "",
    delimiter: Annotated[str | None, typer.Option(help="Field separator; found out by default.")] = None,
    encoding: Annotated[str, typer.Option(help="Text encoding of the sources.")] = "utf-8",
    time_unit: Annotated[
        Literal["auto", "s", "ms", "us", "ns", "min", "iso"], typer.Option(help="Unit of the timestamps.")
    ] = "auto",
    items: Annotated[Path | None, typer.Option(help="Item table with titles and other attributes.")] = None,
    items_map: Annotated[list[str], typer.Option(help="attribute=column of the item table.")] = [],  # noqa: B006
    duplicates: Annotated[
        Literal["drop", "keep"], typer.Option(help="What to do with exact repeats of an event.")
    ] = "drop",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read logs into a validated dataset; rows that are no events are kept in rejected.parquet.

    Example: `recsys ingest logs/*.csv.gz --map user_id=uid --map item_id=sku --out data/shop`
    """
    from pipelines.ingest import IngestConfig
    from pipelines.ingest import ingest as run

    config = IngestConfig(
        sources=tuple(sources),
        out=out,
        format=format,
        mapping=pairs(map, "--map"),
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
        delimiter=delimiter,
        encoding=encoding,
        time_unit=time_unit,
        items=items,
        items_mapping=pairs(items_map, "--items-map"),
        duplicates=duplicates,
        overwrite=overwrite,
    )
    finish(out, run(config, Reporter()).manifest, as_json)


@app.command()
def combine(
    datasets: Annotated[list[Path], typer.Argument(help="Outputs of `recsys ingest`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the new dataset.", show_default=False)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put several datasets into one, ids behind the folders' names: what a text model is pretrained on.

    Example: `recsys combine data/shop data/books --out data/both`
    """
    from pipelines.combine import CombineConfig
    from pipelines.combine import combine as run

    dataset = run(CombineConfig(datasets=tuple(datasets), out=out, overwrite=overwrite))
    finish(out, dataset.manifest, as_json)


@app.command()
def prepare(
    dataset: Annotated[Path, typer.Argument(help="Output of `recsys ingest`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the prepared data.", show_default=False)],
    split: Annotated[
        Literal["time", "last-item"],
        typer.Option(help="One instant for all users, or leave-one-out (parity with papers; looks into the future)."),
    ] = "time",
    validation_share: Annotated[float, typer.Option(help="Share of the events in validation (split by time).")] = 0.1,
    test_share: Annotated[float, typer.Option(help="Share of the events in test (split by time).")] = 0.1,
    validation_from: Annotated[str | None, typer.Option(help="ISO instant, UTC; in place of shares.")] = None,
    test_from: Annotated[str | None, typer.Option(help="ISO instant, UTC; in place of shares.")] = None,
    min_user_events: Annotated[int, typer.Option(min=1, help="k-core: events a user must keep.")] = 1,
    min_item_events: Annotated[int, typer.Option(min=1, help="k-core: events an item must keep.")] = 1,
    seen: Annotated[
        Literal["auto", "exclude", "keep"],
        typer.Option(help="May items of the history be recommended? auto: keep where users repeat items."),
    ] = "auto",
    extend: Annotated[
        Path | None, typer.Option(help="Earlier prepared data whose catalogue rows keep their meaning.")
    ] = None,
    retire: Annotated[
        Path | None, typer.Option(help="Text file of item ids, one a line, that may no longer be recommended.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a dataset into a catalogue, memory-mapped histories, a split and its evaluation cases.

    Example: `recsys prepare data/shop --min-item-events 5 --out data/shop-prepared`
    """
    from pipelines.prepare import PrepareConfig
    from pipelines.prepare import prepare as run

    reporter = Reporter()
    if split == "last-item":
        reporter.say(
            "warning: split last-item trains on events later than some test events, so its figures look into the "
            "future; use it for parity with papers, and --split time to decide what ships."
        )
    config = PrepareConfig(
        dataset=dataset,
        out=out,
        split=split,
        validation_share=validation_share,
        test_share=test_share,
        validation_from=validation_from,
        test_from=test_from,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        seen=seen,
        extend=extend,
        retire=retire,
        overwrite=overwrite,
    )
    finish(out, run(config).manifest, as_json)


@app.command()
def embed(
    data: Annotated[
        Path, typer.Argument(help="Output of `recsys ingest` or `recsys prepare`, with texts.", show_default=False)
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="Folder of a Hugging Face model, or its hub name; the installed MiniLM by default."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    pooling: Annotated[
        Literal["mean", "last"], typer.Option(help="Mean of the last states (encoders) or the last token (decoders).")
    ] = "mean",
    as_json: Json = False,
) -> None:
    """Encode all item texts into the store of vectors (RECSYS_TEXT_VECTORS), each once: what is there is not encoded
    again, and a run that was killed goes on.

    Examples: `recsys embed data/shop-prepared`, `recsys embed data/shop --encoder models/e5 --pooling last`
    """
    from pipelines.embed import EmbedConfig
    from pipelines.embed import embed as run

    counts = run(EmbedConfig(data=data, encoder=encoder, revision=revision, pooling=pooling), Reporter())
    if as_json:
        print_json(counts)
    else:
        for key, value in counts.items():
            typer.echo(f"{key}: {value}")


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
            help="A finished run of the same model whose weights this one begins with; its data may be others."
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
    a: Annotated[Path, typer.Argument(help="Run or evaluation folder; a floor lies in DATA/floors/PART/NAME.")],
    b: Annotated[Path, typer.Argument(help="The one that might replace it.")],
    part: PartOption = "test",
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples and permutations.")] = 2000,
    seed: Seed = 0,
    segments: Annotated[bool, typer.Option("--segments", help="Also every segment, as hints: no correction.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 3 unless B is better than A on NDCG.")] = False,
    as_json: Json = False,
) -> None:
    """Decide between two evaluated models: paired bootstrap interval and permutation test, users as units.

    Example: `recsys compare runs/sasrec runs/bert4rec`
    """
    from pipelines.compare import CompareConfig
    from pipelines.compare import compare as run
    from pipelines.tables import comparison_table

    differences = run(CompareConfig(a=a, b=b, part=part, draws=draws, seed=seed))
    if as_json:
        rows = [
            asdict(entry) | {"decided": entry.decided, "sentence": entry.sentence(a.name, b.name)}
            for entry in differences
        ]
        print_json({"a": str(a), "b": str(b), "part": part, "differences": rows})
    else:
        shown = [entry for entry in differences if segments or entry.segment == "all"]
        result_console().print(comparison_table(shown, a.name, b.name))
        for entry in shown:
            typer.echo(entry.sentence(a.name, b.name))
    first = differences[0]
    if gate and not (first.decided and first.difference > 0):
        raise GateError(f"compare: {b} is not better than {a} on {first.metric}; it should not replace it.")


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
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the bundle that serving reads: weights, ONNX encoder, exact index, catalogue, hashes of all.

    Examples: `recsys export runs/sasrec --out bundles/sasrec`,
    `recsys export runs/sasrec --ranker runs/dare --out bundles/two-stages`
    """
    from pipelines.export import ExportConfig
    from pipelines.export import export as write
    from pipelines.export_ranker import RankingConfig

    given = {"candidates": candidates, "weight": rank_weight}
    ranking = RankingConfig(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    config = ExportConfig(run=run, out=out, overwrite=overwrite, ranker=ranker, ranking=ranking)
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
    bundle: Annotated[str, typer.Argument(help="Bundle folder, or models:/NAME@ALIAS.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    state: Annotated[Path | None, typer.Option(help="SQLite file with the users' histories.")] = None,
) -> None:
    """Serve a bundle over HTTP, with a page at /.

    Examples: `recsys serve bundles/sasrec`, `recsys serve models:/recsys@champion --port 8080`
    """
    from recsys.registry import URI_PREFIX, fetch_bundle
    from serving.run import serve as run

    run(fetch_bundle(bundle) if bundle.startswith(URI_PREFIX) else Path(bundle), host=host, port=port, state=state)


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


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`a=b` texts as a mapping."""
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"{option} {text}: expected name=column.")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`10,20` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers such as 10,20.") from None


def main() -> None:
    """Runs the command; an error becomes one line on standard error and an exit code, or with --debug a traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        typer.echo(f"error: {explained(error)}", err=True)
        sys.exit(error.exit_code if isinstance(error, RecsysError) else 1)


if __name__ == "__main__":
    main()
