"""Histories as one text each: sentences of their items, newest first, which is what Recformer's encoder reads.

    tokens     [CLS] title red shoe brand acme title blue hat ...     cut after so many tokens, the oldest item first
    kinds        0     1    2   2     1    2     1    2    2          of [CLS], of a key, of a value
    places       0     1    1   1     1    1     2    2    2          of the item, counted from the newest

Dimensions: B rows, L events, V item rows (row 0 is padding), W tokens of a sentence, T tokens of a text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recsys.contracts import Tables
from recsys.item_sentences import NO_TOKEN


@dataclass(frozen=True)
class Text:
    """Tokens of a batch; `real` where there is one, `sources` its place in the flat table of all sentences."""

    ids: Int[Tensor, "B T"]
    kinds: Int[Tensor, "B T"]
    places: Int[Tensor, "B T"]
    sources: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"]

    @property
    def of_items(self) -> Bool[Tensor, "B T"]:
        """Tokens but for [CLS]."""
        return self.places != 0


def history_text(
    items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], tables: Tables, special: Int[Tensor, " 3"], max_tokens: int
) -> Text:
    """Sentences from the newest item to the oldest behind a [CLS]; `special`: ids of [CLS], padding and mask."""
    (rows, most), width = items.shape, tables.tokens.shape[1]
    back = torch.arange(most, device=items.device)
    known = back < lengths[:, None]
    newest = items.gather(1, (lengths[:, None].long() - 1 - back).clamp(min=0)) * known
    sizes = (tables.kinds[newest] != NO_TOKEN).sum(dim=2)
    within = torch.arange(width, device=items.device)
    slots = 1 + (sizes.cumsum(dim=1) - sizes)[:, :, None] + within
    length = min(max_tokens, _longest(sizes, width, max_tokens))
    used = (within < sizes[:, :, None]) & (slots < length)
    slots = torch.where(used, slots, length).flatten(1)
    blank = torch.zeros(rows, length + 1, dtype=torch.int64, device=items.device)
    sources = blank.scatter(1, slots, (newest[:, :, None] * width + within).flatten(1))[:, :length]
    places = blank.scatter(1, slots, (back + 1).expand(rows, -1).repeat_interleave(width, 1))[:, :length]
    first = torch.arange(length, device=items.device) == 0
    ids = torch.where(places != 0, tables.tokens[sources // width, sources % width].long(), special[1])
    return Text(
        ids=torch.where(first, special[0], ids),
        kinds=tables.kinds[sources // width, sources % width].long() * (places != 0),
        places=places,
        sources=sources,
        real=(places != 0) | first,
    )


def _longest(sizes: Int[Tensor, "B L"], width: int, max_tokens: int) -> int:
    """T, before it is cut: that of the longest text; in a graph, the longest there can be of so many items."""
    if not torch.compiler.is_exporting():
        return 1 + int(sizes.sum(dim=1).max())
    any_number = not isinstance(sizes.shape[1], int)
    return max_tokens if any_number else 1 + sizes.shape[1] * width
