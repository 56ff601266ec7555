"""Commands from logs to prepared data; each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.options import LOCAL_MASTER, EngineOption, Json, Master, Overwrite, Seed, pairs
from pipelines.printing import finish, print_figures, print_json
from pipelines.reporter import Reporter
from recsys.errors import ConfigError

app = typer.Typer()


@app.command()
def ingest(
    context: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(help="Log files, folders or quoted patterns; .gz and .zst too.", show_default=False)
    ],
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
        Literal["auto", "s", "ms", "us", "ns", "min", "iso", "yyyymmdd", "mmdd"],
        typer.Option(help="Unit of the timestamps."),
    ] = "auto",
    items: Annotated[Path | None, typer.Option(help="Item table with titles and other attributes.")] = None,
    items_map: Annotated[list[str], typer.Option(help="attribute=column of the item table.")] = [],  # noqa: B006
    duplicates: Annotated[
        Literal["drop", "keep"], typer.Option(help="What to do with exact repeats of an event.")
    ] = "drop",
    engine: EngineOption = "polars",
    master: Master = LOCAL_MASTER,
    max_rejected: Annotated[
        str | None,
        typer.Option(help="Most rows that may be no events, 1% or 100; beyond, exit code 3. Duplicates do not count."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that may be used, such as 4GB; the rest goes to disk. No limit by default."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add the sources to the dataset in --out, read as its others were.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Read logs into a validated dataset; rows that are no events are kept in rejected.parquet.

    Examples: `recsys ingest logs/*.csv.gz --map user_id=uid --map item_id=sku --out data/shop`,
    `recsys ingest logs/2026-03-02.csv.gz --append --out data/shop`
    """
    from pipelines.append import append as add
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
        engine=engine,
        master=master,
        max_rejected=max_rejected,
        memory=memory,
        overwrite=overwrite,
    )
    if append and engine == "spark":
        raise ConfigError("--append works by the Polars engine, which touches the new rows alone; leave --engine out.")
    dataset = add(config, out, Reporter(), named_settings(context)) if append else run(config, Reporter())
    finish(out, dataset.manifest, as_json)


def named_settings(context: typer.Context) -> set[str]:
    """Fields of `IngestConfig` whose options stand in the command, be it with their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    named = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    fields = {"map": "mapping", "items_map": "items_mapping"}
    return {fields.get(name, name) for name in named}


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
    repeats: Annotated[
        Literal["keep", "collapse"], typer.Option(help="collapse: of a run of the same item the first event stays.")
    ] = "keep",
    session_gap: Annotated[
        float, typer.Option(help="Minutes without an event that end a session; each session is a history. 0: none.")
    ] = 0.0,
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
    engine: EngineOption = "polars",
    master: Master = LOCAL_MASTER,
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
        repeats=repeats,
        session_gap=session_gap,
        seen=seen,
        extend=extend,
        retire=retire,
        engine=engine,
        master=master,
        overwrite=overwrite,
    )
    finish(out, run(config).manifest, as_json)


@app.command()
def describe(
    data: Annotated[Path, typer.Argument(help="Output of `recsys ingest` or `recsys prepare`.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option(help="Where the HTML card goes; card.html in the folder by default.")
    ] = None,
    card: Annotated[bool, typer.Option(help="Write the HTML card (extra `report`).")] = True,
    as_json: Json = False,
) -> None:
    """Say what a dataset or prepared data is like, warn of known traps, and draw it all on an HTML card.

    Examples: `recsys describe data/shop`, `recsys describe data/shop-prepared --report shop.html`
    """
    from pipelines.describe import card_lines, describe_folder

    found = describe_folder(data)
    page = report or data / "card.html"
    if card:
        from pipelines.dataset_card import write_card

        write_card(page, found)
    if as_json:
        print_json({**found.figures(), "card": str(page) if card else None})
        return
    for line in card_lines(found):
        typer.echo(line)
    if card:
        typer.echo(f"card: {page}")


@app.command()
def embed(
    data: Annotated[
        Path, typer.Argument(help="Output of `recsys ingest` or `recsys prepare`, with texts.", show_default=False)
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Folder of a Hugging Face model, or its hub name; the installed MiniLM by default. With --endpoint "
            "the model's name there."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Server of the OpenAI API whose /embeddings encodes: http://127.0.0.1:8000/v1.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Numbers of a vector, where the server is to give fewer than it could.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = (
        "RECSYS_LLM_API_KEY"
    ),
    requests_per_minute: Annotated[float | None, typer.Option(help="Most requests a minute, of 64 texts each.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Most tokens a minute.")] = None,
    pooling: Annotated[
        Literal["mean", "last"], typer.Option(help="Mean of the last states (encoders) or the last token (decoders).")
    ] = "mean",
    as_json: Json = False,
) -> None:
    """Encode all item texts into the store of vectors (RECSYS_TEXT_VECTORS), each once: what is there is not encoded
    again, and a run that was killed goes on.

    Examples: `recsys embed data/shop-prepared`, `recsys embed data/shop --encoder models/e5 --pooling last`,
    `recsys embed data/shop --endpoint http://127.0.0.1:8000/v1 --encoder BAAI/bge-m3`
    """
    from pipelines.embed import EmbedConfig
    from pipelines.embed import embed as run

    server = None
    if endpoint is not None:
        from recsys.llm.endpoint import EndpointConfig

        server = EndpointConfig(
            url=endpoint,
            api_key_env=api_key_env,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    config = EmbedConfig(
        data=data, encoder=encoder, revision=revision, pooling=pooling, endpoint=server, dimensions=dimensions
    )

    print_figures(run(config, Reporter()), as_json)


@app.command()
def denoise(
    dataset: Annotated[Path, typer.Argument(help="Output of `recsys ingest`; it stays as it is.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the denoised view, a dataset too.", show_default=False)],
    detector: Annotated[
        Literal["outlier", "critic", "llm"],
        typer.Option(help="What judges: co-occurrence and text, a small trained network, or a language model."),
    ] = "critic",
    action: Annotated[
        Literal["replace", "drop", "weight"],
        typer.Option(help="Put in an item that fits, leave out, or let events count by the chance that they are none."),
    ] = "drop",
    precision: Annotated[
        float, typer.Option(help="Share of noise that corrections must reach on injected noise.")
    ] = 0.7,
    noise_rate: Annotated[float, typer.Option(help="Share of noise that the log is assumed to hold.")] = 0.1,
    doubtful: Annotated[
        float | None,
        typer.Option(help="Share of windows that reach the detector, by a cheaper one; llm: 0.2, critic: all."),
    ] = None,
    window: Annotated[int, typer.Option(help="Events that are judged beside each other.")] = 11,
    texts: Annotated[bool, typer.Option(help="Look at item texts.")] = True,
    encoder: Annotated[str | None, typer.Option(help="Text encoder; the installed MiniLM by default.")] = None,
    encoder_revision: Annotated[str | None, typer.Option(help="Commit of a hub encoder.")] = None,
    llm: Annotated[
        str | None, typer.Option(help="Causal Hugging Face model for --detector llm: folder or hub name.")
    ] = None,
    llm_revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    llm_targets: Annotated[str, typer.Option(help="Modules that get LoRA adapters.")] = "q_proj,v_proj",
    llm_windows: Annotated[int, typer.Option(help="Windows of an epoch of fine-tuning.")] = 5000,
    llm_epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning.")] = 10,
    max_corrections: Annotated[int, typer.Option(help="Most corrections of a user.")] = 3,
    max_share: Annotated[float, typer.Option(help="Largest share of a user's events that is corrected.")] = 0.2,
    protect_last: Annotated[int, typer.Option(help="Newest training events of a user that stay.")] = 1,
    protect_rare: Annotated[int, typer.Option(help="Items with fewer training events stay.")] = 0,
    split: Annotated[
        Literal["time", "last-item"], typer.Option(help="As for `recsys prepare`: only training events are changed.")
    ] = "time",
    validation_share: Annotated[float, typer.Option(help="Share of the events in validation (split by time).")] = 0.1,
    test_share: Annotated[float, typer.Option(help="Share of the events in test (split by time).")] = 0.1,
    validation_from: Annotated[str | None, typer.Option(help="ISO instant, UTC; in place of shares.")] = None,
    test_from: Annotated[str | None, typer.Option(help="ISO instant, UTC; in place of shares.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a view of a dataset in which the training events that are most likely noise are corrected.

    Examples: `recsys denoise data/shop --out data/shop-clean`,
    `recsys denoise data/shop --action weight --out data/shop-weighed`
    """
    from models.noise_llm import NoiseLlmConfig
    from pipelines.denoise import DenoiseConfig
    from pipelines.denoise import denoise as run
    from recsys.corrections import Limits

    model = None
    if llm is not None:
        model = NoiseLlmConfig(
            source=llm,
            revision=llm_revision,
            length=window,
            targets=tuple(name.strip() for name in llm_targets.split(",")),
            windows=llm_windows,
            epochs=llm_epochs,
        )
    config = DenoiseConfig(
        dataset=dataset,
        out=out,
        detector=detector,
        action=action,
        doubtful=doubtful,
        precision=precision,
        noise_rate=noise_rate,
        window=window,
        texts=texts,
        text_encoder=encoder,
        text_revision=encoder_revision,
        limits=Limits(
            max_corrections=max_corrections, max_share=max_share, protect_last=protect_last, protect_rare=protect_rare
        ),
        llm=model,
        split=split,
        validation_share=validation_share,
        test_share=test_share,
        validation_from=validation_from,
        test_from=test_from,
        seed=seed,
        overwrite=overwrite,
    )
    finish(out, run(config, Reporter()).manifest, as_json)
