"""SASRec's network against torch's own `TransformerEncoder` with the same weights, in float64, for either norm."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from contract import scrambled
from tiny import histories_of, random_histories
from torch import nn
from torch.testing import assert_close

from models.sasrec import SASRec, SASRecConfig

CONFIG = SASRecConfig(num_items=23, max_len=11, embedding_dim=12, num_blocks=3, num_heads=2, ffn_dim=20, dropout=0.0)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_states_are_those_of_torchs_encoder(norm: Literal["pre", "post"], activation: Literal["relu", "gelu"]) -> None:
    model = scrambled(SASRec(replace(CONFIG, norm=norm, activation=activation))).double()
    layer = nn.TransformerEncoderLayer(
        d_model=CONFIG.embedding_dim,
        nhead=CONFIG.num_heads,
        dim_feedforward=CONFIG.ffn_dim,
        dropout=0.0,
        activation=activation,
        layer_norm_eps=1e-8,
        batch_first=True,
        norm_first=norm == "pre",
    )
    final = nn.LayerNorm(CONFIG.embedding_dim, eps=1e-8) if norm == "pre" else None
    encoder = nn.TransformerEncoder(layer, CONFIG.num_blocks, final, enable_nested_tensor=False).double()
    with torch.no_grad():
        for theirs, ours in zip(encoder.layers, model.blocks, strict=True):
            theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
            theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
            theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
            theirs.linear1.load_state_dict(ours.ffn.inner.state_dict())
            theirs.linear2.load_state_dict(ours.ffn.outer.state_dict())
            theirs.norm1.load_state_dict(ours.attention_residual.norm.state_dict())
            theirs.norm2.load_state_dict(ours.ffn_residual.norm.state_dict())
        if final is not None:
            final.load_state_dict(model.blocks.norm.state_dict())
    histories = histories_of(random_histories(5, CONFIG.num_items, CONFIG.max_len))
    length = histories.items.shape[1]
    x = model.items(histories.items) + model.positions.weight[:length]
    future = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    expected = encoder(x, mask=future)
    assert expected.std() > 0.3
    assert_close(model.hidden_states(histories.items, histories.timestamps), expected, rtol=1e-9, atol=1e-9)
    rows = torch.arange(len(histories.lengths))
    assert_close(model.encode(histories), expected[rows, histories.lengths.long() - 1], rtol=1e-9, atol=1e-9)
