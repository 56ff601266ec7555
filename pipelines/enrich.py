"""`recsys enrich`: attributes of items that a language model writes, as new columns of a new dataset."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl

from pipelines.language_models import LanguageModelConfig, open_job
from pipelines.reporter import Reporter
from recsys.errors import ConfigError, DataError, GateError
from recsys.llm.calls import Call
from recsys.llm.estimates import Estimate, estimate
from recsys.llm.job import Job, Outcome
from recsys.llm.prompts import VERSION, PromptTemplate, read_template
from recsys.llm.structured import AnswerSchema, read_schema
from recsys.schema import Dataset, Items, open_dataset
from recsys.steps import writing_step

ANSWERS = "answers.parquet"
NOTHING_TO_ASK = "nothing to ask"
SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class EnrichConfig:
    """Settings of `recsys enrich`: `fields` of the schema become columns; `max_invalid` is a share of what is asked."""

    dataset: Path
    prompt: Path
    schema: Path
    fields: tuple[str, ...]
    language_model: LanguageModelConfig
    max_invalid: float = 0.01

    def __post_init__(self) -> None:
        if not self.fields:
            raise ConfigError("enrich: no field was named; give at least one property of the schema with --field.")
        if doubled := [name for name, times in Counter(self.fields).items() if times > 1]:
            raise ConfigError(f"--field {doubled[0]}: given more than once.")
        if not 0 <= self.max_invalid <= 1:
            raise ConfigError(f"--max-invalid {self.max_invalid}: must lie in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class Prompts(Sequence[Call]):
    """One call an item, written when it is looked at."""

    items: pl.DataFrame
    template: PromptTemplate
    schema: AnswerSchema
    config: LanguageModelConfig

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, number: int) -> Call: ...
    @overload
    def __getitem__(self, number: slice) -> "Prompts": ...
    def __getitem__(self, number: int | slice) -> "Call | Prompts":
        if isinstance(number, slice):
            raise TypeError("one call at a time")
        if not 0 <= number < len(self.items):
            raise IndexError(number)
        return Call(
            messages=self.template.messages(self.items.row(number, named=True), self.schema),
            sampling=self.config.sampling,
            schema=self.schema.content,
            constrained=self.config.constrained,
            template=VERSION,
        )


@dataclass(frozen=True, kw_only=True)
class Enrichment:
    """Everything that is fixed before the first call; `asked` are rows of the item table."""

    dataset: Dataset
    items: pl.DataFrame
    asked: list[int]
    template: PromptTemplate
    schema: AnswerSchema
    job: Job
    config: EnrichConfig

    def prompts(self, rows: Sequence[int]) -> Prompts:
        """Of these rows of the item table."""
        return Prompts(
            items=self.items[list(rows)],
            template=self.template,
            schema=self.schema,
            config=self.config.language_model,
        )


def enrich(config: EnrichConfig, out: Path, reporter: Reporter) -> Dataset:
    """The dataset with the new columns in `out`; run again after it was stopped, it asks only what is not answered."""
    enrichment, settings = prepare_enrichment(config), {**asdict(config), "out": out}
    inputs = [config.dataset, config.prompt, config.schema]
    with closing(enrichment.job), writing_step("ingest", out, config=settings, inputs=inputs) as step:
        began = time.monotonic()
        outcomes = ask(enrichment, enrichment.asked, reporter)
        seconds = time.monotonic() - began
        figures = counts_of(enrichment, outcomes) | {"paid": enrichment.job.account.figures(seconds)}
        refuse_invalid(outcomes, config.max_invalid)
        items, answers = with_answers(enrichment, outcomes)
        shutil.copytree(enrichment.dataset.folder / "events", step.folder / "events")
        if (rejected := enrichment.dataset.folder / "rejected.parquet").is_file():
            shutil.copy(rejected, step.folder)
        Items.validate(items.select("item_id"))
        items.write_parquet(step.folder / "items.parquet")
        answers.write_parquet(step.folder / ANSWERS)
        step.counts.update({**enrichment.dataset.manifest["counts"], "enrichment": figures})
    return open_dataset(out)


def sampled(config: EnrichConfig, count: int, reporter: Reporter) -> list[dict[str, Any]]:
    """Answers for `count` items from all over the table; they are kept, so that the job will not ask them again."""
    enrichment = prepare_enrichment(config)
    places = np.linspace(0, len(enrichment.asked) - 1, min(count, len(enrichment.asked))).astype(int)
    rows = [enrichment.asked[place] for place in places]
    with closing(enrichment.job):
        outcomes = ask(enrichment, rows, reporter)
    ids = enrichment.items["item_id"]
    return [
        {"item_id": ids[row], "how": outcome.how, "answer": outcome.value, "problem": outcome.problem}
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


def estimated(config: EnrichConfig) -> Estimate:
    """Tokens and cost of what is not answered yet, without a call."""
    enrichment = prepare_enrichment(config)
    with closing(enrichment.job):
        return estimate(enrichment.job, enrichment.prompts(enrichment.asked))


def prepare_enrichment(config: EnrichConfig) -> Enrichment:
    """Reads and checks all inputs against each other."""
    dataset = open_dataset(config.dataset)
    items, schema = dataset.items(), read_schema(config.schema)
    texts = [name for name, dtype in items.schema.items() if dtype in {pl.String, pl.List(pl.String)}]
    if unknown := [name for name in config.fields if name not in schema.properties]:
        raise ConfigError(
            f"--field {unknown[0]}: is no property of {config.schema}; it has {', '.join(schema.properties) or 'none'}."
        )
    if taken := [name for name in config.fields if name in items.columns]:
        raise ConfigError(
            f"--field {taken[0]}: the items have such a column already, which would be overwritten; give the property "
            f"of {config.schema} another name."
        )
    template = read_template(config.prompt, texts)
    asked = [number for number, item in enumerate(items.iter_rows(named=True)) if template.applies(item)]
    if not asked:
        raise DataError(f"enrich: no item of {config.dataset} has a text in the columns that {config.prompt} reads.")
    return Enrichment(
        dataset=dataset,
        items=items,
        asked=asked,
        template=template,
        schema=schema,
        job=open_job(config.language_model, schema),
        config=config,
    )


def ask(enrichment: Enrichment, rows: Sequence[int], reporter: Reporter) -> list[Outcome]:
    """Of these items, with progress."""
    account = enrichment.job.account
    with reporter.task("enrich", len(rows)) as advance:

        def done(count: int) -> None:
            advance(count, f"{account.calls} calls, {account.retries} retries, cost {account.cost:.4f}")

        return enrichment.job.ask_all(enrichment.prompts(rows), done)


def refuse_invalid(outcomes: Sequence[Outcome], most: float) -> None:
    """The gate: more invalid answers than allowed."""
    invalid = [outcome for outcome in outcomes if not outcome.valid]
    if len(invalid) > most * len(outcomes):
        problems = Counter(outcome.problem for outcome in invalid).most_common(SHOWN_PROBLEMS)
        told = "; ".join(f"{times} x {problem}" for problem, times in problems)
        raise GateError(
            f"enrich: {len(invalid)} of {len(outcomes)} items have no valid answer ({told}), more than the share of "
            f"{most:g} allowed. All answers are kept: change prompt or schema, or allow more with --max-invalid."
        )


def counts_of(enrichment: Enrichment, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What came of the items, and where the answers come from."""
    how = Counter(outcome.how for outcome in outcomes)
    invalid = sum(not outcome.valid for outcome in outcomes)
    return {
        "fields": list(enrichment.config.fields),
        "asked": len(outcomes),
        NOTHING_TO_ASK.replace(" ", "_"): len(enrichment.items) - len(outcomes),
        **{name.replace(" ", "_"): how[name] for name in ("strict", "extracted", "asked again", "invalid", "refused")},
        "invalid_share": round(invalid / len(outcomes), 6),
        "model": enrichment.job.llm.identity,
        "prompt_sha256": enrichment.template.sha256,
        "schema_sha256": enrichment.schema.sha256,
        "template_version": VERSION,
    }


def with_answers(enrichment: Enrichment, outcomes: Sequence[Outcome]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The item table with a column a field, and the table of what came of every item."""
    by_row: dict[int, Outcome] = dict(zip(enrichment.asked, outcomes, strict=True))
    all_outcomes = [by_row.get(row) for row in range(len(enrichment.items))]
    values = [outcome.value or {} if outcome is not None else {} for outcome in all_outcomes]
    columns = [column_of(name, enrichment.schema.properties[name], values) for name in enrichment.config.fields]
    answers = pl.DataFrame(
        {
            "item_id": enrichment.items["item_id"],
            "how": [NOTHING_TO_ASK if outcome is None else outcome.how for outcome in all_outcomes],
            "problem": [None if outcome is None else outcome.problem for outcome in all_outcomes],
            "answer": [json.dumps(value, ensure_ascii=False) if value else None for value in values],
        },
        schema_overrides={"problem": pl.String, "answer": pl.String},
    )
    return enrichment.items.with_columns(columns), answers


def column_of(name: str, schema: Any, values: Sequence[Mapping[str, Any]]) -> pl.Series:
    """Lists of texts stay lists; everything else is text, as in every item table."""
    found = [value.get(name) for value in values]
    entries = schema.get("items") if isinstance(schema, Mapping) and schema.get("type") == "array" else None
    if isinstance(entries, Mapping) and entries.get("type") == "string":
        return pl.Series(name, found, dtype=pl.List(pl.String))
    return pl.Series(name, [as_text(value) for value in found], dtype=pl.String)


def as_text(value: Any) -> str | None:
    """Texts as they are, all else in JSON; null stays null."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
