"""A bidirectional encoder of token sequences, as BERT has it, or with Longformer's windows (Beltagy et al., 2020).

    window 0   every token attends to every other
    window w   every token to w / 2 neighbours on each side and to the first token; the first one to all, by projections
               of its own

Windows are a mask on whole squares of scores: up to some thousand tokens projections cost more than attention, and
masks are what fused kernels take. Weights come from Hugging Face checkpoints of BERT, RoBERTa and Longformer.
Dimensions: B rows, T tokens, D width, H heads.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recsys.attention import attention
from recsys.errors import ConfigError
from recsys.layers import FeedForward, Residual, SelfAttention, TransformerConfig

ROBERTA_LIKE = frozenset({"roberta", "xlm-roberta", "longformer"})
"""Their positions are counted from the padding token's id plus one."""


class TextBlock(nn.Module):
    """Attention, then feed-forward; LayerNorm after each sum."""

    def __init__(self, config: TransformerConfig, norm_eps: float, window: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.of_first = nn.Linear(config.embedding_dim, 3 * config.embedding_dim) if window else None
        self.attention_residual = Residual(config, norm_eps)
        self.ffn = FeedForward(config)
        self.ffn_residual = Residual(config, norm_eps)

    def forward(
        self, x: Float[Tensor, "B T D"], key_mask: Bool[Tensor, "B 1 1 T"], near: Bool[Tensor, "T T"] | None
    ) -> Float[Tensor, "B T D"]:
        """New states; `near` is true where a token is in the other's window."""
        query, memory = self.attention.project(x)
        visible = key_mask if near is None else key_mask & near
        mixed = attention(query, memory.keys, memory.values, visible)
        if self.of_first is not None:
            mixed = torch.cat([self._mixed_for_first(x, key_mask), mixed[:, :, 1:]], dim=2)
        return self._finished(x, mixed)

    def first(self, x: Float[Tensor, "B T D"], key_mask: Bool[Tensor, "B 1 1 T"]) -> Float[Tensor, "B 1 D"]:
        """The new state of each row's first token alone."""
        return self._finished(x[:, :1], self._mixed_for_first(x, key_mask))

    def _mixed_for_first(
        self, x: Float[Tensor, "B T D"], key_mask: Bool[Tensor, "B 1 1 T"]
    ) -> Float[Tensor, "B H 1 Dh"]:
        """It looks at every token of its row."""
        projection = self.attention.qkv if self.of_first is None else self.of_first
        query, key, value = (
            part.unflatten(-1, (self.attention.num_heads, -1)).transpose(1, 2)
            for part in projection(x).chunk(3, dim=-1)
        )
        return attention(query[:, :, :1], key, value, key_mask)

    def _finished(self, x: Float[Tensor, "B t D"], mixed: Float[Tensor, "B H t Dh"]) -> Float[Tensor, "B t D"]:
        branch = self.attention.out(mixed.transpose(1, 2).flatten(2))
        x = self.attention_residual.after(x, x, branch)
        return self.ffn_residual.after(x, x, self.ffn(x))


class TextBlocks(nn.Module):
    """Blocks one after the other."""

    def __init__(self, config: TransformerConfig, norm_eps: float, window: int) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(TextBlock(config, norm_eps, window) for _ in range(config.num_blocks))

    def __iter__(self) -> Iterator[TextBlock]:
        return (cast("TextBlock", block) for block in self.blocks)

    def forward(self, x: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """States of all tokens; those that are not `real` are never looked at."""
        near = self._near(x)
        for block in self:
            x = block(x, real[:, None, None], near)
        return x

    def first(self, x: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """The state of each row's first token; the last block computes no other."""
        near = self._near(x)
        *blocks, last = self
        for block in blocks:
            x = block(x, real[:, None, None], near)
        return last.first(x, real[:, None, None]).squeeze(1)

    def _near(self, x: Float[Tensor, "B T D"]) -> Bool[Tensor, "T T"] | None:
        """Who is in whose window; the first token in every one."""
        if not self.window:
            return None
        places = torch.arange(x.shape[1], device=x.device)
        return ((places[:, None] - places).abs() <= self.window // 2) | (places == 0)


def encoder_shape(hugging_face: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings for the network of a `config.json`; a `ConfigError` for one that is another kind of network."""
    kind, windows = hugging_face.get("model_type"), hugging_face.get("attention_window", 0)
    windows = set(windows) if isinstance(windows, list) else {windows}
    if kind not in {"bert", *ROBERTA_LIKE} or hugging_face.get("hidden_act") != "gelu" or len(windows) > 1:
        raise ConfigError(
            f"text encoder of type {kind!r}, hidden_act {hugging_face.get('hidden_act')!r}, attention_window "
            f"{sorted(windows)}: only BERT, RoBERTa and Longformer with gelu and one window for all layers can be read."
        )
    return {
        "vocab_size": hugging_face["vocab_size"],
        "embedding_dim": hugging_face["hidden_size"],
        "num_blocks": hugging_face["num_hidden_layers"],
        "num_heads": hugging_face["num_attention_heads"],
        "ffn_dim": hugging_face["intermediate_size"],
        "norm_eps": hugging_face["layer_norm_eps"],
        "attention_window": windows.pop(),
    }


def first_position(hugging_face: Mapping[str, Any]) -> int:
    """Row of the position table that a text's first token has."""
    return int(hugging_face["pad_token_id"]) + 1 if hugging_face["model_type"] in ROBERTA_LIKE else 0


def network_weights(stored: Mapping[str, Tensor], first_position: int) -> dict[str, Tensor]:
    """The weights of a checkpoint under our names: `words`, `positions`, `kind` (one row), `norm`, `blocks`, and
    `head` and `head_norm` with `head_bias` where it was stored with its masked language model."""
    state = {
        name.removeprefix("bert.").removeprefix("roberta.").removeprefix("longformer."): stored[name] for name in stored
    }
    ours = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "positions.weight": state["embeddings.position_embeddings.weight"][first_position:],
        "kind": state["embeddings.token_type_embeddings.weight"][0],
    }
    modules = {"norm": "embeddings.LayerNorm"}
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    for number in range(layers):
        theirs, block = f"encoder.layer.{number}", f"blocks.blocks.{number}"
        modules |= {
            f"{block}.attention.out": f"{theirs}.attention.output.dense",
            f"{block}.attention_residual.norm": f"{theirs}.attention.output.LayerNorm",
            f"{block}.ffn.inner": f"{theirs}.intermediate.dense",
            f"{block}.ffn.outer": f"{theirs}.output.dense",
            f"{block}.ffn_residual.norm": f"{theirs}.output.LayerNorm",
        }
        for name, suffix in (("attention.qkv", ""), ("of_first", "_global")):
            for kind in ("weight", "bias"):
                parts = [f"{theirs}.attention.self.{part}{suffix}.{kind}" for part in ("query", "key", "value")]
                if parts[0] in state:
                    ours[f"{block}.{name}.{kind}"] = torch.cat([state[part] for part in parts])
    for dense, norm, bias in (
        ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
        ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ):
        if bias in state:
            modules |= {"head": dense, "head_norm": norm}
            ours["head_bias"] = state[bias]
    for name, theirs in modules.items():
        ours |= {f"{name}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return ours
