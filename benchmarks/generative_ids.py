"""The same recommendation LLM without a projection: items are several id tokens, found by beam search (P5, TIGER).

    item     codes c_1 ... c_T, one of each level: residual k-means of its whitened text vector, as TIGER has it, and a
             last one that tells apart items with the others alike
    history  n items are n T tokens; one token teaches the next
    answer   the `beam` likeliest prefixes that a trie of the catalogue knows, T times

With one token an item, the item's own row, and the vectors of a `LiteLLM4Rec` this is that model: a beam as wide as the
catalogue gives the ranking of its head. Dimensions: B histories, L events, T levels, D width, K beam, V item rows.
"""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.lite_llm4rec import NORM_EPS, LiteLLM4Rec, LiteLLM4RecConfig
from recsys.batches import Histories, TrainBatch, WindowShape, next_item_batch
from recsys.contracts import TopK
from recsys.layers import BlockStack, Chains, Dropout, KeyValues, Thoughts, init_weights
from recsys.sequences import IntArray, Windows

HISTORIES_AT_ONCE = 64
KMEANS_ROUNDS = 25


@dataclass(frozen=True)
class IdTokens:
    """Codes of the items [V, T] (row 0 has none of its own), and how many each level has."""

    codes: IntArray
    sizes: tuple[int, ...]

    @classmethod
    def of_rows(cls, num_items: int) -> "IdTokens":
        """One token an item: its row."""
        return cls(np.arange(num_items + 1)[:, None], (num_items + 1,))

    @classmethod
    def of_vectors(cls, vectors: Float[np.ndarray, "V F"], levels: int, size: int) -> "IdTokens":
        """`levels` - 1 rounds of k-means over what the rounds before left, then a number among the alike."""
        rest = np.array(vectors[1:], dtype=np.float32)
        columns = []
        for level in range(levels - 1):
            means = faiss.Kmeans(rest.shape[1], size, niter=KMEANS_ROUNDS, seed=level, min_points_per_centroid=1)
            means.train(rest)
            nearest = means.index.search(rest, 1)[1][:, 0]
            rest -= means.index.reconstruct_batch(nearest)
            columns.append(nearest)
        _, groups = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        order = np.argsort(groups, kind="stable")
        begins = np.searchsorted(groups[order], groups[order])
        last = np.empty(len(groups), dtype=np.int64)
        last[order] = np.arange(len(groups)) - begins
        codes = np.stack([*columns, last], axis=1).astype(np.int64)
        sizes = (*[size] * (levels - 1), int(last.max()) + 1)
        return cls(np.concatenate([np.zeros_like(codes[:1]), codes]), sizes)

    def trie(self) -> list[Int[Tensor, "N C"]]:
        """Of each level: the node below node n by code c, -1 where there is none; below the last level items' rows."""
        nodes, levels = np.zeros(len(self.codes) - 1, dtype=np.int64), []
        for level, size in enumerate(self.sizes):
            steps = np.stack([nodes, self.codes[1:, level]], axis=1)
            distinct, below = np.unique(steps, axis=0, return_inverse=True)
            last = level == len(self.sizes) - 1
            children = np.full((nodes.max() + 1, size), -1)
            children[tuple(steps.T)] = np.arange(1, len(self.codes)) if last else below
            if last and len(distinct) < len(steps):
                raise ValueError("two items have the same codes")
            nodes = below
            levels.append(torch.from_numpy(children))
        return levels


class SharedPast:
    """All prefixes look at the history's keys and values, and each at those of its own tokens."""

    def __init__(self, blocks: BlockStack, memory: tuple[KeyValues, ...]) -> None:
        self.blocks, self.memory = blocks, memory
        self.own: tuple[Thoughts, ...] | None = None

    def go_on(self, x: Float[Tensor, "B K D"], parents: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """States after one token more of each prefix, `parents` those that they go on from."""
        if self.own is not None:
            self.own = tuple(Thoughts(of_parents(past.keys, parents), of_parents(past.values, parents))
                             for past in self.own)  # fmt: skip
        total = self.memory[0].length
        chains = Chains(torch.full_like(parents, total - 1), parents.new_ones(len(parents), 1, total) > 0)
        states, self.own = self.blocks.think(x, self.memory, chains, self.own)
        return states


class CopiedPast:
    """Every prefix has a copy of all keys and values, in a batch of all prefixes: as libraries for texts do it."""

    def __init__(self, blocks: BlockStack, memory: tuple[KeyValues, ...]) -> None:
        self.blocks, self.memory, self.width = blocks, memory, 1

    def go_on(self, x: Float[Tensor, "B K D"], parents: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """The same states."""
        rows = (torch.arange(len(parents))[:, None] * self.width + parents).flatten()
        copies = tuple(KeyValues(past.keys[rows], past.values[rows]) for past in self.memory)
        states, self.memory = self.blocks.step(x.flatten(0, 1)[:, None], copies)
        self.width = parents.shape[1]
        return states.view(x.shape)


def of_parents(past: Float[Tensor, "B H P S Dh"], parents: Int[Tensor, "B K"]) -> Float[Tensor, "B H K S Dh"]:
    """What each chosen prefix remembers."""
    return past.transpose(1, 2)[torch.arange(len(parents))[:, None], parents].transpose(1, 2)


class GenerativeIds(nn.Module):
    """The blocks of a `LiteLLM4Rec` config over id tokens."""

    codes: Int[Tensor, "V T"]
    past: type[SharedPast | CopiedPast] = SharedPast

    def __init__(self, config: LiteLLM4RecConfig, tokens: IdTokens, beam: int) -> None:
        super().__init__()
        self.config, self.beam, self.max_len = config, beam, config.max_len
        self.trie, self.sizes = tokens.trie(), tokens.sizes
        self.register_buffer("codes", torch.from_numpy(tokens.codes))
        self.tables = nn.ModuleList(nn.Embedding(size, config.embedding_dim) for size in tokens.sizes)
        self.input_norm = nn.LayerNorm(config.embedding_dim, NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.blocks = BlockStack(config, NORM_EPS)
        self.apply(init_weights)

    @classmethod
    @torch.no_grad()
    def with_weights_of(cls, model: LiteLLM4Rec, tokens: IdTokens, beam: int) -> "GenerativeIds":
        """The recommendation LLM of a trained model; with one token an item, its item vectors too."""
        generative = cls(model.config, tokens, beam)
        assert model.blocks is not None
        generative.blocks.load_state_dict(model.blocks.state_dict())
        generative.input_norm.load_state_dict(model.input_norm.state_dict())
        if len(tokens.sizes) == 1:
            generative.table(0).weight.copy_(model.items.weight)
        return generative.eval()

    def table(self, level: int) -> nn.Embedding:
        """Vectors of a level's codes, as input and as output."""
        table = self.tables[level]
        assert isinstance(table, nn.Embedding)
        return table

    def _embedded(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B n D"]:
        """T vectors an item."""
        levels = [self.table(level)(self.codes[items, level]) for level in range(len(self.sizes))]
        return torch.stack(levels, dim=2).flatten(1, 2)

    def _read(self, vectors: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        return self.dropout(self.input_norm(vectors))

    def logits(self, states: Float[Tensor, "*N D"], level: int) -> Float[Tensor, "*N C"]:
        """Of a level's codes, compared as the projection head compares items."""
        table = self.table(level).weight
        if self.config.cosine:
            states, table = F.normalize(states, dim=-1), F.normalize(table, dim=-1)
        return states @ table.T / self.config.temperature

    @property
    def window(self) -> WindowShape:
        """As `LiteLLM4Rec`."""
        return WindowShape(length=self.max_len + 1, overlap=1)

    def training_batch(self, windows: Windows, _rng: np.random.Generator) -> TrainBatch:
        """Every event predicts the next."""
        return next_item_batch(windows)

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """-log P(item | history), the sum over its tokens; mean over items."""
        count, valid = len(self.sizes), batch.target != 0
        items = torch.cat([batch.history[:, :1], batch.target], dim=1)
        states = self.blocks(self._read(self._embedded(items)[:, :-1]), causal=True)
        states = states[:, count - 1 :].unflatten(1, (-1, count))[valid]
        codes = self.codes[batch.target[valid]]
        losses = [F.cross_entropy(self.logits(states[:, level], level), codes[:, level]) for level in range(count)]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def generate(self, items: Int[Tensor, "B L"]) -> TopK:
        """The beam's items after histories of one length, the likeliest first; row 0 and -inf where there are fewer."""
        read = self._read(self._embedded(items))
        state, memory = self.blocks.last(read, torch.full((len(items),), read.shape[1]), causal=True)
        past, states = self.past(self.blocks, memory), state[:, None]
        scores, nodes = torch.zeros(len(items), 1), torch.zeros(len(items), 1, dtype=torch.int64)
        for level, children in enumerate(self.trie):
            below = children[nodes]
            step = self.logits(states, level).log_softmax(dim=-1).masked_fill(below < 0, -torch.inf)
            scores, chosen = (scores[:, :, None] + step).flatten(1).topk(min(self.beam, step[0].numel()), dim=1)
            nodes = below.flatten(1).gather(1, chosen).masked_fill(scores == -torch.inf, 0)
            if level + 1 < len(self.trie):
                x = self._read(self.table(level)(chosen % step.shape[2]))
                states = past.go_on(x, chosen // step.shape[2])
        return TopK(nodes, scores)

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Of all items, -inf where the beam did not come: such an item is a miss."""
        scores = torch.full((len(batch.lengths), len(self.codes)), -torch.inf)
        for length in sorted(set(batch.lengths.tolist())):
            for rows in (batch.lengths == length).nonzero()[:, 0].split(HISTORIES_AT_ONCE):
                found = self.generate(batch.items[rows, :length])
                scores[rows] = scores[rows].scatter(1, found.items, found.scores)
        scores[:, 0] = -torch.inf
        return scores
