"""BERT4Rec's network against Hugging Face's `BertForMaskedLM` with the same weights, in float64.

Their vocabulary is our table: padding, items, [mask]. Their token-type table is set to zero: ours has none.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from contract import scrambled
from tiny import random_histories, windows_of
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM

from models.bert4rec import BERT4Rec, BERT4RecConfig

CONFIG = BERT4RecConfig(
    num_items=23, max_len=11, embedding_dim=12, num_blocks=2, num_heads=3, ffn_dim=20, dropout=0.0, mask_share=0.3
)


def ours() -> BERT4Rec:
    """Random weights everywhere, biases and norms too."""
    return scrambled(BERT4Rec(CONFIG)).double()  # type: ignore[return-value]


def theirs(model: BERT4Rec) -> BertForMaskedLM:
    """The same weights in their network."""
    config = BertConfig(
        vocab_size=CONFIG.num_items + 2,
        hidden_size=CONFIG.embedding_dim,
        num_hidden_layers=CONFIG.num_blocks,
        num_attention_heads=CONFIG.num_heads,
        intermediate_size=CONFIG.ffn_dim,
        hidden_act="gelu",
        max_position_embeddings=CONFIG.max_len,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    bert = BertForMaskedLM(config).double().eval()
    with torch.no_grad():
        for target, source in copies(model, bert):
            assert target.shape == source.shape
            target.copy_(source)
        bert.bert.embeddings.token_type_embeddings.weight.zero_()
        bert.cls.predictions.bias[-1] = 0
    return bert


def copies(model: BERT4Rec, bert: BertForMaskedLM) -> Iterator[tuple[Tensor, Tensor]]:
    """Their parameter and ours, pair by pair."""

    def module(target: nn.Module, source: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        yield target.weight, source.weight  # type: ignore[misc]
        yield target.bias, source.bias  # type: ignore[misc]

    embeddings, head = bert.bert.embeddings, bert.cls.predictions
    yield embeddings.word_embeddings.weight, model.items.weight
    yield embeddings.position_embeddings.weight, model.positions.weight
    yield from module(embeddings.LayerNorm, model.embedding_norm)
    for layer, block in zip(bert.bert.encoder.layer, model.blocks, strict=True):
        query_key_value = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
        weights, biases = block.attention.qkv.weight.chunk(3), block.attention.qkv.bias.chunk(3)
        for linear, weight, bias in zip(query_key_value, weights, biases, strict=True):
            yield linear.weight, weight
            yield linear.bias, bias
        yield from module(layer.attention.output.dense, block.attention.out)
        yield from module(layer.attention.output.LayerNorm, block.attention_residual.norm)
        yield from module(layer.intermediate.dense, block.ffn.inner)
        yield from module(layer.output.dense, block.ffn.outer)
        yield from module(layer.output.LayerNorm, block.ffn_residual.norm)
    yield from module(head.transform.dense, model.head)
    yield from module(head.transform.LayerNorm, model.head_norm)
    yield head.bias[:-1], model.item_bias


def test_logits_and_loss_are_those_of_bert() -> None:
    model = ours()
    bert = theirs(model)
    histories = random_histories(5, CONFIG.num_items, CONFIG.max_len)
    batch = model.training_batch(windows_of(histories), np.random.default_rng(0))
    logits = model.predictions(model.hidden_states(batch.history, batch.timestamps)) @ model.item_vectors().T
    reference = bert(batch.history, attention_mask=(batch.history != 0).long()).logits[..., : model.mask_row]
    valid = batch.history != 0
    assert logits[valid].std() > 0.5
    assert_close(logits[valid], reference[valid], rtol=1e-9, atol=1e-9)
    items, target = reference[batch.target != 0][:, 1:], batch.target[batch.target != 0]
    expected = torch.nn.functional.cross_entropy(items, target - 1)
    assert model.loss(batch).item() == pytest.approx(expected.item(), rel=1e-9)


def test_bert_has_as_many_parameters_but_for_what_we_left_out() -> None:
    model = ours()
    bert = theirs(model)
    their_count = sum(weight.numel() for weight in bert.parameters())
    token_types, bias_of_mask = CONFIG.embedding_dim, 1
    assert sum(weight.numel() for weight in model.parameters()) == their_count - token_types - bias_of_mask
