"""DARE: decoupled attention and representation embeddings for long histories (Feng et al., ICLR 2025, 2410.02604).

Reference: thuml/DARE. A ranker: for each candidate, stage 1 searches the history for the events that matter, stage 2
attends to them; a network says how likely a click is. DARE has two tables for every field, one that decides what is
attended to and one for what it then says. Its rivals differ from it in one setting, `method`, and in nothing else:

    dare            two sets of tables; scores of stage 2 also search                   arXiv:2410.02604
    twin            one set                                                             TWIN, KDD 2023
    twin-projected  one set, a matrix for each field and role                           DARE's "TWIN w/ proj."
    twin-4e         four sets: query, key, candidate, event                             DARE's "TWIN-4E"
    twin-v2         one set; similar events stand as one, with the log of their number  TWIN-V2, CIKM 2024
    din             one set; a small network scores all events, no search               DIN, KDD 2018
    sim-hard        one set; events of the candidate's category                         SIM, CIKM 2020
    sim-soft        one set; a learned product searches, by a loss of its own           the same
    eta             one set; SimHash bits in common search                              arXiv:2108.04468
    sdim            one set; an event counts for the share of hashes that collide       CIKM 2022
    last-k, random-k, mean                                                              baselines
Deviates on purpose (docs/decisions/dare.md): LayerNorm of each part in place of BatchNorm over the batch, one logit,
padding never attended to, a window of a history trains several candidates at several places in one pass.
Dimensions: B histories, C candidates, L events, P targets a history, K kept events, S semantic width, V vector width.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.batches import Histories, TrainBatch, WindowShape, next_item_batch, some_targets, target_places
from recsys.click_networks import ActivationUnit, ClickHead
from recsys.contracts import PrefixEncoder
from recsys.errors import ConfigError
from recsys.event_fields import Attended, FieldMaps, FieldRows, FieldTables, Role, Seen, masked_softmax
from recsys.event_search import (
    AttentionSearch,
    CategorySearch,
    HashSearch,
    LatestSearch,
    Lookup,
    ProductSearch,
    RandomSearch,
    SimHash,
    clustered,
    kept,
    recency,
)
from recsys.negatives import Negatives, PopularNegatives
from recsys.retriever_negatives import RetrieverNegatives
from recsys.sequences import IntArray, Windows

Method = Literal[
    "dare",
    "twin",
    "twin-projected",
    "twin-4e",
    "twin-v2",
    "din",
    "sim-hard",
    "sim-soft",
    "eta",
    "sdim",
    "last-k",
    "random-k",
    "mean",
]
ROLES = ("query", "key", "candidate", "event")
TABLES = {"dare": ("attention", "attention", "representation", "representation"), "twin-4e": ROLES}
"""Which set of tables each role reads; one for all of them in every other method."""
ONE_SET = ("representation",) * 4
AUXILIARY_WIDTH = 200


@dataclass(frozen=True, kw_only=True)
class DAREConfig:
    """Sizes, method and training; `num_items` and `num_categories` come from the data.

    `embedding_dim` and `attention_dim` (0: the same) are widths of one field. Stage 1 keeps `kept` events. `category`
    is a column of the item table, of a list its first entry; "" leaves the field out. `recent` above 0 also attends to
    so many latest events apart. `auxiliary` weighs the loss of a second head, which attends to all events (sim-soft:
    of the search). A training window teaches `positives` of its events, each beside `negatives` other items.
    """

    num_items: int
    num_categories: int = 0
    method: Method = "dare"
    max_len: int = 200
    kept: int = 20
    embedding_dim: int = 16
    attention_dim: int = 0
    category: str = "categories"
    time_buckets: int = 0
    target_aware: bool = True
    recent: int = 0
    auxiliary: float = 1.0
    hidden: tuple[int, ...] = (200, 80)
    l2: float = 1e-6
    positives: int = 20
    negatives: int = 2
    hash_bits: int = 48
    hash_width: int = 3
    cluster_bits: int = 5

    def __post_init__(self) -> None:
        for name in ("max_len", "kept", "embedding_dim", "positives", "negatives", "hash_width", "cluster_bits"):
            if getattr(self, name) < 1:
                raise ConfigError(f"DAREConfig: {name}={getattr(self, name)} must be at least 1.")
        for name in ("attention_dim", "time_buckets", "recent", "auxiliary", "l2"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"DAREConfig: {name}={getattr(self, name)} must be at least 0.")
        if self.attention_dim not in {0, self.embedding_dim} and self.method not in TABLES:
            raise ConfigError(
                f"DAREConfig: attention_dim={self.attention_dim} needs tables of its own, and method={self.method} has "
                f"none; choose one of {', '.join(TABLES)}, or leave it at 0."
            )
        if self.hash_bits < 1 or self.hash_bits % self.hash_width:
            raise ConfigError(
                f"DAREConfig: hash_bits={self.hash_bits} cannot be split into groups of hash_width={self.hash_width}; "
                "make the first a multiple of the second."
            )
        if self.method == "sim-soft" and not self.auxiliary:
            raise ConfigError("DAREConfig: method=sim-soft learns to search by model.auxiliary alone; set it above 0.")

    @property
    def searches_by_attention(self) -> bool:
        """Whether the scores of stage 2 decide what is kept, so that a head over all events teaches the search."""
        return self.method in {"dare", "twin", "twin-projected", "twin-4e", "twin-v2"}

    @property
    def has_auxiliary(self) -> bool:
        """Whether there is a second head."""
        return self.auxiliary > 0 and (self.searches_by_attention or self.method == "sim-soft")

    def width(self, tables: str) -> int:
        """Of a field in a set of tables."""
        return (
            self.attention_dim or self.embedding_dim if tables in {"attention", "query", "key"} else self.embedding_dim
        )


class Answers(NamedTuple):
    """Logits of a click."""

    clicks: Float[Tensor, "B C"]
    auxiliary: Float[Tensor, "B C"] | None


class DARE(nn.Module):
    """Searches a long history for each candidate, and ranks by what it finds."""

    category_of: Tensor

    def __init__(self, config: DAREConfig) -> None:
        super().__init__()
        self.config, self.max_len = config, config.max_len
        rows = FieldRows(
            items=config.num_items + 1,
            categories=config.num_categories + 1 if config.num_categories else 0,
            positions=config.max_len + 1,
            ages=config.time_buckets,
        )
        self.tables_of = dict(zip(ROLES, TABLES.get(config.method, ONE_SET), strict=True))
        self.tables = nn.ModuleDict({
            name: FieldTables(rows, config.width(name)) for name in dict.fromkeys(self.tables_of.values())
        })
        projected = ROLES if config.method == "twin-projected" else ()
        self.maps = nn.ModuleDict({role: FieldMaps(self._tables(role)) for role in projected})
        shared = self._tables("candidate")
        self.unit = ActivationUnit(shared) if config.method == "din" else None
        self.search = _search(config, self._tables("key").semantic_width)
        self.hash = SimHash(shared.semantic_width, _bits(config)) if config.method in {"sdim", "twin-v2"} else None
        width = shared.semantic_width + shared.time_width
        pooled = 2 if config.target_aware else 1
        self.head = ClickHead([width] * (1 + pooled * (2 if config.recent else 1)), config.hidden)
        self.auxiliary = ClickHead([width] * (1 + pooled), (AUXILIARY_WIDTH,)) if config.has_auxiliary else None
        self.register_buffer("category_of", torch.zeros(config.num_items + 1, dtype=torch.int64))
        self.drawn_from: PopularNegatives | RetrieverNegatives | None = None

    def _tables(self, role: str) -> FieldTables:
        return cast("FieldTables", self.tables[self.tables_of[role]])

    def _role(self, name: str) -> Role:
        return Role(self._tables(name), cast("FieldMaps", self.maps[name]) if name in self.maps else None)

    def score(self, batch: Histories, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Logits of a click on each candidate, after the whole history; an empty one is allowed."""
        seen = Seen.before(batch.lengths[:, None], batch.timestamps, self.max_len, self.config.time_buckets)
        return self._answers(batch.items, candidates, seen).clicks

    def explain(
        self, batch: Histories, candidates: Int[Tensor, "B C"]
    ) -> tuple[Lookup, Int[Tensor, "B C L"] | Float[Tensor, "B C L"]]:
        """What both stages go by: scores of stage 2, and priorities of stage 1 (weights, if nothing is searched)."""
        seen = Seen.before(batch.lengths[:, None], batch.timestamps, self.max_len, self.config.time_buckets)
        lookup = self._lookup(batch.items, candidates, seen)
        priorities = self._attended(lookup, None).weights if self.search is None else self.search(lookup)
        return lookup, priorities.expand(-1, candidates.shape[1], -1)

    def _answers(
        self, items: Int[Tensor, "B L"], candidates: Int[Tensor, "B C"], seen: Seen, auxiliary: bool = False
    ) -> Answers:
        lookup = self._lookup(items, candidates, seen)
        value = self._role("event")
        events, times = value.semantic(items, lookup.categories), value.times()
        target = self._role("candidate").candidates(candidates, lookup.candidate_categories)
        priorities = None if self.search is None else self.search(lookup)
        parts = [target, *self._about(self._attended(lookup, priorities).pooled(events, times, lookup.seen), target)]
        if self.config.recent:
            parts += self._about(self._latest(lookup).pooled(events, times, lookup.seen), target)
        second = None
        if auxiliary and self.auxiliary is not None:
            everything = self._all_events(lookup, priorities).pooled(events, times, lookup.seen)
            second = self.auxiliary([target, *self._about(everything, target)])
        return Answers(self.head(parts), second)

    def _about(self, pooled: Float[Tensor, "B C V"], target: Float[Tensor, "B C V"]) -> list[Float[Tensor, "B C V"]]:
        """What was found, and its product with the candidate field by field (target-aware representation)."""
        return [pooled, pooled * target] if self.config.target_aware else [pooled]

    def _lookup(self, items: Int[Tensor, "B L"], candidates: Int[Tensor, "B C"], seen: Seen) -> Lookup:
        categories, candidate_categories = self.category_of[items], self.category_of[candidates]
        query, key = self._role("query"), self._role("key")
        queries, keys = query.semantic(candidates, candidate_categories), key.semantic(items, categories)
        scores = self._scores(queries, keys, query, key, seen)
        if self.config.method == "twin-v2" and self.hash is not None:
            seen, log_sizes = clustered(self.hash.signatures(keys, self.config.cluster_bits).squeeze(-1), seen)
            scores = scores + log_sizes
        return Lookup(items, categories, keys, candidate_categories, queries, scores, seen)

    def _scores(
        self, queries: Float[Tensor, "B C S"], keys: Float[Tensor, "B L S"], query: Role, key: Role, seen: Seen
    ) -> Float[Tensor, "B C L"]:
        """Attention's logits: semantic and time products, each divided by the root of its own width.

        A candidate's time is always row 0, so that the time product of an event is one number for each row of a table.
        """
        if self.unit is not None:
            return self.unit(queries, keys, key.times(), seen)
        if self.config.method in {"mean", "sdim"}:
            return queries.new_zeros(len(queries), queries.shape[1], keys.shape[1])
        by_row = [
            table @ now[0] / math.sqrt(key.tables.time_width)
            for now, table in zip(query.times(), key.times(), strict=True)
        ]
        of_times = torch.stack([part[rows] for part, rows in zip(by_row, seen.times(), strict=False)]).sum(dim=0)
        return torch.baddbmm(of_times, queries / math.sqrt(keys.shape[2]), keys.mT)

    def _attended(self, lookup: Lookup, priorities: Tensor | None) -> Attended:
        """What stage 1 keeps, with the weights of stage 2."""
        visible = lookup.seen.visible
        if self.config.method == "sdim" and self.hash is not None:
            return Attended(self.hash.collisions(lookup.queries, lookup.keys, self.config.hash_width) * visible)
        if priorities is None:
            return Attended(masked_softmax(lookup.scores, visible))
        return self._softmax_of(lookup, priorities, self.config.kept)

    def _latest(self, lookup: Lookup) -> Attended:
        """The short branch."""
        return self._softmax_of(lookup, recency(lookup.seen), self.config.recent)

    def _softmax_of(self, lookup: Lookup, priorities: Tensor, most: int) -> Attended:
        places, valid = kept(priorities, lookup.seen.visible, most, lookup.scores.shape[1])
        return Attended(masked_softmax(lookup.scores.gather(2, places), valid), places)

    def _all_events(self, lookup: Lookup, priorities: Tensor | None) -> Attended:
        """For the second head: attention to everything seen; of a search that is no attention, its plain products."""
        if self.config.method == "sim-soft" and priorities is not None:
            return Attended(priorities * lookup.seen.visible)
        return Attended(masked_softmax(lookup.scores, lookup.seen.visible))

    @property
    def window(self) -> WindowShape:
        """Half of a window are targets, the other half is what the first of them sees."""
        return WindowShape(length=2 * self.max_len, overlap=self.max_len)

    @property
    def reads_times(self) -> bool:
        """Whether scores depend on timestamps."""
        return self.config.time_buckets > 0

    def learn_popularity(self, counts: IntArray) -> None:
        """Training events of each item row, [V]: negatives are drawn as often."""
        self.drawn_from = PopularNegatives(counts)

    def learn_retriever(self, retriever: PrefixEncoder, repeats: bool) -> None:
        """In place of popular items, those that the retriever would answer; with `repeats` known ones too."""
        self.drawn_from = RetrieverNegatives(retriever, repeats)

    def learn_categories(self, categories: Int[Tensor, " V"]) -> None:
        """Category of each item row, 0 where it has none."""
        self.category_of.copy_(categories)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Some events of each window as clicks, and other items beside each."""
        if self.drawn_from is None:
            raise RuntimeError("negatives by popularity need learn_popularity() before the first batch")
        batch = next_item_batch(windows)
        full = windows.lengths == self.window.length
        first = np.where(full, self.max_len - 1, 0)
        batch = replace(batch, target=some_targets(batch.target, first, self.config.positives, rng))
        places, valid = target_places(batch.target)
        drawn = self.drawn_from.draw(windows.items, places.numpy() + 2, self.config.negatives, rng)
        items = batch.target.new_zeros(*batch.target.shape, self.config.negatives)
        items[torch.arange(len(places))[:, None], places] = torch.from_numpy(drawn) * valid[:, :, None]
        return replace(batch, negatives=Negatives(items, torch.zeros(items.shape)))

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Binary cross-entropy of clicks and negatives, that of the second head, and L2 of all but the tables."""
        places, valid = target_places(batch.target)
        candidates = self._candidates(batch, places)
        stops = (places + 1)[:, :, None].expand(candidates.shape).flatten(1)
        seen = Seen.before(stops, batch.timestamps, self.max_len, self.config.time_buckets)
        answers = self._answers(batch.history, candidates.flatten(1), seen, auxiliary=True)
        loss = _click_loss(answers.clicks.view(candidates.shape)[valid])
        if answers.auxiliary is not None:
            second = answers.auxiliary.view(candidates.shape)[valid]
            loss = loss + self.config.auxiliary * _click_loss(second)
        return loss + self.config.l2 * self._squares()

    def _candidates(self, batch: TrainBatch, places: Int[Tensor, "B P"]) -> Int[Tensor, "B P C"]:
        """Each target, then its negatives."""
        if batch.negatives is None:
            raise RuntimeError("a ranker's batch comes from training_batch(), which draws its negatives")
        rows = torch.arange(len(places), device=places.device)[:, None]
        return torch.cat([batch.target.gather(1, places)[:, :, None], batch.negatives.items[rows, places]], dim=2)

    def _squares(self) -> Float[Tensor, ""]:
        weights = [
            weight for name, weight in self.named_parameters() if not name.startswith("tables.") and "bias" not in name
        ]
        return torch.stack([weight.square().sum() for weight in weights]).sum()


def _search(config: DAREConfig, width: int) -> nn.Module | None:
    """Stage 1 of the method; None where every event is attended to."""
    match config.method:
        case "din" | "sdim" | "mean":
            return None
        case "sim-hard":
            return CategorySearch()
        case "sim-soft":
            return ProductSearch(width)
        case "eta":
            return HashSearch(width, config.hash_bits)
        case "last-k":
            return LatestSearch()
        case "random-k":
            return RandomSearch()
        case _:
            return AttentionSearch()


def _bits(config: DAREConfig) -> int:
    return config.cluster_bits if config.method == "twin-v2" else config.hash_bits


def _click_loss(logits: Float[Tensor, "N C"]) -> Float[Tensor, ""]:
    """Mean over rows and columns; the first column was clicked, the others were not."""
    total = F.softplus(-logits[:, 0]).sum() + F.softplus(logits[:, 1:]).sum()
    return total / max(1, logits.numel())
