"""DARE for serving: the logits of candidates from a user's keys, as one graph (docs/decisions/two-stage.md).

An event's key does not depend on its position, nor on the candidate: a service gathers the keys of a user once and
appends to them. What positions add to scores is one number a row of their table. The search finds the events of the
highest scores by blocks: those of the `kept` best blocks hold them all.
Dimensions: C candidates, B blocks of M places each (place b * M + m; some stand empty), K kept events, R recent ones,
S semantic width, W vector width, P rows of the position table, V item rows.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.dare import DARE
from recsys.errors import ConfigError
from recsys.event_fields import FieldMaps, FieldTables, Role

SERVED = ("dare", "twin", "twin-projected", "twin-4e")
"""Methods whose search is attention to single events."""
BLOCKS = 16
"""B: with more, fewer groups are sorted, and more of their members; the least work at 1,000 to 10,000 events."""


class DAREGraph(nn.Module):
    """Scores of one user's candidates; equal to `DARE.score`."""

    def __init__(self, model: DARE) -> None:
        super().__init__()
        if model.config.method not in SERVED:
            raise ConfigError(
                f"model.method={model.config.method} searches otherwise than by attention to single events; the "
                f"service ranks by {', '.join(SERVED)}."
            )
        if model.config.time_buckets:
            raise ConfigError(
                f"model.time_buckets={model.config.time_buckets} asks for times of events, and the service keeps none "
                "yet; train with model.time_buckets=0 to serve."
            )
        self.model, self.config = model.cpu().eval(), model.config
        self.blocks, self.recent, self.kept = BLOCKS, model.config.recent, model.config.kept

    @property
    def least_places(self) -> int:
        """M at least: as many as blocks are kept, and room for one empty place where recent events are too few."""
        return max(self.config.kept, self.config.recent // BLOCKS + 1)

    @torch.no_grad()
    def item_keys(self) -> Float[Tensor, "V S"]:
        """What candidates are compared with, of each item row."""
        return self._semantic("key", torch.arange(self.config.num_items + 1)[None])[0]

    @torch.no_grad()
    def place_scores(self) -> Float[Tensor, " P"]:
        """What each position adds to a score; position 1 is the newest event."""
        (now,), (table,) = self._role("query").times(), self._role("key").times()
        return table @ now[0] / math.sqrt(table.shape[1])

    def forward(
        self,
        candidates: Int[Tensor, " C"],
        events: Int[Tensor, "B M"],
        keys: Float[Tensor, "B M S"],
        place_scores: Float[Tensor, "B M"],
        positions: Int[Tensor, "B M"],
        latest: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, " C"]:
        """Logits of a click. Empty places have score -inf and hold item 0.

        `latest`: places of the newest events, of a model with a short branch.
        """
        asked = candidates[None]
        scores = self.attention(candidates, keys, place_scores)
        target = self._role("candidate").candidates(asked, _at(self.model.category_of, asked))[0]
        found = self._attended(*best_by_blocks(scores, keys.shape[0], self.config.kept), events, positions)
        parts = [target, *self._about(found, target)]
        if latest is not None:
            places = latest.expand(candidates.shape[0], -1)
            parts += self._about(self._attended(scores[:, latest], places, events, positions), target)
        return self.model.head([part[None] for part in parts])[0]

    def attention(
        self, candidates: Int[Tensor, " C"], keys: Float[Tensor, "B M S"], place_scores: Float[Tensor, "B M"]
    ) -> Float[Tensor, "C N"]:
        """What every place is worth to every candidate, before the softmax; N = B * M."""
        queries = self._semantic("query", candidates[None])[0] / math.sqrt(keys.shape[2])
        return queries @ keys.flatten(0, 1).T + place_scores.flatten()

    def _attended(
        self,
        scores: Float[Tensor, "C K"],
        places: Int[Tensor, "C K"],
        events: Int[Tensor, "B M"],
        positions: Int[Tensor, "B M"],
    ) -> Float[Tensor, "C W"]:
        """Weighted sum of the events at `places`, field by field: side by side, their vectors would be copied."""
        items, event = _at(events, places), self._role("event")
        (times,) = event.times()
        vectors = [*event.fields(items, _at(self.model.category_of, items)), F.embedding(_at(positions, places), times)]
        weights = scores.softmax(dim=1)[:, None]
        return torch.cat([(weights @ field)[:, 0] for field in vectors], dim=-1)

    def _about(self, pooled: Float[Tensor, "C W"], target: Float[Tensor, "C W"]) -> list[Float[Tensor, "C W"]]:
        return [pooled, pooled * target] if self.config.target_aware else [pooled]

    def _semantic(self, role: str, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        return self._role(role).semantic(items, _at(self.model.category_of, items))

    def _role(self, name: str) -> Role:
        maps = cast("FieldMaps", self.model.maps[name]) if name in self.model.maps else None
        return Role(cast("FieldTables", self.model.tables[self.model.tables_of[name]]), maps)


def _at(values: Int[Tensor, "*N"], places: Int[Tensor, "A B"]) -> Int[Tensor, "A B"]:
    """`values.flatten()[places]`, in a form that ONNX has a fast operator for."""
    return values.flatten().index_select(0, places.flatten()).view(places.shape)


def best_by_blocks(
    scores: Float[Tensor, "C N"], blocks: int, most: int
) -> tuple[Float[Tensor, "C K"], Int[Tensor, "C K"]]:
    """The `most` highest scores of each row and their places, N a multiple of `blocks` and not below `most` of them.

    Column m of the rows cut into `blocks` pieces is a group; the groups of the `most` highest maxima hold what is
    sought, for a score in another group has `most` maxima above it. Two sorts of few numbers replace one of all.
    """
    groups = scores.view(scores.shape[0], blocks, -1)
    chosen = groups.amax(dim=1).topk(most, dim=1, sorted=False).indices
    steps = torch.arange(blocks, device=scores.device) * groups.shape[2]
    places = (chosen[:, :, None] + steps).flatten(1)
    best = scores.gather(1, places).topk(most, dim=1, sorted=False)
    return best.values, places.gather(1, best.indices)
