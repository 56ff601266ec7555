"""Commands that ask language models; each imports what it needs when it is called."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipelines.options import Json, Seed, pairs
from pipelines.printing import finish, print_figures, print_json
from pipelines.reporter import Reporter
from recsys.errors import ConfigError

app = typer.Typer()


@app.command()
def enrich(
    dataset: Annotated[Path, typer.Argument(help="Output of `recsys ingest`.", show_default=False)],
    prompt: Annotated[Path, typer.Option(help="Text file; {title} is an item's column, {title:80} its first letters.")],
    schema: Annotated[Path, typer.Option(help="JSON schema of an answer.", show_default=False)],
    field: Annotated[list[str], typer.Option(help="Property of the schema that becomes a column; may be repeated.")],
    model: Annotated[str, typer.Option(help="As the server knows it; without --endpoint a folder or hub name.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new dataset.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Server of the OpenAI API: http://127.0.0.1:8000/v1.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit of a hub model; of a served one, whatever tells its weights apart.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = (
        "RECSYS_LLM_API_KEY"
    ),
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: the likeliest answer.")] = 0.0,
    seed: Seed = 0,
    constrained: Annotated[bool, typer.Option("--constrained", help="The server enforces the schema.")] = False,
    body: Annotated[list[str], typer.Option(help="Further fields of a request, name=value.")] = [],  # noqa: B006
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="An answer that was cut off may do, if it is valid.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls at a time.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Most tokens a minute, prompts and answers.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 120.0,
    price_prompt: Annotated[float, typer.Option(help="Money for a million tokens of prompts.")] = 0.0,
    price_cached: Annotated[
        float | None, typer.Option(help="Of prompts that the server had kept; by default the same.")
    ] = None,
    price_output: Annotated[float, typer.Option(help="Of answers.")] = 0.0,
    max_cost: Annotated[float | None, typer.Option(help="Most money of all answers; a hard stop.")] = None,
    max_total_tokens: Annotated[int | None, typer.Option(help="Most tokens of all answers; a hard stop.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer.json or its folder; else tokens are estimated.")
    ] = None,
    max_invalid: Annotated[float, typer.Option(help="Share of items without a valid answer above which it fails.")] = (
        0.01
    ),
    forget_failures: Annotated[
        bool, typer.Option("--forget-failures", help="Ask again what failed within the last day.")
    ] = False,
    sample: Annotated[int | None, typer.Option(min=1, help="Ask for so many items only and show the answers.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count tokens and cost; no call is made.")] = False,
    as_json: Json = False,
) -> None:
    """Let a language model write attributes of items: a prompt an item, checked answers, new columns of a new dataset.

    Every answer is kept (RECSYS_LLM_ANSWERS): a run that was stopped goes on, and a second one asks nothing.

    Example: `recsys enrich data/shop --prompt age.txt --schema age.json --field age --out data/shop-age
    --endpoint http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-7B-Instruct`
    """
    from pipelines.enrich import EnrichConfig, estimated, sampled
    from pipelines.enrich import enrich as run
    from pipelines.language_models import LanguageModelConfig
    from recsys.llm.budget import Limit, Prices
    from recsys.llm.calls import Sampling
    from recsys.llm.endpoint import EndpointConfig

    server = None
    if endpoint is not None:
        server = EndpointConfig(
            url=endpoint,
            api_key_env=api_key_env,
            timeout=timeout,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    extra = {name: yaml.safe_load(value) for name, value in pairs(body, "--body").items()}
    language_model = LanguageModelConfig(
        model=model,
        revision=revision,
        endpoint=server,
        sampling=Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed, extra=extra),
        constrained=constrained,
        allow_truncated=allow_truncated,
        prices=Prices(prompt=price_prompt, cached=price_cached, output=price_output),
        limit=Limit(tokens=max_total_tokens, cost=max_cost),
        tokenizer=tokenizer,
        forget_failures=forget_failures,
    )
    config = EnrichConfig(
        dataset=dataset,
        prompt=prompt,
        schema=schema,
        fields=tuple(field),
        language_model=language_model,
        max_invalid=max_invalid,
    )
    if dry_run:
        print_figures(estimated(config).figures(), as_json)
    elif sample is not None:
        _show(sampled(config, sample, Reporter()), as_json)
    elif out is None:
        raise ConfigError("--out: name the folder of the new dataset (or --sample N, --dry-run, which write none).")
    else:
        finish(out, run(config, out, Reporter()).manifest, as_json)


def _show(answers: list[dict[str, Any]], as_json: bool) -> None:
    """Answers of a sample, a block an item."""
    if as_json:
        print_json({"answers": answers})
        return
    for answer in answers:
        problem = "" if answer["problem"] is None else f" ({answer['problem']})"
        value = json.dumps(answer["answer"], ensure_ascii=False)
        typer.echo(f"{answer['item_id']}: {answer['how']}: {value}{problem}")
