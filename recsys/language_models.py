"""Hugging Face language models as parts of ours: one that reads vectors in place of words, and one that reads texts.

    ReadsVectors   x [B, L, D] -> states [B, L, D], each of what came up to it
    ReadsTexts     rows of items -> vectors [N, F] of their texts, the same as `recsys.text_vectors` keeps

Encoders (BERT, T5's) are given the causal mask of decoders: a history then teaches at each of its events at once, and
the state of a prefix stays what it was.
LoRA (Hu et al., ICLR 2022) by peft: A drawn, B zero, so that a fresh adapter changes nothing.
Dimensions: B histories, L events, D width of the model; N items, V item rows, T tokens, F width of text vectors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recsys.errors import ConfigError
from recsys.pretrained import Pretrained
from recsys.text_vectors import Pooling, sentence_vectors

MASKED = -1e30
"""A logit that is no choice; finite, for a row of nothing else would have no softmax."""
LORA_SCALE = 2
"""Of what an adapter adds: alpha / rank."""


class ReadsVectors(nn.Module):
    """The layers of a language model over vectors of our own; its words are left behind.

    `word_length`: root mean square of their numbers, which is what its first layer is used to.
    """

    def __init__(self, pretrained: Pretrained, dropout: float, lora_rank: int = 0) -> None:
        super().__init__()
        model = layers_of(pretrained.model)
        words = model.get_input_embeddings().weight.detach()
        self.width, self.word_length = words.shape[1], float(words.float().square().mean().sqrt())
        self.longest = getattr(model.config, "max_position_embeddings", None)
        model.set_input_embeddings(nn.Identity())
        model.config.use_cache = False
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.layers = with_adapters(model, lora_rank) if lora_rank else model.requires_grad_(True)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """States; padding comes last, so the causal mask hides it."""
        places = torch.arange(x.shape[1], device=x.device)
        mask = torch.where(places[:, None] >= places, 0.0, MASKED).expand(x.shape[0], 1, -1, -1)
        states: Tensor = self.layers(inputs_embeds=x, attention_mask=mask).last_hidden_state
        return states


class ReadsTexts(nn.Module):
    """A text encoder that is trained, over the tokens of all items."""

    tokens: Int[Tensor, "V T"]
    counts: Int[Tensor, " V"]

    def __init__(
        self,
        pretrained: Pretrained,
        num_rows: int,
        max_tokens: int,
        pooling: Pooling,
        lora_rank: int,
        checkpoints: bool,
    ) -> None:
        super().__init__()
        self.pooling, self.checkpoints = pooling, checkpoints
        model = layers_of(pretrained.model)
        self.layers = with_adapters(model, lora_rank) if lora_rank else model.requires_grad_(True)
        self.register_buffer("tokens", torch.zeros(num_rows, max_tokens, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(num_rows, dtype=torch.int32))

    def learn_tokens(self, tokens: Int[Tensor, "V T"], counts: Int[Tensor, " V"]) -> None:
        """Takes token ids of all item rows and how many of them are real."""
        self.tokens.zero_()[:, : tokens.shape[1]] = tokens
        self.counts.copy_(counts)

    def forward(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N F"]:
        """Vectors of these items' texts; zeros of one without."""
        counts = self.counts[rows]
        longest = max(1, int(counts.max())) if len(rows) else 1
        ids = self.tokens[rows, :longest].long()
        mask = (torch.arange(longest, device=rows.device) < counts.clamp(min=1)[:, None]).long()
        if self.checkpoints and self.training:
            vectors: Tensor = checkpoint(self._read, ids, mask, use_reentrant=False)
        else:
            vectors = self._read(ids, mask)
        return vectors * (counts > 0)[:, None]

    def _read(self, ids: Int[Tensor, "N t"], mask: Int[Tensor, "N t"]) -> Float[Tensor, "N F"]:
        return sentence_vectors(self.layers, ids, mask, self.pooling)


def layers_of(model: Any) -> Any:
    """What turns vectors into states: of an encoder-decoder its encoder, without a pooled summary."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def with_adapters(model: Any, rank: int) -> Any:
    """The model with LoRA of this rank beside every linear layer; nothing else of it is trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("LoRA needs peft; pip install 'recsys[llm]'.") from None
    config = LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, lora_dropout=0.0, target_modules="all-linear")
    return inject_adapter_in_model(config, model)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """While it lasts, adapters are part of the weights beside which they were: the same answers by fewer products."""
    adapters: list[Any] = [module for module in model.modules() if hasattr(module, "unmerge")]
    for adapter in adapters:
        adapter.merge()
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.unmerge()
