"""A projection head beside beam search by the same transformer: `python -m benchmarks.beam_search RUN [--work DIR]`.

RUN is a finished `lite-llm4rec` run with blocks of its own. Its config is trained anew as a generator of id tokens
(`benchmarks.generative_ids`), kept under DIR, on the same windows for as many epochs as the run took, with its dropout
and others; the one that is best on the validation part ranks the test part beside the run. Time: one thread, no
gradients, the 20 best, in turn, median; the transformer under the beam has the very weights of the head's. Writes
docs/beam-search.md and the numbers beside it.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.generative_ids import CopiedPast, GenerativeIds, IdTokens
from models.lite_llm4rec import BLOCKS, LiteLLM4Rec
from models.registry import build_config
from pipelines.loading import no_history, run_model
from pipelines.reporter import Reporter
from pipelines.validation import WATCHED, watched_cases
from recsys.batches import TrainingWindows
from recsys.contracts import CatalogScorer
from recsys.evaluation import mean_metrics, rank_cases
from recsys.item_text import item_texts
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.runs import WEIGHTS, Run, open_run
from recsys.steps import git_commit, write_json, write_text
from recsys.text_vectors import SentenceEncoder
from recsys.training import Trainer, TrainingConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEVELS, SIZE, BEAM, FOUND = 4, 64, 20, 20
VALIDATION_CASES = 2000
LENGTHS, BATCH, USERS, BATCHES = (5, 20, 50), 32, 60, 8
ENCODED_TEXTS = 128


def main() -> None:
    """Trains what is missing, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/beam-search"), help="where the generator is kept")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.5, 0.2], help="of the generator, one each")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of page and numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(arguments.run)
    prepared = run.prepared()
    resolved, model = run_model(run, prepared)
    if not isinstance(model, LiteLLM4Rec) or resolved.values.backbone != BLOCKS:
        raise SystemExit(f"beam_search: {arguments.run} is no lite-llm4rec run with model.backbone=blocks.")
    tokens = IdTokens.of_vectors(model.texts.features.numpy(), LEVELS, SIZE)
    generators = [trained_generator(run, prepared, model, tokens, rate, arguments.work) for rate in arguments.dropouts]
    generator, training = max(generators, key=lambda trained: trained[1][WATCHED])
    figures = {
        "items": prepared.catalog.num_items,
        "token_sizes": list(tokens.sizes),
        "parameters": {"blocks": count(model.blocks), "head": count(model), "beam": count(generator)},
        "training": {"head": training_of(run), "beam": training},
        "generators": [figures for _, figures in generators],
        "quality": quality(prepared, model, generator, no_history(prepared, run.fit_on).scores),
        "milliseconds": milliseconds(model, tokens),
        "item_cache": item_cache_seconds(model, prepared),
        "data": prepared.manifest["config"]["dataset"].split("/")[-2],
        "config": asdict(model.config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "torch": torch.__version__,
    }
    write_json(arguments.out / "beam-search.json", figures)
    write_text(arguments.out / "beam-search.md", page(figures))
    print((arguments.out / "beam-search.md").read_text(encoding="utf-8"))


def trained_generator(
    run: Run, prepared: Prepared, model: LiteLLM4Rec, tokens: IdTokens, dropout: float, work: Path
) -> tuple[GenerativeIds, dict[str, float]]:
    """By the run's own training section, for as many epochs; an interrupted training goes on."""
    folder = work / f"dropout-{dropout}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.config["seed"])
    generator = GenerativeIds(replace(model.config, dropout=dropout), tokens, BEAM)
    budget = {"epochs": run.manifest["counts"]["epochs"]}
    config = build_config(TrainingConfig, run.config["training"] | budget, "training")
    events = prepared.training_events()
    windows = TrainingWindows.cut(events.stops, generator.window)
    trainer = Trainer(generator, prepared.store, windows, config, run.config["seed"], folder)
    trainer.resume()
    cases = watched_cases(prepared, VALIDATION_CASES)

    def validate() -> dict[str, float]:
        generator.eval()
        return figures_of(generator, prepared, cases)

    reporter = Reporter()
    with reporter.task("train the generator", config.epochs * trainer.batches_per_epoch) as advance:
        advance(trainer.progress.step)
        trainer.fit(
            validate,
            WATCHED,
            lambda epoch: advance(0, f"epoch {epoch['epoch']} loss {epoch['loss']:.4f} {WATCHED} {epoch[WATCHED]:.4f}"),
            lambda: advance(1),
        )
    save_file(generator.state_dict(), folder / WEIGHTS)
    progress = trainer.progress
    return generator.eval(), {
        "dropout": dropout,
        WATCHED: progress.best_metric,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": round(progress.seconds, 1),
    }


def training_of(run: Run) -> dict[str, float]:
    """The same figures of the head's run."""
    counts = run.manifest["counts"]
    return {
        "epochs": counts["epochs"],
        "best_epoch": counts["best_epoch"],
        "seconds": round(counts["training_seconds"], 1),
    }


def count(module: Any) -> int:
    """Learned numbers."""
    return sum(weight.numel() for weight in module.parameters())


def figures_of(scorer: CatalogScorer, prepared: Prepared, cases: pl.DataFrame) -> dict[str, float]:
    """By full ranking, as `recsys evaluate`: an item outside the beam is a miss."""
    ranked = rank_cases(scorer, prepared.store, cases, prepared.catalog.num_rows, prepared.seen, (10,))
    return mean_metrics(ranked.cases, (10,))


def quality(
    prepared: Prepared, model: LiteLLM4Rec, generator: GenerativeIds, fallback: Tensor
) -> dict[str, dict[str, float]]:
    """Of the test cases with a history."""
    cases = prepared.cases("test").filter(pl.col("history_length") > 0)
    scorers: dict[str, CatalogScorer] = {"head": RetrieverScorer(model, fallback), f"beam {BEAM}": generator}
    return {name: figures_of(scorer, prepared, cases) for name, scorer in scorers.items()}


@dataclass(frozen=True)
class Way:
    """One way from histories of a length to the 20 best items."""

    name: str
    answer: Callable[[Tensor], object]
    share: float = 1.0
    """Of the batches that are enough."""


def ways(model: LiteLLM4Rec, tokens: IdTokens) -> list[Way]:
    """The head, and beams over T tokens and over one token an item, all with the same transformer; and a library's."""
    blocks, inputs, vectors = model.blocks, model.items.weight.detach(), model.item_vectors().detach()
    assert blocks is not None
    shared, copied = (GenerativeIds.with_weights_of(model, tokens, BEAM) for _ in range(2))
    copied.past = CopiedPast
    one = GenerativeIds.with_weights_of(model, IdTokens.of_rows(model.config.num_items), BEAM)

    def by_head(items: Tensor) -> object:
        x = model._input(inputs[items])
        states, _ = blocks.last(x, torch.full((len(items),), items.shape[1]), causal=True)
        return (model.predictions(states) @ vectors.T).topk(FOUND, dim=1)

    return [
        Way("head", by_head),
        Way("beam, shared history", shared.generate),
        Way("beam, copied history", copied.generate, share=0.4),
        Way("beam, one token an item", one.generate),
        Way("transformers' generate", library_beam(model, tokens), share=0.1),
    ]


def library_beam(model: LiteLLM4Rec, tokens: IdTokens) -> Callable[[Tensor], object]:
    """What public code of P5's kind calls: a decoder of the same sizes (Llama), and a trie that is asked by prefix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config, levels = model.config, len(tokens.sizes)
    codes = tokens.codes + np.cumsum([0, *tokens.sizes[:-1]])
    decoder: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sum(tokens.sizes),
            hidden_size=config.embedding_dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_blocks,
            num_attention_heads=config.num_heads,
            max_position_embeddings=levels * (config.max_len + 1),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    decoder.train(False)
    allowed: dict[tuple[int, ...], set[int]] = {}
    for row in codes[1:].tolist():
        for level in range(levels):
            allowed.setdefault(tuple(row[:level]), set()).add(row[level])
    following = {prefix: sorted(found) for prefix, found in allowed.items()}
    table = torch.from_numpy(codes)

    def generate(items: Tensor) -> object:
        history = table[items].flatten(1)
        return decoder.generate(
            history,
            attention_mask=torch.ones_like(history),
            num_beams=BEAM,
            num_return_sequences=FOUND,
            max_new_tokens=levels,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, read: following[tuple(read[history.shape[1] :].tolist())],
        )

    return generate


@torch.no_grad()
def milliseconds(model: LiteLLM4Rec, tokens: IdTokens) -> list[dict[str, Any]]:
    """A user's share, by length of history and by how many are asked for at once."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for length in (length for length in LENGTHS if length <= model.max_len):
        for users, repeats in ((1, USERS), (BATCH, BATCHES)):
            batches = [
                torch.randint(1, model.config.num_items + 1, (users, length), generator=generator)
                for _ in range(repeats)
            ]
            each = in_turn(ways(model, tokens), batches)
            rows.append({"length": length, "users": users, **{name: 1e3 * s / users for name, s in each.items()}})
    return rows


def in_turn(all_ways: list[Way], batches: list[Tensor]) -> dict[str, float]:
    """Median seconds of a batch, the first ones not counted."""
    taken: dict[str, list[float]] = {way.name: [] for way in all_ways}
    for batch in batches:
        for way in (way for way in all_ways if len(taken[way.name]) < way.share * len(batches)):
            began = time.perf_counter()
            way.answer(batch)
            taken[way.name].append(time.perf_counter() - began)
    return {name: float(np.median(seconds[len(seconds) // 10 :])) for name, seconds in taken.items()}


@torch.no_grad()
def item_cache_seconds(model: LiteLLM4Rec, prepared: Prepared) -> dict[str, float]:
    """What is done once and not for a request: texts by the item LLM (a sample of them), then the adapter."""
    texts = [text for text in item_texts(prepared.items) if text][:ENCODED_TEXTS]
    encoder = SentenceEncoder(model.config.text_encoder, model.config.text_revision, pooling=model.config.text_pooling)
    encoder.encode(texts[:64])
    began = time.perf_counter()
    for first in range(0, len(texts), 64):
        encoder.encode(texts[first : first + 64])
    each = (time.perf_counter() - began) / len(texts)
    began = time.perf_counter()
    model.item_vectors()
    return {"milliseconds_a_text": 1e3 * each, "adapter_seconds": time.perf_counter() - began}


def page(figures: dict[str, Any]) -> str:
    """Tables and provenance."""
    times: list[dict[str, Any]] = figures["milliseconds"]
    names = [name for name in times[0] if name not in {"length", "users"}]
    cache, items, config = figures["item_cache"], figures["items"], figures["config"]
    sizes = ", ".join(map(str, figures["token_sizes"]))
    return "\n".join([
        "# Projection head and beam search",
        "",
        f"Written by `python -m benchmarks.beam_search`; do not edit. Data: {figures['data']}, {items:,} items. The",
        f"same transformer ({config['num_blocks']} block, width {config['embedding_dim']}, "
        f"{figures['parameters']['blocks']:,} parameters) answers in two ways: one vector",
        "an item and a product with all item vectors (`head`), or",
        f"{len(figures['token_sizes'])} id tokens an item (residual k-means of its text vector: {sizes} codes)",
        f"and a beam of {BEAM} that a trie of the catalogue guides.",
        "",
        "## Quality",
        "",
        "Test part, full ranking, items of the history left out; an item that the beam did not reach is a miss. Same",
        "windows, batches, rate, epochs and rule of stopping. Seconds of training are of a machine shared with other",
        f"work. The beam's dropout is the best on {VALIDATION_CASES:,} validation cases: "
        + ", ".join(f"{tried['dropout']} has NDCG@10 {tried[WATCHED]:.4f}" for tried in figures["generators"])
        + ".",
        "",
        "| | NDCG@10 | HR@10 | epochs (best) | seconds of training |",
        "|---|---|---|---|---|",
        *(quality_row(name, row, figures["training"]) for name, row in figures["quality"].items()),
        "",
        "## Milliseconds a user",
        "",
        f"The {FOUND} best items, torch, one thread, float32, median, the first tenth not counted; the ways take",
        "turns. All but the library have the weights of the head's transformer. `shared history`: prefixes look at one",
        "copy of the history's keys and values; `copied history`: each has its own, as libraries for texts do it.",
        "`one token an item`: the head's own ranking by the road of the beam. `transformers' generate`: what public",
        "code of this kind calls, on a Llama of the same sizes with fresh weights.",
        "",
        *table(names, times, lambda row, name: f"{row[name]:.3f}"),
        "",
        "What the head saves of it:",
        "",
        *table(names[1:], times, lambda row, name: f"{1 - row[names[0]] / row[name]:.1%}"),
        "",
        "## Once, and not for a request",
        "",
        f"Texts to vectors: {cache['milliseconds_a_text']:.1f} ms each, "
        f"{cache['milliseconds_a_text'] * items / 1e3:.0f} s for all {items:,} (one thread); adapter and head:",
        f"{cache['adapter_seconds']:.2f} s. The beam's codes need the same vectors.",
        "",
        f"{figures['created'][:10]}, 2 cores shared with other work, no accelerator, commit "
        f"{str(figures['commit'] or 'unknown')[:12]}, torch {figures['torch']}.",
        "",
    ])


def table(names: list[str], rows: list[dict[str, Any]], cell: Callable[[dict[str, Any], str], str]) -> list[str]:
    """By length of history and number of users."""
    return [
        "| events | users at once | " + " | ".join(names) + " |",
        "|---" * (2 + len(names)) + "|",
        *(
            f"| {row['length']} | {row['users']} | " + " | ".join(cell(row, name) for name in names) + " |"
            for row in rows
        ),
    ]


def quality_row(name: str, row: dict[str, float], training: dict[str, dict[str, float]]) -> str:
    """One way."""
    spent = training["head" if name == "head" else "beam"]
    return (
        f"| {name} | {row['ndcg@10']:.4f} | {row['hit_rate@10']:.4f} | {spent['epochs']} ({spent['best_epoch']}) | "
        f"{spent['seconds']:,.0f} |"
    )


if __name__ == "__main__":
    main()
