"""Stage 1 of rankers of long histories: which events are worth attending to, for each candidate.

A search gives every event a priority, and the K first that the candidate sees are kept:

    attention        the score of stage 2 itself       TWIN (KDD 2023), DARE (ICLR 2025)
    clusters         the same for groups of events     TWIN-V2 (CIKM 2024)
    same category    the newest of them, then others   SIM, hard search (CIKM 2020)
    learned product  of two linear maps                SIM, soft search
    SimHash          bits in common                    ETA (arXiv:2108.04468)
    latest, random   baselines
Dimensions: B histories, C candidates, L events, K kept events, S semantic width, H hash bits.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.event_fields import Seen

BLOCK = 64
PRIME = 2_147_483_647
ITEM_FACTOR, POSITION_FACTOR = 1_103_515_245, 747_796_405
"""Odd numbers of generators in common use: items and positions that are near give priorities far apart."""


@dataclass(frozen=True)
class Lookup:
    """What a search may look at: categories and vectors of candidates and events, and stage 2's score of each pair."""

    items: Int[Tensor, "B L"]
    categories: Int[Tensor, "B L"]
    keys: Float[Tensor, "B L S"]
    candidate_categories: Int[Tensor, "B C"]
    queries: Float[Tensor, "B C S"]
    scores: Float[Tensor, "B C L"]
    seen: Seen


class AttentionSearch(nn.Module):
    """By the score that also weighs the events in stage 2."""

    def forward(self, lookup: Lookup) -> Float[Tensor, "B C L"]:
        return lookup.scores


class CategorySearch(nn.Module):
    """Events of the candidate's category, newest first, then the newest others."""

    def forward(self, lookup: Lookup) -> Int[Tensor, "B C L"]:
        same = lookup.categories[:, None] == lookup.candidate_categories[:, :, None]
        newest = recency(lookup.seen).int()
        return torch.where(same, newest + lookup.items.shape[1] + 1, newest)


class ProductSearch(nn.Module):
    """Inner product of linear maps; it learns from an auxiliary loss alone, since keeping events has no gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, lookup: Lookup) -> Float[Tensor, "B C L"]:
        return self.query(lookup.queries) @ self.key(lookup.keys).mT


class HashSearch(nn.Module):
    """SimHash: the more bits in common the better, the newer first among equals."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.hash = SimHash(width, bits)

    def forward(self, lookup: Lookup) -> Int[Tensor, "B C L"]:
        agreeing = self.hash.agreement(lookup.queries, lookup.keys)
        return torch.add(recency(lookup.seen).int(), agreeing, alpha=lookup.items.shape[1] + 1)


class LatestSearch(nn.Module):
    """The newest events."""

    def forward(self, lookup: Lookup) -> Int[Tensor, "B _ L"]:
        return recency(lookup.seen)


class RandomSearch(nn.Module):
    """Any events: a fixed hash of item and position decides, so a history is always answered alike."""

    def forward(self, lookup: Lookup) -> Int[Tensor, "B _ L"]:
        mixed = lookup.items[:, None] * ITEM_FACTOR + lookup.seen.positions * POSITION_FACTOR
        return mixed % PRIME * ITEM_FACTOR % PRIME


class SimHash(nn.Module):
    """Signs of random projections: two vectors at angle a share a bit with probability 1 - a / pi (Charikar, 2002).

    The projections are a buffer: drawn once, kept with the weights, and never trained.
    """

    projections: Tensor

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.register_buffer("projections", torch.randn(width, bits))

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "*N S"]) -> Bool[Tensor, "*N H"]:
        return vectors @ self.projections > 0

    @torch.no_grad()
    def agreement(self, queries: Float[Tensor, "B C S"], keys: Float[Tensor, "B L S"]) -> Int[Tensor, "B C L"]:
        """Bits in common: with signs for bits, (H + inner product) / 2."""
        signs, others = (2 * self(vectors).float() - 1 for vectors in (queries, keys))
        halves = queries.new_full((1,), self.projections.shape[1] / 2)
        return torch.baddbmm(halves, signs / 2, others.mT).round_().int()

    @torch.no_grad()
    def collisions(
        self, queries: Float[Tensor, "B C S"], keys: Float[Tensor, "B L S"], width: int
    ) -> Float[Tensor, "B C L"]:
        """Share of the groups of `width` bits that are equal; its mean over projections is (1 - a / pi) ** width."""
        ours, theirs = (self.signatures(vectors, width).unbind(-1) for vectors in (queries, keys))
        equal = torch.zeros((*queries.shape[:2], keys.shape[1]), dtype=torch.int32, device=queries.device)
        for one, other in zip(ours, theirs, strict=True):
            equal += (one[:, :, None] == other[:, None]).to(torch.int32)
        return equal.to(queries.dtype) / len(ours)

    @torch.no_grad()
    def signatures(self, vectors: Float[Tensor, "*N S"], width: int) -> Int[Tensor, "*N G"]:
        """Each group of `width` bits as a number."""
        bits = self(vectors).view(*vectors.shape[:-1], -1, width)
        return (bits * 2 ** torch.arange(width, device=vectors.device)).sum(dim=-1)


def clustered(clusters: Int[Tensor, "B L"], seen: Seen) -> tuple[Seen, Float[Tensor, "B C L"]]:
    """Each cluster's newest visible event stands for it: only these are seen, with the logarithm of its visible size.

    With that added to scores, a cluster weighs as much as its events would, were they all like the one that stands.
    """
    ordered, order = clusters.sort(dim=1)
    first = torch.cat([torch.zeros_like(clusters[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1)
    ids = torch.zeros_like(clusters).scatter(1, order, first.cumsum(dim=1))[:, None].expand(seen.visible.shape)
    places = torch.where(seen.visible, torch.arange(ids.shape[2], device=ids.device), -1)
    sizes = torch.zeros_like(places).scatter_add(2, ids, seen.visible.long()).gather(2, ids)
    newest = torch.full_like(places, -1).scatter_reduce(2, ids, places, "amax").gather(2, ids)
    return replace(seen, visible=seen.visible & (places == newest)), sizes.clamp(min=1).log()


def recency(seen: Seen) -> Int[Tensor, "B _ L"]:
    """Higher for newer events, from 1; 0 for unseen ones."""
    longest = seen.positions.shape[2]
    return (longest + 1 - seen.positions).clamp(min=1) * seen.visible


def kept(
    priorities: Int[Tensor, "B _ L"] | Float[Tensor, "B _ L"],
    visible: Bool[Tensor, "B _ L"],
    most: int,
    columns: int,
) -> tuple[Int[Tensor, "B C K"], Bool[Tensor, "B C K"]]:
    """Places of the `most` first, for each of `columns` candidates, and which of them are visible at all."""
    info = torch.finfo if priorities.is_floating_point() else torch.iinfo
    allowed = torch.where(visible, priorities, info(priorities.dtype).min)
    places = top_places(allowed, min(most, priorities.shape[2]))
    valid = visible.expand(*allowed.shape).gather(2, places)
    return places.expand(-1, columns, -1), valid.expand(-1, columns, -1)


def top_places(values: Int[Tensor, "B C L"] | Float[Tensor, "B C L"], most: int) -> Int[Tensor, "B C K"]:
    """Places of the greatest values, greatest first.

    Of many values only those blocks are sorted whose greatest are among the `most` greatest of any: the others have
    nothing to give.
    """
    whole = values.shape[2] - values.shape[2] % BLOCK
    if whole <= 2 * BLOCK * most:
        return values.topk(most, dim=2).indices
    blocks = values[:, :, :whole].reshape(*values.shape[:2], -1, BLOCK)
    best = blocks.amax(dim=3).topk(most, dim=2).indices
    inside = best[:, :, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)
    rest = torch.arange(whole, values.shape[2], device=values.device).expand(*values.shape[:2], -1)
    places = torch.cat([inside.flatten(2), rest], dim=2)
    return places.gather(2, values.gather(2, places).topk(most, dim=2).indices)
